//! Failures that users of other allocators reported, played here: the same sequence, the right outcome.

mod common;

use std::time::Duration;

use common::world::World;
use common::{Rng, runs};
use larder::allocator::AllocError;
use larder::backend::sim::{Call, Lag, SimConfig, SimMemory};
use larder::policy::Config;
use larder::units::{GIB, KIB, MIB};

fn device(capacity: u64, memory: SimMemory, lag: Lag) -> SimConfig {
    SimConfig { capacity, memory, lag, ..SimConfig::default() }
}

/// PyTorch #189504: a block used on a second stream is freed; its events are pending when memory runs out, they complete during
/// the wait, and out of memory is raised without another look at the pool, where the block now fits. The identical call succeeds
/// afterwards. Here the first call does, on every kind of memory, also when only the host can wait.
#[test]
fn a_block_whose_events_complete_during_the_wait_is_found() {
    for memory in [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged, SimMemory::Segments] {
        for host_ordered in [false, true] {
            let device = SimConfig { host_ordered, ..device(64 * MIB, memory, Lag::Never) };
            let mut world = World::new(device, Config::default(), 2);
            world.alloc(0, 48 * MIB).unwrap();
            world.use_on(0, 1);
            world.drop_at(0);
            assert_eq!(world.allocator.stats().live.current, 0);
            world.alloc(0, 48 * MIB).unwrap_or_else(|error| panic!("{memory:?}: {error}"));
            let stats = world.allocator.stats();
            assert_eq!((stats.reserved.peak, stats.failures), (48 * MIB, 0));
            // A wait on the device is enough unless the CPU touches the memory.
            assert_eq!((stats.stream_waits > 0, stats.host_waits > 0), (!host_ordered, host_ordered), "{memory:?}");
            world.check();
            world.end();
        }
    }
}

/// The same when the pending block is only a part of what is needed, and too much is live for both halves.
#[test]
fn only_what_is_pending_is_waited_for() {
    let mut world = World::new(device(64 * MIB, SimMemory::Alias, Lag::Never), Config::default(), 3);
    (0..8).for_each(|at| world.alloc(at % 3, 8 * MIB).unwrap());
    for at in [6, 4, 2, 0] {
        world.drop_at(at);
    }
    world.alloc(0, 32 * MIB).unwrap();
    let stats = world.allocator.stats();
    assert_eq!((stats.host_waits, stats.failures, stats.reserved.current), (0, 0, 64 * MIB));
    let error = world.alloc(0, 8 * MIB).unwrap_err();
    assert!(matches!(error, AllocError::OutOfMemory(_)), "nothing is free any more: {error}");
    world.end();
}

/// PyTorch #193400 and #123548: with 266 MiB live, a small live block fences a large free area, and each round of growing and
/// shrinking adds to what is reserved: 14,060 MiB after 100 rounds. Here reserved stays within a tenth of the live peak.
#[test]
fn a_small_live_block_in_a_large_free_area_strands_nothing() {
    let mut peaks = Vec::new();
    for lag in [Lag::Events(0), Lag::Events(20), Lag::Never] {
        let world = World::new(device(64 * GIB, SimMemory::Alias, lag), Config::default(), 1);
        let mut fences: std::collections::VecDeque<_> = Default::default();
        let mut live_peak = 0;
        for round in 0..100u64 {
            // The area grows a little each time, so that the hole of the last round never fits.
            let area = world.allocator.alloc((128 + round % 7 * 2) * MIB).unwrap();
            fences.push_back(world.allocator.alloc(20 * KIB).unwrap());
            let second = world.allocator.alloc((110 + round % 5 * 2) * MIB).unwrap();
            world.sim.advance(3);
            live_peak = live_peak.max(world.allocator.stats().live.current);
            drop((area, second));
            if fences.len() > 8 {
                fences.pop_front();
            }
        }
        let stats = world.allocator.stats();
        assert!((240 * MIB..=290 * MIB).contains(&live_peak), "the story is of 266 MiB: {live_peak}");
        assert!(stats.reserved.peak <= live_peak + live_peak / 10, "{} over {live_peak}", stats.reserved.peak);
        assert_eq!(stats.host_waits, 0);
        peaks.push(stats.reserved.peak);
        drop(fences);
        world.allocator.purge().unwrap();
        assert_eq!(world.sim.counters().used, 0);
    }
    assert_eq!(peaks.len(), 3);
}

/// RMM #2039: what fits with one stream is out of memory with two, because each stream keeps its free memory to itself. Here the same
/// program passes within the same capacity on one, two and four streams, with no wait of the host.
#[test]
fn what_fits_with_one_stream_fits_with_more() {
    let steps = runs(600, 20_000);
    let run = |capacity: u64, streams: u64, seed: u64, odd: u64| -> Result<(u64, u64), AllocError> {
        let config = Config::default().slack(1.0);
        let mut world = World::new(device(capacity, SimMemory::Alias, Lag::Events(40)), config, 4);
        let mut rng = Rng::new(seed);
        for step in 0..steps {
            world.sim.advance(1);
            let count = world.held.len() as u64;
            if count > 24 || (count > 0 && rng.one_in(3)) {
                world.drop_at(rng.below(count) as usize);
            } else {
                let bytes = rng.range(1, 8) * 2 * MIB + rng.below(2) * odd;
                world.alloc((step % streams) as usize, bytes)?;
            }
        }
        let stats = world.allocator.stats();
        world.end();
        Ok((stats.reserved.peak, stats.host_waits))
    };
    // Whole pages: to the byte. Other sizes share pages in ways that differ: within a twentieth.
    for (odd, spare) in [(0, 0), (300 * KIB, 20)] {
        for seed in 0..4 {
            let (least, _) = run(GIB, 1, seed, odd).unwrap();
            let capacity = least + least.checked_div(spare).unwrap_or(0);
            for streams in [1, 2, 4] {
                let (reserved, host_waits) =
                    run(capacity, streams, seed, odd).unwrap_or_else(|error| panic!("{error}"));
                assert!(reserved <= capacity && host_waits == 0, "{streams}: {reserved} over {least}, {host_waits}");
            }
        }
    }
}

