//! Heap programs: the laws of the heap, with a fuzzer's bytes for chance.

#[path = "../heap_laws/fences.rs"]
mod fences;
#[path = "../heap_laws/jobs.rs"]
mod jobs;
#[allow(dead_code, reason = "larger shapes are for other programs")]
#[path = "../heap_laws/program.rs"]
mod program;
#[path = "../heap_laws/shadow.rs"]
mod shadow;

use super::common::{self, Rng};
use program::{Program, SMALL, Shape};

pub fn run(data: &[u8]) {
    // Each step is compared with the shadow where it is made; the whole of both less often, for more programs in the time.
    let mut program = Program::new(Shape { check_every: 16, ..SMALL }, Rng::chosen(data));
    program.run(u64::MAX);
    program.end();
}
