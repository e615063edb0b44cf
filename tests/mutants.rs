//! Mutants: copies of this crate with one planted defect each. A test must fail on every one, so that the tests are known to
//! see what they are for.
//!
//! Runs with `LARDER_MUTANTS=1` or `LARDER_FULL=1` only: each mutant is built and tested, which takes minutes in all. With the name of a
//! test, `LARDER_MUTANTS=cuda`, only the mutants that it must catch. That every mutant still fits the sources is always checked.

#[path = "mutants/table.rs"]
mod table;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fmt, fs};

use table::{Edit, MUTANTS, Mutant};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The longest that one mutant's tests may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The source with the edit made; an error when its text is not there exactly once.
fn edited(source: &str, edit: &Edit) -> Result<String, String> {
    match source.matches(edit.old).count() {
        1 => Ok(source.replacen(edit.old, edit.new, 1)),
        count => Err(format!(
            "src/{} has `{}` {count} times, not once: bring tests/mutants/table.rs up to date",
            edit.file, edit.old
        )),
    }
}

fn read(root: &Path, file: &str) -> String {
    let path = root.join("src").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A copy of the crate to change, with build outputs of its own.
struct Copy {
    root: PathBuf,
    target: PathBuf,
}

/// What the tests of a mutant said.
enum Verdict {
    Passed,
    /// The tests that failed, and what was said first of a broken rule, or of anything.
    FailedBy(Vec<String>, String),
    /// Neither passed nor reported a failing test.
    Ended(String),
    DoesNotCompile(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Passed => write!(f, "all tests pass"),
            Verdict::FailedBy(tests, why) => write!(f, "{} tests fail: {}; {why}", tests.len(), tests.join(", ")),
            Verdict::Ended(how) => write!(f, "no test is reported to fail: {how}"),
            Verdict::DoesNotCompile(text) => write!(f, "does not compile: {text}"),
        }
    }
}

impl Copy {
    fn new() -> Copy {
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
        let copy = Copy { root: scratch.join("crate"), target: scratch.join("target") };
        if copy.root.exists() {
            fs::remove_dir_all(&copy.root).expect("an old copy goes");
        }
        copy_tree(Path::new(ROOT), &copy.root);
        let manifest = copy.root.join("Cargo.toml");
        let text = fs::read_to_string(&manifest).expect("a manifest");
        if !text.lines().any(|line| line.trim() == "[workspace]") {
            // The copy belongs to nobody, wherever it lies.
            fs::write(&manifest, text + "\n[workspace]\n").expect("a manifest");
        }
        copy
    }

    /// Builds one test of the copy, with the features that it needs. Answers its executable.
    fn build(&self, test: &str) -> Result<PathBuf, String> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .current_dir(&self.root)
            .args(["test", "--offline", "--no-default-features", "--no-run", "--message-format=json", "--test", test])
            .args(["--features", features(test)])
            .env("CARGO_TARGET_DIR", &self.target)
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(errors(&String::from_utf8_lossy(&output.stdout), &String::from_utf8_lossy(&output.stderr)));
        }
        let messages = String::from_utf8_lossy(&output.stdout).into_owned();
        let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let of_test = messages.filter(|message| message["target"]["name"] == test);
        let mut executables = of_test.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
        executables.next().ok_or_else(|| "no executable came of it".to_string())
    }

    fn test(&self, test: &str) -> Verdict {
        let executable = match self.build(test) {
            Ok(executable) => executable,
            Err(text) => return Verdict::DoesNotCompile(text),
        };
        let log = self.target.join("output.txt");
        let file = fs::File::create(&log).expect("a file for the output");
        let mut child = Command::new(executable)
            .current_dir(&self.root)
            .env_remove("LARDER_FULL")
            .env_remove("LARDER_SEEDS")
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .expect("a test runs");
        let start = Instant::now();
        let output = || String::from_utf8_lossy(&fs::read(&log).expect("the output")).into_owned();
        let status = loop {
            match child.try_wait().expect("a child's status") {
                Some(status) => break status,
                None if start.elapsed() > PATIENCE => {
                    end(&mut child);
                    return Verdict::Ended(format!("not over after {PATIENCE:?}"));
                }
                None => std::thread::sleep(Duration::from_millis(50)),
            }
            // One failure is enough; the others would only take long.
            let failed = failed(&output());
            if !failed.is_empty() {
                end(&mut child);
                return Verdict::FailedBy(failed, reason(&output()));
            }
        };
        let (output, failed) = (output(), failed(&output()));
        match (status.success(), failed.is_empty()) {
            (true, _) => Verdict::Passed,
            (false, false) => Verdict::FailedBy(failed, reason(&output)),
            (false, true) => Verdict::Ended(format!("{status}; {}", output.lines().last().unwrap_or_default())),
        }
    }

    /// Tests the copy with a mutant's edits made, and takes them back.
    fn test_mutant(&self, mutant: &Mutant) -> Result<Verdict, String> {
        let mut kept: Vec<(PathBuf, String)> = Vec::new();
        let mut made = Ok(());
        for edit in mutant.edits {
            let source = read(&self.root, edit.file);
            match edited(&source, edit) {
                Ok(text) => {
                    let path = self.root.join("src").join(edit.file);
                    fs::write(&path, text).expect("a source of the copy");
                    kept.push((path, source));
                }
                Err(text) => made = Err(text),
            }
        }
        let verdict = made.map(|()| self.test(mutant.caught_by));
        for (path, source) in kept.into_iter().rev() {
            fs::write(path, source).expect("a source of the copy");
        }
        verdict
    }
}

