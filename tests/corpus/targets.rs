//! What is tried on bytes that a fuzzer chose: one function for each kind. `tests/corpus.rs` calls them on the committed corpus,
//! `tests/fuzz` on what the fuzzer thinks of.

#[path = "allocator.rs"]
mod allocator;
#[path = "heap.rs"]
mod heap;
#[path = "trace.rs"]
mod trace;
#[path = "words.rs"]
mod words;

use super::common;

/// Panics at what must not be.
pub type Target = fn(&[u8]);

/// By name, which is also the name of the folder of its corpus.
pub const TARGETS: [(&str, Target); 4] =
    [("heap", heap::run), ("allocator", allocator::run), ("trace", trace::run), ("words", words::run)];
