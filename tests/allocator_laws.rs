//! Laws of the allocator over the simulated device: whatever is done in whatever order, the figures are what a walk finds, the
//! device holds what is said to be reserved, no rule of the contract is broken, and everything goes back in the end.

mod common;
#[path = "allocator_laws/program.rs"]
mod program;

use common::world::World;
use common::{Rng, runs};
use larder::backend::sim::{Lag, SimConfig, SimMemory, SimStreams};
use larder::policy::Config;
use larder::units::MIB;
use larder::{Allocator, Simulated};
use program::{LAGS, MEMORIES, PAGE, Program, config, device};

#[test]
fn random_programs_keep_every_figure() {
    let mut failures = 0;
    for memory in MEMORIES {
        for lag in LAGS {
            for seed in 0..runs(3, 200) {
                failures += Program::new(device(memory, lag), config(), Rng::new(seed)).run(300, 3).out_of_memory;
            }
        }
    }
    assert!(failures > 100, "memory never ran out: {failures}");
}

#[test]
fn longer_programs_keep_every_figure() {
    for (seed, memory) in MEMORIES.into_iter().enumerate() {
        let device = SimConfig { capacity: 600 * PAGE, ..device(memory, Lag::Events(50)) };
        Program::new(device, config(), Rng::new(77 + seed as u64)).run(runs(3000, 60_000), 64);
    }
}

#[test]
fn failures_in_any_order_are_told_and_lose_nothing() {
    let (mut ordered, mut struck, mut told) = (0, 0, 0);
    for memory in MEMORIES {
        for lag in LAGS {
            for seed in 0..runs(2, 100) {
                let tally =
                    Program::new(device(memory, lag), config(), Rng::new(500 + seed)).with_faults(8).run(300, 3);
                ordered += tally.ordered;
                struck += tally.counters.failures.iter().sum::<u64>();
                told += tally.told.values().sum::<u64>();
            }
        }
    }
    assert!(ordered > 400 && struck > 400 && told > 40, "{ordered} ordered, {struck} calls failed, {told} told");
}

#[test]
fn without_alias_in_the_config_old_addresses_are_unmapped_at_once() {
    for lag in [Lag::Events(0), Lag::Events(50)] {
        for seed in 0..runs(4, 200) {
            Program::new(device(SimMemory::Alias, lag), Config { alias: false, ..config() }, Rng::new(seed))
                .run(300, 3);
        }
    }
}

#[test]
fn memory_that_the_cpu_touches_is_reused_only_when_complete() {
    for memory in MEMORIES {
        for lag in [Lag::Events(0), Lag::Events(30), Lag::Never] {
            for seed in 0..runs(2, 100) {
                let device = SimConfig { host_ordered: true, ..device(memory, lag) };
                Program::new(device, config(), Rng::new(seed)).run(250, 3);
            }
        }
    }
}

#[test]
fn a_device_without_streams_has_one_order() {
    for memory in MEMORIES {
        let mut world = World::new(SimConfig { streams: SimStreams::None, ..device(memory, Lag::Never) }, config(), 3);
        let mut rng = Rng::new(1);
        for _ in 0..600 {
            if world.held.len() > 20 || (!world.held.is_empty() && rng.one_in(3)) {
                world.drop_at(rng.below(world.held.len() as u64) as usize);
            } else {
                world.alloc(rng.below(3) as usize, rng.skewed(4 * PAGE)).unwrap();
            }
            world.check();
        }
        assert_eq!(world.allocator.total_stats().pending.peak, 0);
        world.end();
    }
}

#[test]
fn blocks_outlive_every_handle_and_go_on_any_thread() {
    for memory in MEMORIES {
        let mut world = World::new(device(memory, Lag::Events(50)), config(), 3);
        for at in 0..12 {
            world.alloc(at % 3, (at as u64 + 1) * 10_000).unwrap();
        }
        world.use_on(4, 2);
        let World { allocator, sim, streams, held, .. } = world;
        let mut blocks: Vec<_> = held.into_iter().map(|held| held.block).collect();
        drop((allocator, streams));
        let last = blocks.pop();
        let half = blocks.split_off(6);
        std::thread::scope(|scope| {
            scope.spawn(move || drop(half));
            scope.spawn(move || drop(blocks));
        });
        assert!(sim.counters().used > 0, "the last block keeps its memory");
        drop(last);
        let counters = sim.counters();
        assert_eq!((counters.used, counters.live_events, sim.violations()), (0, 0, vec![]));
    }
}

#[test]
fn blocks_cross_threads_while_others_allocate() {
    for memory in MEMORIES {
        let (allocator, sim) = Allocator::simulated(
            SimConfig { capacity: 64 * MIB, ..device(memory, Lag::Events(5)) },
            Config { segment_min: PAGE, ..Config::default() },
        )
        .unwrap();
        let (send, receive) = std::sync::mpsc::sync_channel::<larder::Block<Simulated>>(64);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (allocator, send) = (allocator.clone(), send.clone());
                scope.spawn(move || {
                    let stream = allocator.stream().unwrap();
                    let mut rng = Rng::new(thread);
                    for _ in 0..runs(400, 20_000) {
                        send.send(allocator.alloc_on(&stream, rng.skewed(4 * PAGE)).unwrap()).unwrap();
                    }
                });
            }
            drop(send);
            let sim = sim.clone();
            scope.spawn(move || {
                for block in receive {
                    sim.advance(1);
                    drop(block);
                }
            });
        });
        allocator.check().unwrap();
        allocator.purge().unwrap();
        assert_eq!((allocator.total_stats().reserved.current, sim.counters().used), (0, 0));
        assert_eq!((sim.check(), sim.violations()), (Ok(()), vec![]));
    }
}
