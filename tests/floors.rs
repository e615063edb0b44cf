//! The shape of the source, as `src/lib.rs` draws it: no arrow runs up the floors, no file grows over its limit, `unsafe` stays
//! in the files named for it, every file says what it is, and a feature is a file.
//!
//! The checker reads text: comments and strings are blanked first, then paths from the root of the crate are looked for. It is
//! itself tested on samples that must be found guilty.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The floor of every room. A room that is not here does not exist yet: adding one is a decision.
const FLOORS: &[(&str, u8)] = &[
    ("units", 0),
    ("ids", 0),
    ("sync", 0),
    ("dtype", 0),
    ("heap", 1),
    ("fence", 1),
    ("policy", 1),
    ("stats", 1),
    ("pressure", 1),
    ("snapshot", 1),
    ("layout", 1),
    ("backend", 1),
    ("allocator", 2),
    ("classical", 2),
    ("native", 3),
    ("device", 3),
    ("fallback", 3),
    ("tensor", 3),
    ("monitor", 3),
    ("diag", 3),
    ("trace", 3),
    ("ffi", 4),
];

/// Arrows on one floor, each named: what is copied must be able to say what it is a copy of; a device chosen at run time is one of
/// the native ones; a replay has a device to play on.
const BESIDE: &[(&str, &str)] =
    &[("snapshot", "stats"), ("snapshot", "backend"), ("device", "native"), ("trace", "device")];

/// The files that may hold `unsafe`.
const UNSAFE: &[&str] = &[
    "src/allocator/block.rs",
    "src/backend/cuda/compiler.rs",
    "src/backend/cuda/driver.rs",
    "src/backend/cuda/library.rs",
    "src/backend/host/file.rs",
    "src/backend/host/mapping.rs",
    "src/backend/host/system.rs",
    "src/device/cuda.rs",
    "src/native/cudarc.rs",
    "src/native/host.rs",
    "src/native/pinned.rs",
    "src/sync/brief.rs",
    "src/trace/cpu_time.rs",
];

/// Lines of a file at most.
const LONGEST: usize = 800;

/// A file as the rules see it.
struct Source {
    /// From the root of the package, with `/`.
    path: String,
    text: String,
    /// The text with comments and strings blanked.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned(), code: blanked(text) }
    }

    /// The modules from the root of the crate down to this file: `src/heap/bins.rs` is `heap`, `bins`.
    fn modules(&self) -> Vec<&str> {
        let inner = self.path.strip_prefix("src/").unwrap_or_default();
        let stem = inner.strip_suffix(".rs").unwrap_or(inner);
        stem.split('/').filter(|part| !matches!(*part, "mod" | "lib")).collect()
    }

    fn room(&self) -> Option<&str> {
        self.modules().first().copied()
    }
}

