//! Real programs, and models of them: every block is worked on from its allocation to its end, with so little memory that pages
//! must move.

use larder::Config;
use larder::backend::sim::{Lag, SimConfig, SimMemory};
use larder::trace::{Op, Trace, models};
use larder::units::align_up;

use crate::world::{Held, World};

pub fn resnet() -> Trace {
    Trace::load(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/06_resnet50_server.gz")).expect("a trace")
}

/// The most bytes that the first operations hold at once, in whole quanta.
fn peak(trace: &Trace, ops: usize) -> u64 {
    let mut sizes = vec![0; trace.slots()];
    let (mut live, mut peak) = (0u64, 0);
    for op in trace.ops().iter().take(ops) {
        match *op {
            Op::Alloc { slot, bytes, .. } => {
                sizes[slot as usize] = align_up(bytes, 512).expect("a size");
                live += sizes[slot as usize];
                peak = peak.max(live);
            }
            Op::Free { slot } => live -= sizes[slot as usize],
            _ => {}
        }
    }
    peak
}

struct Stage {
    memory: SimMemory,
    lag: Lag,
    /// Capacity as a multiple of what the program holds at most.
    room: f64,
    page: u64,
}

fn play(name: &str, trace: &Trace, ops: usize, stage: &Stage) {
    let Stage { memory, lag, room, page } = *stage;
    let ops = ops.min(trace.ops().len());
    let story = format!("{name}, {ops} operations, {memory:?}, {lag:?}, room {room}, page {page}");
    let capacity = align_up((peak(trace, ops) as f64 * room) as u64, page).expect("a capacity") + 2 * page;
    let device = SimConfig { capacity, memory, lag, page, ..SimConfig::default() };
    let config = Config { slack: 1.01, page: Some(page), ..Config::default() };
    let lanes = trace.streams().max().map_or(1, |last| u64::from(last) + 1);
    let mut world = World::new(device, config, lanes);
    let mut slots: Vec<Option<Held>> = (0..trace.slots()).map(|_| None).collect();
    for (at, op) in trace.ops().iter().take(ops).enumerate() {
        world.sim.advance(1);
        match *op {
            Op::Alloc { bytes: 0, .. } => {}
            Op::Alloc { slot, bytes, stream, align_log2, .. } => {
                let held = world.alloc(usize::from(stream), world.pools[0], bytes, 1 << align_log2);
                let held = held.unwrap_or_else(|| panic!("{story}: out of memory at operation {at}"));
                world.work_whole(&held);
                slots[slot as usize] = Some(held);
            }
            Op::Use { slot, stream } => {
                if let Some(held) = &mut slots[slot as usize] {
                    world.share(held, usize::from(stream));
                    world.work_whole(held);
                }
            }
            Op::Free { slot } => {
                if let Some(held) = slots[slot as usize].take() {
                    world.work_whole(&held);
                }
            }
            Op::Mark { .. } => {}
        }
        if at % 1024 == 0 {
            world.unbroken(&story);
        }
    }
    let stats = world.allocator.stats();
    println!("{story}: moved {} waits {}, host {}", stats.moved, stats.stream_waits, stats.host_waits);
    world.live.extend(slots.into_iter().flatten());
    world.end(&story);
}

const MIB: u64 = 1 << 20;

#[test]
fn a_server_of_images_on_two_streams_breaks_no_rule() {
    let trace = resnet().spread(2);
    let ops = if crate::full() { usize::MAX } else { 14_000 };
    for lag in [Lag::Events(0), Lag::Events(30), Lag::Events(1000), Lag::Never] {
        play("06 x2", &trace, ops, &Stage { memory: SimMemory::Alias, lag, room: 1.03, page: 2 * MIB });
    }
    let stage = Stage { memory: SimMemory::Remap, lag: Lag::Events(30), room: 1.05, page: 2 * MIB };
    play("06 x2", &trace, ops, &stage);
    let stage = Stage { memory: SimMemory::Segments, lag: Lag::Events(1000), room: 1.5, page: 2 * MIB };
    play("06 x2", &trace, ops, &stage);
}

#[test]
fn a_server_of_language_on_several_streams_breaks_no_rule() {
    // A longer run has more pages that are partly live.
    let (requests, room) = if crate::full() { (40, 1.06) } else { (4, 1.02) };
    for streams in [2, 4, 8] {
        let trace = models::serving(11, requests, streams);
        for lag in [Lag::Events(30), Lag::Events(1000), Lag::Never] {
            let stage = Stage { memory: SimMemory::Alias, lag, room, page: 2 * MIB };
            play(&format!("serving on {streams}"), &trace, usize::MAX, &stage);
        }
        let stage = Stage { memory: SimMemory::Segments, lag: Lag::Events(100), room: 1.3, page: 2 * MIB };
        play(&format!("serving on {streams}"), &trace, usize::MAX, &stage);
    }
}