/// The features that a test needs.
fn features(test: &str) -> &'static str {
    match test {
        "device_cuda" => "cuda cli",
        _ if test.contains("cuda") => "cuda",
        _ => "",
    }
}

fn end(child: &mut std::process::Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// The tests that an output says have failed.
fn failed(output: &str) -> Vec<String> {
    output
        .lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED").map(str::to_string))
        .collect()
}

/// The first message of a test that names a broken rule; if none does, the first message.
fn reason(output: &str) -> String {
    let mut messages = output.lines().zip(output.lines().skip(1)).filter(|(line, _)| line.contains(" panicked at "));
    let rule = messages.clone().find(|(_, message)| message.contains("rules broken") || message.contains("rule: "));
    rule.or_else(|| messages.next()).map_or(String::new(), |(_, message)| message.to_string())
}

/// The compiler's errors, the first of them.
fn errors(messages: &str, rest: &str) -> String {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let rendered = |message: serde_json::Value| {
        let message = &message["message"];
        (message["level"] == "error").then(|| message["rendered"].as_str().map(str::to_string)).flatten()
    };
    messages.filter_map(rendered).next().unwrap_or_else(|| rest.to_string())
}

/// Copies what a crate consists of: all but hidden files and build outputs.
fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let (name, kind) = (entry.file_name(), entry.file_type().expect("a kind"));
        if name.to_string_lossy().starts_with('.') || name == "target" {
            continue;
        }
        if kind.is_dir() {
            copy_tree(&entry.path(), &to.join(&name));
        } else if kind.is_file() {
            fs::copy(entry.path(), to.join(&name)).expect("a copied file");
        }
    }
}

#[test]
fn every_mutant_fits_the_sources() {
    let mut wrong = Vec::new();
    for mutant in MUTANTS {
        for edit in mutant.edits {
            let source = read(Path::new(ROOT), edit.file);
            wrong.extend(edited(&source, edit).err().map(|text| format!("{}: {text}", mutant.name)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_mutant_is_caught() {
    let wish = std::env::var("LARDER_MUTANTS").or_else(|_| std::env::var("LARDER_FULL")).unwrap_or_default();
    // The stand-in driver, over which the tests of CUDA run, is a Linux library.
    let here = |mutant: &&Mutant| !mutant.caught_by.contains("cuda") || cfg!(target_os = "linux");
    let mutants: Vec<&Mutant> =
        MUTANTS.iter().filter(here).filter(|mutant| wish == "1" || wish == mutant.caught_by).collect();
    if mutants.is_empty() {
        println!("not run: building {} mutants takes minutes; LARDER_MUTANTS=1 runs them", MUTANTS.len());
        return;
    }
    let whole = Instant::now();
    let copy = Copy::new();
    let mut tests: Vec<&str> = mutants.iter().map(|mutant| mutant.caught_by).collect();
    tests.sort_unstable();
    tests.dedup();
    for test in tests {
        let start = Instant::now();
        let verdict = copy.test(test);
        assert!(matches!(verdict, Verdict::Passed), "{test} on the sources as they are: {verdict}");
        println!("{test} passes without a mutant, {:.1} s", start.elapsed().as_secs_f64());
    }
    let mut wrong = Vec::new();
    for mutant in &mutants {
        let start = Instant::now();
        let verdict = copy.test_mutant(mutant);
        let seconds = start.elapsed().as_secs_f64();
        let (caught, text) = match verdict {
            Ok(verdict) => (matches!(verdict, Verdict::FailedBy(..)), verdict.to_string()),
            Err(text) => (false, text),
        };
        println!("{}: {seconds:.1} s, {text}", mutant.name);
        if !caught {
            wrong.push(format!("{}: {text}", mutant.name));
        }
    }
    println!("{} mutants in {:.0} s", mutants.len(), whole.elapsed().as_secs_f64());
    assert!(wrong.is_empty(), "mutants that no test caught:\n{}", wrong.join("\n"));
}
