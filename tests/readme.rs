//! The README tells the truth: its blocks marked `<!-- printed: ... -->` are what the programs beside them print (rewritten with
//! `UPDATE_EXPECT=1`), its commands name things that exist, and its table of features is that of the manifest.
//!
//! Its example is compiled and run as a documentation test.

use std::path::Path;
use std::process::Command;

use larder::diag::SegmentMap;
use larder::policy::DebugConfig;
use larder::units::MIB;
use larder::{Allocator, Config};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap().replace("\r\n", "\n")
}

/// Lines that differ from machine to machine are left out of the comparison: the device's memory, addresses reserved.
fn masked(text: &str) -> String {
    let mask = |line: &str| -> String {
        match line.split_once(" of addresses beyond") {
            Some((line, _)) => line.rsplit_once(';').map_or(line, |(line, _)| line).to_owned(),
            None if line.starts_with("  device ") => "  device".into(),
            None => line.trim_end().to_owned(),
        }
    };
    text.trim_end().lines().map(mask).collect::<Vec<_>>().join("\n")
}

/// Holds the block of this name against what is printed, or replaces it.
fn printed(name: &str, text: &str) {
    let readme = read("README.md");
    let start = format!("<!-- printed: {name} -->\n```text\n");
    let (before, rest) = readme.split_once(&start).unwrap_or_else(|| panic!("README.md has no block {name}"));
    let (block, after) = rest.split_once("```").unwrap();
    let is_equal = masked(block) == masked(text);
    if !is_equal && std::env::var_os("UPDATE_EXPECT").is_some() {
        let text = text.trim_end();
        return std::fs::write(root().join("README.md"), format!("{before}{start}{text}\n```{after}")).unwrap();
    }
    assert!(is_equal, "README.md, block {name}, is not what is printed (UPDATE_EXPECT=1 rewrites it):\n{text}");
}

/// Our file and line in a text, as those of a reader's program.
fn as_a_program_of_the_reader(text: &str) -> String {
    let (before, after) = text.split_once("tests/readme.rs:").unwrap();
    let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
    let text = format!("{before}src/main.rs:9{rest}");
    if text.contains("tests/readme.rs:") { as_a_program_of_the_reader(&text) } else { text }
}

/// One test for all blocks: a rewrite reads and writes the whole file.
#[test]
fn printed_blocks_are_what_is_printed() {
    let host = Allocator::host(Config::default().limit(256 * MIB)).unwrap();
    let weights = host.request(96 * MIB).tag("weights").zeroed().alloc().unwrap();
    let error = host.request(200 * MIB).tag("cache").align(4096).alloc().unwrap_err();
    printed("report", &as_a_program_of_the_reader(&error.to_string()));
    drop(weights);

    let host = Allocator::host(Config::default().limit(256 * MIB)).unwrap();
    let blocks: Vec<_> = (0..24).map(|_| host.alloc(MIB).unwrap()).collect();
    let kept: Vec<_> = blocks.into_iter().enumerate().filter(|(at, _)| at % 3 != 1).collect();
    let map = SegmentMap { blocks: 2, ..SegmentMap::new(&host.snapshot()) }.to_string();
    printed("map", &as_a_program_of_the_reader(&map));
    drop(kept);

    let config = Config::default().limit(256 * MIB).debug(DebugConfig::default());
    let host = Allocator::host(config).unwrap();
    let scope = host.scope("one request");
    let cache = host.request(MIB).tag("cache").alloc().unwrap();
    printed("leaks", &as_a_program_of_the_reader(&scope.finish().to_string()));
    drop(cache);

    let trace = "tests/data/06_resnet50_server.gz";
    let mut larder = Command::new(env!("CARGO_BIN_EXE_larder"));
    let output = larder.current_dir(root()).args(["replay", trace, "--no-time"]).output().unwrap();
    let prompt = format!("$ cargo run --release -- replay {trace} --no-time\n");
    printed("replay", &(prompt + &String::from_utf8(output.stdout).unwrap()));
}

/// The words of the commands that the README gives, a command a line.
fn commands(readme: &str) -> Vec<Vec<String>> {
    let blocks = readme.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let lines = blocks.flat_map(str::lines).map(|line| line.split('#').next().unwrap().trim());
    lines.filter(|line| !line.is_empty()).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn commands_name_what_exists() {
    let readme = read("README.md");
    let commands = commands(&readme);
    let is_given = |wanted: &str| commands.iter().any(|words| words.join(" ") == wanted);
    assert!(is_given("cargo run --release --example quickstart") && is_given("cargo test"));
    let help = Command::new(env!("CARGO_BIN_EXE_larder")).args(["replay", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for words in &commands {
        for pair in words.windows(2) {
            match pair[0].as_str() {
                "--example" => {
                    assert!(root().join("examples").join(&pair[1]).with_extension("rs").exists(), "{pair:?}")
                }
                "--bench" => assert!(root().join("benches").join(&pair[1]).with_extension("rs").exists(), "{pair:?}"),
                _ => {}
            }
        }
        let arguments = words.iter().skip_while(|word| *word != "replay").skip(1);
        for word in arguments {
            if word.starts_with("--") {
                assert!(
                    help.contains(&format!("{word} ")) || help.contains(&format!("{word}\n")),
                    "{word} is no option"
                );
            } else if word.starts_with("tests/data/") && !word.contains('*') {
                assert!(root().join(word).exists(), "{word} is no file");
            }
        }
    }
    for file in readme.split('`').filter(|text| text.starts_with("src/")) {
        assert!(root().join(file).exists(), "{file} is named and is not there");
    }
}

#[test]
fn every_command_of_the_tool_passes_or_says_why() {
    let small = |word: &String| word.replace("--repeat", "--no-time");
    for words in commands(&read("README.md")).iter().filter(|words| words.contains(&"replay".to_owned())) {
        let arguments =
            words.iter().skip_while(|word| *word != "replay").filter(|word| !word.contains('*') && *word != "50");
        let output = Command::new(env!("CARGO_BIN_EXE_larder"))
            .current_dir(root())
            .args(arguments.map(small))
            .arg("tests/data/serving_small.gz")
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let expected = if words.contains(&"--capacity".to_owned()) { 1 } else { 0 };
        assert_eq!(output.status.code(), Some(expected), "{words:?}: {error}");
    }
}

#[test]
fn the_table_of_features_is_that_of_the_manifest() {
    let manifest = read("Cargo.toml");
    let features = manifest.split("[features]\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let mut wanted: Vec<&str> = features
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name)
        .filter(|name| *name != "default")
        .collect();
    let readme = read("README.md");
    let table = readme.split("## Features").nth(1).unwrap().split("## ").next().unwrap();
    let mut told: Vec<&str> = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    wanted.sort_unstable();
    told.sort_unstable();
    assert_eq!(told, wanted);
    let version =
        manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")).unwrap().trim_end_matches('"');
    assert!(readme.contains(&format!("Rust {version} or newer")));
}
