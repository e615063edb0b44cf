//! Heap programs: the laws of the heap, with a fuzzer's bytes for chance.

#[path = "../heap_laws/fences.rs"]
mod fences;
#[path = "../heap_laws/jobs.rs"]
mod jobs;
#[path = "../heap_laws/program.rs"]
mod program;
#[path = "../heap_laws/shadow.rs"]
mod shadow;

use super::common::{self, Rng};
use program::{Program, SMALL};

pub fn run(data: &[u8]) {
    let mut program = Program::new(SMALL, Rng::chosen(data));
    program.run(u64::MAX);
    program.end();
}
