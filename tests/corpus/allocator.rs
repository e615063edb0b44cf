//! Allocator programs over a simulated device whose calls fail now and then: the laws of the allocator, with a fuzzer's bytes for
//! chance.

#[path = "../allocator_laws/program.rs"]
mod program;

use super::common::Rng;
use larder::backend::sim::SimConfig;
use larder::policy::Config;
use program::{LAGS, MEMORIES, Program};

pub fn run(data: &[u8]) {
    let mut rng = Rng::chosen(data);
    let device = program::device(rng.pick(&MEMORIES), rng.pick(&LAGS));
    let device = SimConfig { host_ordered: rng.one_in(4), ..device };
    let config = Config { alias: !rng.one_in(4), ..program::config() };
    Program::new(device, config, rng).with_faults(16).run(u64::MAX, 16);
}
