//! How many instructions an allocation and its drop take, counted by `valgrind --tool=callgrind` in a program of its own that is built as
//! a user's is: with this package's release profile, and without its features.
//!
//! The program lays out a heap and does some pairs, or twice as many; the difference is what the pairs took, so that the set-up and the
//! first pairs are not in it. `tests/golden/instructions.txt` has the counts; `UPDATE_EXPECT=1` rewrites it.
//!
//! Needs an optimised build and half a minute, so it runs with `LARDER_FULL=1` and in optimised tests only; where there is no valgrind it
//! says so, and fails with `LARDER_REQUIRE_VALGRIND=1`:
//!
//! ```text
//! LARDER_FULL=1 cargo test --test instructions -- --nocapture
//! ```
//!
//! What callgrind wrote stays in `target/tmp/instructions`, one file for each row, for `callgrind_annotate`.

mod common;
#[path = "instructions/program.rs"]
mod program;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use program::{Layout, Stage};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// How far a count may be from that of the table, as a share.
const TOLERANCE: f64 = 0.03;
/// Pairs that are counted: a multiple of `Config::poll_every`, so that each count has its share of what is done now and then.
const PAIRS: usize = 80 * 512;
const FEW: usize = 100;
const MANY: usize = 65_536;
/// What a pair may cost among many holes, where it costs 1 among few.
const MANY_TO_FEW: f64 = 1.05;

/// A row: its name, and what is laid out over how many streams.
const ROWS: [(&str, Layout, usize); 8] = [
    ("exact hit, 1 stream", Layout::ExactHit, 1),
    ("exact hit, 2 streams", Layout::ExactHit, 2),
    ("split and merge, 1 stream", Layout::SplitAndMerge, 1),
    ("split and merge, 2 streams", Layout::SplitAndMerge, 2),
    ("100 holes, 1 stream", Layout::Holes(FEW), 1),
    ("100 holes, 2 streams", Layout::Holes(FEW), 2),
    ("65536 holes, 1 stream", Layout::Holes(MANY), 1),
    ("65536 holes, 2 streams", Layout::Holes(MANY), 2),
];

/// The program's own part: which row, and how many pairs.
const MAIN: &str = "
mod program;
fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |at: usize| arguments[at].parse::<usize>().expect(\"a number\");
    let layout = match &*arguments[1] {
        \"exact\" => program::Layout::ExactHit,
        \"split\" => program::Layout::SplitAndMerge,
        _ => program::Layout::Holes(number(1)),
    };
    program::Stage::new(layout, number(2)).pairs(number(3));
}
";

fn word(layout: Layout) -> String {
    match layout {
        Layout::ExactHit => "exact".into(),
        Layout::SplitAndMerge => "split".into(),
        Layout::Holes(count) => count.to_string(),
    }
}

fn is_set(name: &str) -> bool {
    env::var_os(name).is_some_and(|value| value == "1")
}

/// The release profile of this package's manifest.
fn profile() -> String {
    let manifest = fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).expect("the manifest");
    let (_, profile) = manifest.split_once("[profile.release]\n").expect("a release profile");
    profile.split("\n[").next().unwrap_or_default().to_owned()
}

/// Builds the program in a package of its own, with no settings but its manifest's. Answers its folder.
fn build() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("instructions");
    fs::create_dir_all(folder.join("src")).expect("a folder");
    let manifest = format!(
        "[package]\nname = \"pairs\"\nedition = \"2024\"\n[workspace]\n[profile.release]\n{}\n[dependencies]\n\
         larder = {{ path = {ROOT:?}, default-features = false }}\n",
        profile()
    );
    let write = |file: &str, text: &str| fs::write(folder.join(file), text).expect("a file");
    write("Cargo.toml", &manifest);
    write("src/main.rs", MAIN);
    write("src/program.rs", include_str!("instructions/program.rs"));
    // The same versions of what the library needs.
    fs::copy(Path::new(ROOT).join("Cargo.lock"), folder.join("Cargo.lock")).expect("a lock file");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let flags = |name: &str| name.starts_with("CARGO_PROFILE_") || name.ends_with("RUSTFLAGS");
    for (name, _) in env::vars().filter(|(name, _)| flags(name)) {
        cargo.env_remove(name);
    }
    cargo.args(["build", "--release", "--offline"]).current_dir(&folder);
    let output = cargo.env("CARGO_TARGET_DIR", folder.join("target")).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder
}

