//! Open recordings in schedules that a test decides: a recording that opens, or closes, while others make and drop blocks and pools
//! come. What was dropped while it was open is not had by others before it is closed.

use std::sync::Arc;

use shuttle::scheduler::RandomScheduler;
use shuttle::thread;

use super::OpenRecording;
use crate::allocator::Allocator;
use crate::backend::sim::{Lag, SimConfig, SimMemory, SimStreams};
use crate::ids::{PoolId, StreamId};
use crate::policy::{Config, PoolConfig};
use crate::units::KIB;

const PAGE: u64 = 4 * KIB;

fn a_recording_and_others(memory: SimMemory) {
    let device = SimConfig {
        capacity: 16 * PAGE,
        page: PAGE,
        memory,
        lag: Lag::Events(1),
        streams: SimStreams::One,
        ..SimConfig::default()
    };
    let config = Config { segment_min: 2 * PAGE, poll_every: 1, ..Config::default() };
    let (allocator, sim) = Allocator::simulated(device, config).unwrap();
    let owners = Arc::new(std::sync::atomic::AtomicU64::new(1));
    let mut threads = Vec::new();
    for pages in [2, 3] {
        let (allocator, sim, owners) = (allocator.clone(), sim.clone(), owners.clone());
        threads.push(thread::spawn(move || {
            for _ in 0..2 {
                let recording = OpenRecording::new(&allocator.core).unwrap();
                let youngest = PoolId(allocator.core.pools().count() as u16 - 1);
                let Ok(block) = allocator.request(pages * PAGE).pool(youngest).alloc() else { return };
                let owner = owners.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let span = block.span().unwrap();
                drop(block);
                // Its use reaches the queue when it is submitted: behind the drop, and before any other owner's.
                sim.work(StreamId(0), owner, span).unwrap();
                drop(recording);
            }
        }));
    }
    threads.push(thread::spawn({
        let allocator = allocator.clone();
        move || {
            let pool = allocator.pool("meanwhile", PoolConfig::default()).unwrap();
            drop(pool.alloc(PAGE));
            allocator.trim(0).unwrap();
            drop(allocator.alloc(5 * PAGE));
        }
    }));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(sim.violations(), []);
    allocator.check().unwrap();
    allocator.purge().unwrap();
    assert_eq!((allocator.total_stats().reserved.current, sim.counters().used), (0, 0));
}

#[test]
fn recordings_hold_what_is_dropped_while_they_are_open() {
    for memory in [SimMemory::Alias, SimMemory::Segments] {
        let mut config = shuttle::Config::new();
        config.stack_size = 1 << 18;
        config.silence_warnings = true;
        shuttle::Runner::new(RandomScheduler::new_from_seed(7, 2_000), config)
            .run(move || a_recording_and_others(memory));
    }
}