/// RMM #1957: a pool that grew to its maximum in pieces cannot serve one block of the maximum, because grown pieces never join.
/// Here it can, in whatever pieces and order they came and went, also while old work is unfinished.
#[test]
fn after_growth_to_the_maximum_one_block_of_the_maximum() {
    let max = 256 * MIB;
    for memory in [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged, SimMemory::Segments] {
        for lag in [Lag::Events(0), Lag::Events(1000), Lag::Never] {
            let mut world = World::new(device(GIB, memory, lag), Config::default().limit(max), 2);
            let mut rng = Rng::new(3);
            let mut left = max;
            while left > 0 {
                let size = (rng.range(1, 8) * 2 * MIB).min(left);
                world.alloc(rng.below(2) as usize, size).unwrap();
                left -= size;
            }
            assert_eq!(world.allocator.stats().reserved.current, max);
            assert!(world.alloc(0, 1).is_err(), "the maximum is reached");
            while !world.held.is_empty() {
                world.drop_at(rng.below(world.held.len() as u64) as usize);
            }
            world.alloc(0, max).unwrap_or_else(|error| panic!("{memory:?} {lag:?}: {error}"));
            assert_eq!(world.allocator.stats().reserved.peak, max);
            world.check();
            world.end();
        }
    }
}

/// RMM #1421: memory that was used once is kept for ever. Here trim returns to the floor exactly, and `tick` does in time.
#[test]
fn trim_returns_to_the_floor() {
    for memory in [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged] {
        let mut world = World::new(device(GIB, memory, Lag::Events(10)), Config::default(), 2);
        (0..32).for_each(|at| world.alloc(at % 2, 8 * MIB).unwrap());
        world.held.clear();
        assert_eq!(world.allocator.trim(64 * MIB).unwrap(), 0, "trim waits for no work");
        world.sim.advance(10);
        assert_eq!(world.allocator.trim(64 * MIB).unwrap(), 192 * MIB);
        assert_eq!((world.allocator.stats().reserved.current, world.sim.counters().used), (64 * MIB, 64 * MIB));
        assert_eq!(world.allocator.trim(64 * MIB).unwrap(), 0);
        assert_eq!(world.allocator.trim(0).unwrap(), 64 * MIB);
        world.end();
    }
}

/// After a partial free, whole pages go back and no others: one small block in each of 16 areas of eight pages keeps one page.
#[test]
fn what_is_free_goes_back_by_the_page() {
    for memory in [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged] {
        let mut world = World::new(device(GIB, memory, Lag::Events(0)), Config::default(), 1);
        let mut small = Vec::new();
        for _ in 0..16 {
            small.push(world.allocator.alloc(4 * KIB).unwrap());
            world.alloc(0, 16 * MIB - 4 * KIB).unwrap();
        }
        assert_eq!(world.allocator.stats().reserved.current, 256 * MIB);
        world.held.clear();
        assert_eq!(world.allocator.trim(0).unwrap(), 16 * 14 * MIB);
        let (stats, snapshot) = (world.allocator.stats(), world.allocator.snapshot());
        assert_eq!((stats.reserved.current, snapshot.pools[0].stranded), (32 * MIB, stats.idle()));
        // What went back can be had again at once, in one piece.
        world.alloc(0, 512 * MIB).unwrap();
        drop(small);
        world.check_device();
        world.end();
    }
}

/// What was not used for the time of decay goes back on `tick`; what is in use now and then stays.
#[test]
fn idle_memory_decays() {
    let config = Config { decay: Some(Duration::from_secs(10)), ..Config::default() };
    let mut world = World::new(device(GIB, SimMemory::Alias, Lag::Events(0)), config, 1);
    world.alloc(0, 200 * MIB).unwrap();
    world.held.clear();
    let mut returned = Vec::new();
    for second in 0..6 {
        world.alloc(0, 40 * MIB).unwrap();
        world.held.clear();
        returned.push(world.allocator.tick(Duration::from_secs(second * 10)).unwrap());
    }
    assert_eq!((returned.iter().sum::<u64>(), returned[0]), (160 * MIB, 0), "{returned:?}");
    assert_eq!(world.allocator.stats().reserved.current, 40 * MIB);
    world.end();
}

/// TensorFlow's and XLA's failing upstream: a device that refuses everything is asked a bounded number of times.
#[test]
fn a_device_that_refuses_everything_is_not_asked_for_ever() {
    for memory in [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged, SimMemory::Segments] {
        let mut world = World::new(device(GIB, memory, Lag::Events(0)), Config::default(), 1);
        for call in [Call::Reserve, Call::Back, Call::GrowSegment] {
            let error = larder::backend::BackendError::OutOfMemory { call: call.name(), requested: 1 };
            world.sim.fail_from(call, 1, error);
        }
        let error = world.alloc(0, 100 * MIB).unwrap_err();
        let asked: u64 = world.sim.counters().failures.iter().sum();
        assert!(matches!(error, AllocError::OutOfMemory(_) | AllocError::Backend(_)), "{error}");
        assert!((1..=80).contains(&asked), "{asked} calls");
        assert_eq!(world.allocator.stats().reserved, Default::default());
        world.sim.fail_clear();
        world.alloc(0, 100 * MIB).unwrap();
        world.end();
    }
}