/// Instructions of a whole run.
fn run(folder: &Path, layout: Layout, streams: usize, pairs: usize) -> u64 {
    let out = folder.join(format!("callgrind.{}.{streams}", word(layout)));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", &format!("--callgrind-out-file={}", out.display())])
        .arg(folder.join("target/release/pairs"))
        .args([word(layout), streams.to_string(), pairs.to_string()])
        .output()
        .expect("valgrind runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let count = said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    count.unwrap_or_else(|| panic!("no count in\n{said}"))
}

/// Instructions of a pair.
fn count(folder: &Path, layout: Layout, streams: usize) -> f64 {
    let [once, twice] = [PAIRS, 2 * PAIRS].map(|pairs| run(folder, layout, streams, pairs));
    (twice - once) as f64 / PAIRS as f64
}

/// The compiler and the machine, on which the counts depend.
fn compiler() -> String {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().expect("the compiler runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = |key: &str| said.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().to_owned();
    format!("rustc {}, {}", line("release: "), line("host: "))
}

fn table(counts: &[f64]) -> String {
    let mut text = format!("instructions of an allocation and a drop; {}\n", compiler());
    for ((name, ..), count) in ROWS.iter().zip(counts) {
        writeln!(text, "{name:<28}{count:>8.1}").expect("a string");
    }
    text
}

/// What is wrong with counts beside those of the table; none when they are of another compiler.
fn differences(counts: &[f64], golden: &str) -> Vec<String> {
    let mut lines = golden.lines();
    let of = lines.next().unwrap_or_default();
    if !of.ends_with(&compiler()) {
        println!("not compared: the table is of another compiler ({of})");
        return Vec::new();
    }
    let golden: Vec<f64> = lines.filter_map(|line| line.split_whitespace().last()?.parse().ok()).collect();
    assert_eq!(golden.len(), ROWS.len(), "the table has other rows");
    let compare = |((name, ..), (count, golden)): (&(&str, Layout, usize), (&f64, &f64))| {
        let is_near = (count / golden - 1.0).abs() <= TOLERANCE;
        (!is_near).then(|| {
            format!("{name}: {count:.1}, the table has {golden:.1} ({:+.1} %)", 100.0 * (count / golden - 1.0))
        })
    };
    ROWS.iter().zip(counts.iter().zip(&golden)).filter_map(compare).collect()
}

fn count_of(counts: &[f64], layout: Layout, streams: usize) -> f64 {
    let row = ROWS.iter().position(|row| (row.1, row.2) == (layout, streams)).expect("a row");
    counts[row]
}

#[test]
fn a_pair_takes_the_instructions_of_the_table() {
    let required = is_set("LARDER_REQUIRE_VALGRIND");
    if cfg!(debug_assertions) && !common::full() && !required {
        println!("not run: takes half a minute and an optimised build; LARDER_FULL=1 runs it");
        return;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        assert!(!required, "valgrind is required, and is not installed");
        println!("not run: valgrind is not installed");
        return;
    }
    let folder = build();
    let counts: Vec<f64> = ROWS.iter().map(|(_, layout, streams)| count(&folder, *layout, *streams)).collect();
    print!("{}", table(&counts));
    let mut wrong = Vec::new();
    for streams in [1, 2] {
        let ratio = count_of(&counts, Layout::Holes(MANY), streams) / count_of(&counts, Layout::Holes(FEW), streams);
        let text = format!("{MANY} holes over {FEW}, streams: {streams}, ratio {ratio:.3}, at most {MANY_TO_FEW}");
        println!("{text}");
        if ratio > MANY_TO_FEW {
            wrong.push(text);
        }
    }
    let path = Path::new(ROOT).join("tests/golden/instructions.txt");
    if env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, table(&counts)).expect("the table");
    }
    wrong.extend(differences(&counts, &fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n")));
    assert!(wrong.is_empty(), "(UPDATE_EXPECT=1 rewrites the table)\n{}", wrong.join("\n"));
}

#[test]
fn the_counted_pairs_need_no_more_memory() {
    for (name, layout, streams) in ROWS.iter().filter(|row| row.1 != Layout::Holes(MANY)) {
        let mut stage = Stage::new(*layout, *streams);
        stage.pairs(512);
        let before = stage.allocator.stats();
        stage.pairs(512);
        let after = stage.allocator.stats();
        assert_eq!(
            after.blocks.allocated - before.blocks.allocated,
            after.blocks.freed - before.blocks.freed,
            "{name}"
        );
        assert_eq!(after.reserved, before.reserved, "{name}");
        // Of several streams, one may look for the completed work of another.
        assert!(after.misses == before.misses || *streams > 1, "{name}");
        assert_eq!(stage.allocator.check(), Ok(()), "{name}");
    }
}