/// The text with every character of comments, strings and character literals replaced by a space; line ends stay.
fn blanked(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let starts = |at: usize, what: &str| what.chars().enumerate().all(|(n, c)| bytes.get(at + n) == Some(&c));
    while at < bytes.len() {
        let end = if starts(at, "//") {
            (at..bytes.len()).find(|n| bytes[*n] == '\n').unwrap_or(bytes.len())
        } else if starts(at, "/*") {
            (at + 2..bytes.len()).find(|n| starts(*n, "*/")).map_or(bytes.len(), |n| n + 2)
        } else if bytes[at] == 'r'
            && (starts(at, "r\"") || starts(at, "r#\""))
            && !is_name(bytes.get(at.wrapping_sub(1)))
        {
            let closing = if starts(at, "r#") { "\"#" } else { "\"" };
            (at + closing.len() + 1..bytes.len())
                .find(|n| starts(*n, closing))
                .map_or(bytes.len(), |n| n + closing.len())
        } else if bytes[at] == '"' {
            end_of_literal(&bytes, at, '"')
        } else if bytes[at] == '\'' && (bytes.get(at + 1) == Some(&'\\') || bytes.get(at + 2) == Some(&'\'')) {
            end_of_literal(&bytes, at, '\'')
        } else {
            out.push(bytes[at]);
            at += 1;
            continue;
        };
        out.extend(bytes[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    out
}

fn end_of_literal(text: &[char], start: usize, quote: char) -> usize {
    let mut at = start + 1;
    while at < text.len() && text[at] != quote {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

fn is_name(c: Option<&char>) -> bool {
    c.is_some_and(|c| c.is_alphanumeric() || *c == '_')
}

/// The words of code with their lines, from 1.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.lines().enumerate().flat_map(|(line, text)| {
        text.split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .filter(|word| !word.is_empty())
            .map(move |w| (line + 1, w))
    })
}

/// The first names after each `crate::`, and after each run of `super::` that leads to the root, with their lines.
fn rooms_named(source: &Source) -> Vec<(usize, String)> {
    let depth = source.modules().len();
    let mut found = Vec::new();
    for (at, _) in source.code.match_indices("crate::") {
        if !is_name(source.code[..at].chars().last().as_ref()) {
            found.extend(first_names(&source.code, at + "crate::".len()));
        }
    }
    let up = "super::";
    for (at, _) in source.code.match_indices(up) {
        if source.code[..at].ends_with(up) {
            continue;
        }
        let count = source.code[at..].split(up).take_while(|part| part.is_empty()).count();
        if count >= depth && depth > 0 {
            let rooms = first_names(&source.code, at + count * up.len());
            found.extend(rooms.into_iter().filter(|(_, name)| floor(name).is_some()));
        }
    }
    found.retain(|(_, name)| !matches!(name.as_str(), "self" | "super" | "crate" | ""));
    found
}

/// The name at `at`, or the first names of the parts of a group `{a::b, c}` there.
fn first_names(code: &str, at: usize) -> Vec<(usize, String)> {
    let line = |at: usize| code[..at].matches('\n').count() + 1;
    let name = |at: usize| -> (usize, String) {
        let rest = code[at..].trim_start();
        let text = rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default();
        (line(at + code[at..].len() - rest.len()), text.to_owned())
    };
    if !code[at..].starts_with('{') {
        return vec![name(at)];
    }
    let (mut depth, mut names) = (0, Vec::new());
    for (offset, c) in code[at..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 1 && matches!(c, '{' | ',') {
            names.push(name(at + offset + 1));
        }
        if depth == 0 {
            break;
        }
    }
    names
}

fn floor(room: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == room).map(|(_, floor)| *floor)
}

/// What `lib.rs` re-exports, and from which room.
fn re_exports(library: &Source) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    for (at, _) in library.code.match_indices("pub use ") {
        let path = &library.code[at + "pub use ".len()..];
        let path = &path[..path.find(';').unwrap_or(path.len())];
        let Some((room, rest)) = path.split_once("::") else { continue };
        let inner = rest.trim().trim_start_matches('{').trim_end_matches('}');
        for item in inner.split(',') {
            let name = item.rsplit([':', ' ']).find(|part| !part.is_empty()).unwrap_or_default().trim();
            exports.insert(name.to_owned(), room.trim().to_owned());
        }
    }
    exports
}

/// Everything wrong with these files, one line each.
fn faults(sources: &[Source]) -> Vec<String> {
    let exports = sources.iter().find(|source| source.path == "src/lib.rs").map(re_exports).unwrap_or_default();
    let mut faults = Vec::new();
    for source in sources {
        // The tool in src/bin is a crate of its own, above all floors.
        let in_library = source.path.starts_with("src/") && !source.path.starts_with("src/bin/");
        length(source, &mut faults);
        head(source, &mut faults);
        if in_library {
            arrows(source, &exports, &mut faults);
            unsafety(source, &mut faults);
            features(source, &mut faults);
        }
    }
    faults
}

fn arrows(source: &Source, exports: &BTreeMap<String, String>, faults: &mut Vec<String>) {
    let Some(room) = source.room() else { return };
    let Some(from) = floor(room) else {
        faults.push(format!("{}: room `{room}` has no floor in tests/floors.rs", source.path));
        return;
    };
    for (line, name) in rooms_named(source) {
        let target = exports.get(&name).unwrap_or(&name);
        if target == room || BESIDE.contains(&(room, target)) {
            continue;
        }
        match floor(target) {
            Some(to) if to < from => {}
            Some(to) => faults.push(format!(
                "{}:{line}: `{room}` (floor {from}) reaches `{target}` (floor {to}): arrows run down only",
                source.path
            )),
            None => {
                faults.push(format!("{}:{line}: `crate::{name}` is no room that tests/floors.rs knows", source.path))
            }
        }
    }
}

