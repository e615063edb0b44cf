//! libFuzzer over one of the targets of `tests/corpus/targets.rs`, named by `LARDER_FUZZ`.

#![no_main]

#[path = "../../common/mod.rs"]
mod common;
#[path = "../../corpus/targets.rs"]
mod targets;

use std::sync::LazyLock;

static RUN: LazyLock<targets::Target> = LazyLock::new(|| {
    let wanted = std::env::var("LARDER_FUZZ").expect("LARDER_FUZZ names a target");
    let target = targets::TARGETS.iter().find(|(name, _)| *name == wanted);
    target.unwrap_or_else(|| panic!("LARDER_FUZZ is no target: {wanted}")).1
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| RUN(data));
