//! A real program replayed with work on every block.

use larder::trace::{Op, Trace};
use larder::units::align_up;

use crate::driver::standin;
use crate::world::{PAGE, Setup, World};

/// Sizes are divided by this, so that the bytes cost little.
const SCALE: u64 = 64;

fn serving() -> Trace {
    Trace::load(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/serving_small.gz")).expect("a trace")
}

fn scaled(bytes: u64) -> u64 {
    bytes.div_ceil(SCALE)
}

/// The most bytes that the first operations hold at once, in whole quanta.
fn peak(trace: &Trace, ops: usize) -> u64 {
    let mut sizes = vec![0; trace.slots()];
    let (mut live, mut peak) = (0, 0);
    for op in trace.ops().iter().take(ops) {
        match *op {
            Op::Alloc { slot, bytes, .. } => {
                sizes[slot as usize] = align_up(scaled(bytes), 512).expect("a size");
                live += sizes[slot as usize];
                peak = peak.max(live);
            }
            Op::Free { slot } => live -= sizes[slot as usize],
            _ => {}
        }
    }
    peak
}

#[test]
fn a_trace_runs_in_little_more_than_what_it_holds() {
    let Some(driver) = standin() else { return };
    let trace = serving();
    let ops = trace.ops().len().min(if crate::common::full() { usize::MAX } else { 4_000 });
    let lanes = trace.streams().max().map_or(0, usize::from) + 1;
    let peak = peak(&trace, ops);
    let pages = (peak + peak / 20).div_ceil(PAGE) + 4;
    let setup = Setup { pages, lanes, stock: 0, ..Setup::default() };
    let mut world = World::new(&driver, &setup);
    let mut places: Vec<Option<larder::allocator::Block<larder::cuda::Cuda>>> =
        (0..trace.slots()).map(|_| None).collect();
    for (at, op) in trace.ops().iter().take(ops).enumerate() {
        match *op {
            Op::Alloc { slot, bytes, stream, .. } if bytes > 0 => {
                world
                    .alloc(usize::from(stream), scaled(bytes))
                    .unwrap_or_else(|error| panic!("operation {at}: {error}"));
                places[slot as usize] = world.held.pop().map(|held| held.block);
            }
            Op::Free { slot } => places[slot as usize] = None,
            _ => {}
        }
        if at % 3 == 0 {
            driver.step_any(at as u64);
        }
    }
    let stats = world.allocator.total_stats();
    println!("{ops} operations on {lanes} streams: peak held {peak}, device {}, {} moved", pages * PAGE, stats.moved);
    assert!(stats.reserved.peak <= pages * PAGE);
    world.sound(&"the trace");
    drop(places);
    world.end(&"the trace");
}