fn length(source: &Source, faults: &mut Vec<String>) {
    let lines = source.text.lines().count();
    if lines > LONGEST {
        faults.push(format!("{}: {lines} lines, the most is {LONGEST}: is it one room?", source.path));
    }
}

fn head(source: &Source, faults: &mut Vec<String>) {
    if !source.text.starts_with("//! ") {
        faults.push(format!("{}: does not open with `//!` and what it is", source.path));
    }
}

fn unsafety(source: &Source, faults: &mut Vec<String>) {
    if UNSAFE.contains(&source.path.as_str()) {
        return;
    }
    for (line, word) in words(&source.code) {
        if word == "unsafe" {
            faults.push(format!("{}:{line}: `unsafe` outside the files named for it", source.path));
        }
    }
    for (line, text) in source.code.lines().enumerate() {
        if text.contains("allow(unsafe_code") {
            faults.push(format!("{}:{}: allows `unsafe` outside the files named for it", source.path, line + 1));
        }
    }
}

/// `cfg(feature)` stands on `mod` and `use` lines and before whole items, never inside a function.
fn features(source: &Source, faults: &mut Vec<String>) {
    for (line, text) in source.code.lines().enumerate() {
        let inside = text.starts_with(' ') && text.trim_start().starts_with("#[cfg(feature");
        if inside || text.contains("cfg!(feature") {
            faults.push(format!("{}:{}: a feature is a file, not a branch", source.path, line + 1));
        }
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            // Programs of their own that only measure others are not part of this package.
            if !path.join("Cargo.toml").exists() && path.file_name() != Some("target".as_ref()) {
                collect(&path, files);
            }
        } else if path.extension() == Some("rs".as_ref()) {
            files.push(path);
        }
    }
}

#[test]
fn the_crate_keeps_its_shape() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests", "examples", "benches"] {
        collect(&root.join(folder), &mut files);
    }
    files.sort();
    let name = |path: &Path| path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
    let sources: Vec<Source> =
        files.iter().map(|path| Source::new(&name(path), &fs::read_to_string(path).unwrap())).collect();
    assert!(sources.iter().filter(|source| source.path.starts_with("src/")).count() > 40, "the source was not found");
    let faults = faults(&sources);
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    for path in UNSAFE {
        let source = sources.iter().find(|source| source.path == *path);
        assert!(
            source.is_some_and(|source| words(&source.code).any(|(_, word)| word == "unsafe")),
            "{path} has no `unsafe`"
        );
    }
}

#[test]
fn the_picture_in_the_documentation_names_every_room() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = fs::read_to_string(root.join("src/lib.rs")).unwrap();
    let picture = library.split("```text").nth(1).unwrap().split("```").next().unwrap();
    let mut floors = Vec::new();
    for line in picture.lines() {
        let line = line.trim_start_matches("//!").trim_start();
        let Some((number, rooms)) = line.strip_prefix("floor ").and_then(|rest| rest.split_once(' ')) else { continue };
        let number: u8 = number.parse().unwrap();
        floors.extend(rooms.split_whitespace().map(|room| (room.trim_end_matches('/').to_owned(), number)));
    }
    let exists = |room: &str| {
        let base = root.join("src").join(room);
        base.is_dir() || base.with_extension("rs").is_file()
    };
    let mut there: Vec<(String, u8)> =
        FLOORS.iter().filter(|(room, _)| exists(room)).map(|(room, floor)| (room.to_string(), *floor)).collect();
    there.sort();
    floors.sort();
    assert_eq!(floors, there, "the picture in src/lib.rs and the rooms in src differ");
}

// ---- the checker itself, on what it must find

fn guilty(path: &str, text: &str) -> Vec<String> {
    let library = Source::new("src/lib.rs", "//! x\npub use allocator::{Allocator, tag};\npub use stats::Stats;\n");
    faults(&[library, Source::new(path, text)])
}

