//! The corpus that fuzzing has gathered, played without a fuzzer: what it reached once stays reached, and what it broke once stays
//! mended.

mod common;
#[path = "corpus/targets.rs"]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};

/// The seeds of a target, the shortest first.
fn seeds(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut seeds: Vec<_> = paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    seeds.sort_by_key(|(path, data)| (data.len(), path.clone()));
    seeds
}

#[test]
fn every_seed_of_the_corpus_passes() {
    for (name, run) in targets::TARGETS {
        let seeds = seeds(name);
        assert!(seeds.len() >= 10, "{name} has {} seeds", seeds.len());
        for (path, data) in seeds {
            assert!(std::panic::catch_unwind(|| run(&data)).is_ok(), "{} does not pass", path.display());
        }
    }
}