#[test]
fn an_arrow_up_is_found_however_it_is_written() {
    for text in [
        "//! x\nuse crate::allocator::Core;\n",
        "//! x\nuse crate::Allocator;\n",
        "//! x\nuse crate::{units::KIB, Allocator};\n",
        "//! x\nuse crate::{\n    units::{KIB, MIB},\n    trace::{Op, Trace},\n};\n",
        "//! x\nfn f() { crate::allocator::go() }\n",
        "//! x\nuse super::super::allocator::Core;\n",
        "//! x\npub(crate) use crate::backend::Span;\n",
        "//! x\nuse crate::nowhere::X;\n",
    ] {
        assert_eq!(guilty("src/heap/bins.rs", text).len(), 1, "{text}: {:?}", guilty("src/heap/bins.rs", text));
    }
    assert_eq!(guilty("src/fence.rs", "//! x\nuse super::backend::Span;\n").len(), 1);
    assert_eq!(
        guilty("src/heap/bins.rs", "//! x\nuse crate::{\n  units::KIB,\n  trace::Op,\n};\n")[0].split(':').nth(1),
        Some("4")
    );
    assert_eq!(guilty("src/attic/mod.rs", "//! x\n").len(), 1, "a room without a floor");
}

#[test]
fn an_arrow_down_a_comment_and_a_string_are_innocent() {
    for (path, text) in [
        (
            "src/heap/bins.rs",
            "//! See [`crate::allocator`].\nuse crate::units::KIB;\nuse super::table::X;\nuse crate::heap::Y;\n",
        ),
        ("src/heap/mod.rs", "//! x\nconst A: &str = \"use crate::trace::X; unsafe\"; // crate::trace, unsafe\n"),
        (
            "src/heap/mod.rs",
            "//! x\nconst A: &str = r#\"crate::trace \"unsafe\" \"#;\nconst B: char = '\"';\nconst C: char = '\\'';\n",
        ),
        ("src/snapshot.rs", "//! x\nuse crate::stats::Stats;\nuse crate::backend::Budget;\n"),
        ("src/trace/replay.rs", "//! x\nuse crate::{Allocator, Stats};\n#![forbid(unsafe_code)]\n"),
        ("src/allocator/core.rs", "//! x\nuse super::streams::X;\nuse crate::heap::Heap;\n"),
        ("src/native/host.rs", "//! x\n#![allow(unsafe_code)]\nfn f() { unsafe {} }\n"),
    ] {
        assert_eq!(guilty(path, text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn length_head_unsafe_and_features_are_found() {
    let long = format!("//! x\n{}", "//\n".repeat(LONGEST));
    assert_eq!(guilty("src/heap/bins.rs", &long).len(), 1);
    assert_eq!(guilty("tests/story.rs", &long).len(), 1);
    assert_eq!(guilty("src/heap/bins.rs", &long[..long.len() - 3]).len(), 0, "the limit itself is allowed");
    assert_eq!(guilty("src/heap/bins.rs", "use crate::units::KIB;\n").len(), 1);
    assert_eq!(guilty("examples/x.rs", "fn main() {}\n").len(), 1);
    assert_eq!(guilty("src/heap/bins.rs", "//! x\nfn f() {\n    unsafe { g() }\n}\n").len(), 1);
    assert_eq!(guilty("src/heap/bins.rs", "//! x\n#![allow(unsafe_code)]\n").len(), 1);
    assert_eq!(guilty("src/heap/bins.rs", "//! x\nunsafe impl Send for X {}\n").len(), 1);
    assert_eq!(guilty("src/heap/bins.rs", "//! x\nfn f() {\n    #[cfg(feature = \"cuda\")]\n    g();\n}\n").len(), 1);
    assert_eq!(guilty("src/heap/bins.rs", "//! x\nfn f() -> bool {\n    cfg!(feature = \"cuda\")\n}\n").len(), 1);
    assert_eq!(guilty("src/heap/bins.rs", "//! x\n#[cfg(feature = \"cuda\")]\nmod cuda;\n").len(), 0);
}
