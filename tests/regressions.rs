//! Defects that were there once, each kept as a short story: the same steps, the right outcome.

mod common;

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

#[cfg(unix)]
use larder::backend::host::MmapConfig;
use larder::backend::sim::{Call, Lag, Sim, SimConfig, SimMemory};
use larder::backend::{Backend, BackendError};
use larder::policy::{ConfigError, OnLimit};
use larder::snapshot::{Rung, Verdict};
use larder::trace::{Event, Reader, Writer, write_history};
use larder::units::{GIB, KIB, MIB, TIB};
use larder::{AllocError, Allocator, Any, Block, Config, Host, OomReport, PoolConfig, Simulated};

const MEMORIES: [SimMemory; 4] = [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged, SimMemory::Segments];

/// A device with pages of 2 MiB whose work is complete at once.
fn device(memory: SimMemory, capacity: u64, config: Config) -> (Allocator<Simulated>, Sim) {
    Allocator::simulated(SimConfig { capacity, memory, ..SimConfig::default() }, config).unwrap()
}

/// As [`device`], but work is complete only when somebody waits for it.
fn slow_device(memory: SimMemory, capacity: u64, config: Config) -> (Allocator<Simulated>, Sim) {
    Allocator::simulated(SimConfig { capacity, memory, lag: Lag::Never, ..SimConfig::default() }, config).unwrap()
}

fn contradiction(low: &'static str, low_value: f64, high: &'static str, high_value: f64) -> ConfigError {
    ConfigError::Contradiction { low, low_value, high, high_value }
}

fn limit_of_pool(limit: u64) -> PoolConfig {
    PoolConfig { limit: Some(limit), ..PoolConfig::default() }
}

fn guarantee(guarantee: u64) -> PoolConfig {
    PoolConfig { guarantee, ..PoolConfig::default() }
}

#[track_caller]
fn report<T: std::fmt::Debug>(result: Result<T, AllocError>) -> OomReport {
    let error = result.expect_err("more than there is");
    error.report().unwrap_or_else(|| panic!("not out of memory: {error}")).clone()
}

#[track_caller]
fn sound(allocator: &Allocator<Simulated>, sim: &Sim) {
    assert_eq!((allocator.check(), sim.check(), sim.violations()), (Ok(()), Ok(()), vec![]));
}

// ---- the quantum ----------------------------------------------------------------------------------------------------

#[test]
fn a_quantum_above_the_page_is_refused() {
    for (quantum, page) in [(64 * KIB, 4096), (MIB, 4096), (8 * KIB, 4 * KIB)] {
        let wanted = AllocError::Config(contradiction("quantum", quantum as f64, "page", page as f64));
        let config = Config { quantum: Some(quantum), ..Config::default() };
        for memory in [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged] {
            let device = SimConfig { page, memory, ..SimConfig::default() };
            assert_eq!(Allocator::simulated(device, config.clone()).unwrap_err(), wanted);
            // As the device's own advice it is refused too.
            let device = SimConfig { quantum, ..device };
            assert_eq!(Allocator::simulated(device, Config::default()).unwrap_err(), wanted);
        }
        #[cfg(unix)]
        {
            let mmap = MmapConfig { page, ..MmapConfig::default() };
            assert_eq!(Allocator::host_mmap(mmap, config).unwrap_err(), wanted);
        }
    }
}

#[test]
fn a_quantum_of_a_page_passes_check_after_trim_and_moves() {
    let device = SimConfig { page: 64 * KIB, ..SimConfig::default() };
    let config = Config { quantum: Some(64 * KIB), ..Config::default() };
    let (allocator, sim) = Allocator::simulated(device, config).unwrap();
    let (large, small) = (allocator.alloc(256 * KIB).unwrap(), allocator.alloc(100).unwrap());
    assert_eq!((large.size(), small.size()), (256 * KIB, 64 * KIB));
    drop(large);
    assert_eq!(allocator.trim(256 * KIB - 4096).unwrap(), 64 * KIB, "a page at least");
    sound(&allocator, &sim);
    let again = allocator.alloc(256 * KIB).unwrap();
    assert_eq!(allocator.stats().reserved.current, 320 * KIB);
    drop((small, again));
    allocator.purge().unwrap();
    sound(&allocator, &sim);
}

#[test]
fn a_quantum_above_the_alignment_of_the_memory_is_refused() {
    let most = Allocator::host_system(Config::default()).unwrap().capabilities().base_align;
    for segment_min in [4096, 2 * MIB, 2 * MIB + 4096] {
        let config = |quantum| Config { quantum: Some(quantum), segment_min, ..Config::default() };
        let wanted = contradiction("quantum", (2 * most) as f64, "alignment of the memory", most as f64);
        assert_eq!(Allocator::host_system(config(2 * most)).unwrap_err(), AllocError::Config(wanted));
        // Up to it every block has the alignment that it promises.
        let host = Allocator::host_system(config(most)).unwrap();
        let blocks: Vec<_> = (0..32).map(|_| host.request(100).align(most).alloc().unwrap()).collect();
        assert!(blocks.iter().all(|block| block.address() % most == 0 && block.size() == most));
        host.check().unwrap();
    }
}

#[test]
fn segments_are_whole_quanta() {
    let config = Config { quantum: Some(64 * KIB), segment_min: 2 * MIB + 4096, ..Config::default() };
    let (allocator, sim) = device(SimMemory::Segments, TIB, config);
    let first = allocator.alloc(64).unwrap();
    assert_eq!((first.size(), allocator.stats().reserved.current), (64 * KIB, 2 * MIB + 64 * KIB));
    // Segments with room for more are cut from a part of the crest, which is no multiple of anything.
    let many: Vec<_> = (0..200).map(|at| allocator.alloc(MIB + at * 64 * KIB).unwrap()).collect();
    assert_eq!(allocator.stats().reserved.current % (64 * KIB), 0);
    sound(&allocator, &sim);
    drop((first, many));
    allocator.purge().unwrap();
    assert_eq!(allocator.stats().reserved.current, 0);
}

// ---- soft limits and hooks ------------------------------------------------------------------------------------------

#[test]
fn what_a_hook_allocates_itself_passes_the_soft_limit() {
    for bytes in [4 * MIB, 12 * MIB] {
        let config = Config { limit: Some(64 * MIB), soft_limit: Some(8 * MIB), ..Config::default() };
        let (allocator, _sim) = device(SimMemory::Alias, GIB, config);
        let (inner, said) = (allocator.clone(), Arc::new(Mutex::new(Vec::new())));
        let _hook = allocator.on_shortage({
            let said = said.clone();
            move |_| said.lock().unwrap().push(inner.alloc(bytes).map(|block| block.len()))
        });
        let block = allocator.alloc(16 * MIB).unwrap();
        assert_eq!((block.len(), &*said.lock().unwrap()), (16 * MIB, &vec![Ok(bytes)]));
    }
}

#[test]
fn failing_fast_the_soft_limit_is_no_hard_limit() {
    let fast = OnLimit::FailFast;
    let config = Config { limit: Some(64 * MIB), soft_limit: Some(8 * MIB), on_limit: fast, ..Config::default() };
    let (allocator, _sim) = device(SimMemory::Alias, GIB, config);
    let asked = Arc::new(AtomicU32::new(0));
    let _hook = allocator.on_shortage({
        let asked = asked.clone();
        move |_| {
            asked.fetch_add(1, SeqCst);
        }
    });
    let _held = allocator.alloc(16 * MIB).unwrap();
    let asked_for_growth = asked.load(SeqCst);
    assert_eq!(report(allocator.alloc(64 * MIB)).verdict(), Verdict::LimitReached);
    assert_eq!(asked.load(SeqCst), asked_for_growth, "at the hard limit nobody is asked");
}

#[test]
fn a_hook_may_own_the_guard_of_another() {
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || {
        let (allocator, _sim) = device(SimMemory::Alias, 4 * MIB, Config::default());
        let asked = Arc::new(AtomicU32::new(0));
        let counted = |asked: &Arc<AtomicU32>| {
            let asked = asked.clone();
            move || asked.fetch_add(1, SeqCst)
        };
        let (one, two) = (counted(&asked), counted(&asked));
        let inner = allocator.on_shortage(move |_| _ = one());
        let outer = allocator.on_shortage(move |_| {
            let _owned = &inner;
            _ = two();
        });
        let before = allocator.alloc(8 * MIB).is_err();
        drop(outer);
        let after = allocator.alloc(8 * MIB).is_err();
        done.send((before, after, asked.load(SeqCst))).unwrap();
    });
    // Both are asked once; then both are gone.
    assert_eq!(finished.recv_timeout(Duration::from_secs(20)), Ok((true, true, 2)));
}

// ---- threads --------------------------------------------------------------------------------------------------------

#[test]
fn care_for_an_idle_pool_does_not_race_with_its_use() {
    let (allocator, sim) = device(SimMemory::Alias, GIB, Config { poll_every: 1, ..Config::default() });
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..10_000).for_each(|_| drop(allocator.alloc(512).unwrap())));
        }
    });
    assert_eq!((allocator.stats().blocks.allocated, allocator.stats().live.current), (20_000, 0));
    sound(&allocator, &sim);
}

#[test]
fn zeros_and_growth_of_one_pool_at_once_both_finish() {
    let host = Allocator::host(Config::default()).unwrap();
    let keep = host.alloc(MIB).unwrap();
    std::thread::scope(|scope| {
        let zeros = scope.spawn(|| host.alloc_zeroed(96 * MIB).unwrap());
        let grown: Vec<_> = (0..32).map(|_| host.alloc(4 * MIB).unwrap()).collect();
        let zeros = zeros.join().unwrap();
        assert_eq!(host.stats().live.current, 225 * MIB);
        assert!(zeros.as_slice::<u8>().unwrap().iter().step_by(4093).all(|byte| *byte == 0));
        drop(grown);
    });
    drop(keep);
    host.check().unwrap();
}

#[test]
fn a_request_with_a_deadline_sees_a_raised_limit() {
    let (allocator, _sim) = device(SimMemory::Alias, GIB, Config::default().limit(4 * MIB));
    let _held = allocator.alloc(4 * MIB).unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| allocator.request(4 * MIB).deadline(start + Duration::from_secs(60)).alloc());
        std::thread::sleep(Duration::from_millis(30));
        allocator.set_config(Config::default().limit(64 * MIB)).unwrap();
        assert_eq!(waiting.join().unwrap().map(|block| block.len()), Ok(4 * MIB));
    });
    assert!(start.elapsed() < Duration::from_secs(30), "served when the limit was raised, not at the deadline");
}

// ---- pools, guarantees and limits -----------------------------------------------------------------------------------

#[test]
fn guarantees_of_any_size_add_up() {
    for memory in MEMORIES {
        let (allocator, _sim) = device(memory, GIB, Config::default().limit(64 * MIB));
        let pools: Vec<_> = ["p", "q"].map(|name| allocator.pool(name, guarantee(u64::MAX)).unwrap()).into();
        let refused = report(allocator.alloc(MIB));
        assert_eq!((refused.limit, refused.verdict()), (Some(0), Verdict::LargerThanLimit), "all is promised");
        pools[0].set_pool_config(guarantee(48 * MIB)).unwrap();
        pools[1].set_pool_config(guarantee(8 * MIB)).unwrap();
        assert_eq!(report(allocator.alloc(9 * MIB)).limit, Some(8 * MIB));
        assert_eq!(allocator.alloc(8 * MIB).unwrap().len(), 8 * MIB);
    }
}

#[test]
fn a_guarantee_above_the_limit_of_its_pool_is_refused() {
    let (allocator, _sim) = device(SimMemory::Alias, GIB, Config::default().limit(32 * MIB));
    let config = PoolConfig { guarantee: 16 * MIB, ..limit_of_pool(8 * MIB) };
    let wanted = contradiction("guarantee", (16 * MIB) as f64, "limit", (8 * MIB) as f64);
    assert_eq!(allocator.pool("p", config.clone()).unwrap_err(), AllocError::Config(wanted.clone()));
    assert_eq!(allocator.snapshot().pools.len(), 1, "no pool was made");
    let pool = allocator.pool("p", limit_of_pool(16 * MIB)).unwrap();
    assert_eq!(pool.set_pool_config(config), Err(wanted));
    assert_eq!(report(pool.alloc(20 * MIB)).limit, Some(16 * MIB), "nothing was changed");
}

#[test]
fn idle_memory_under_a_guarantee_is_not_taken() {
    for memory in MEMORIES {
        // With a common limit, and where only the device is full.
        for (capacity, limit) in [(GIB, Some(32 * MIB)), (32 * MIB, None)] {
            let (allocator, _sim) = device(memory, capacity, Config { limit, ..Config::default() });
            let pool = allocator.pool("p", guarantee(16 * MIB)).unwrap();
            drop(pool.alloc(16 * MIB).unwrap());
            // All of it, and all but a few bytes: a page or a segment that is partly promised stays.
            for promise in [16 * MIB, 16 * MIB - 100] {
                pool.set_pool_config(guarantee(promise)).unwrap();
                report(allocator.alloc(20 * MIB));
                assert_eq!(pool.stats().reserved.current, 16 * MIB, "{memory:?} {limit:?}");
            }
            // What lies idle above it is: as much as the limit lacks, or all of it where only the device knows.
            pool.set_pool_config(guarantee(8 * MIB)).unwrap();
            let taken = allocator.alloc(20 * MIB).map(|block| block.len());
            let left = pool.stats().reserved.current;
            match (memory, limit) {
                // The one segment is more than may be taken.
                (SimMemory::Segments, _) => assert_eq!((taken.is_ok(), left), (false, 16 * MIB), "{limit:?}"),
                (_, Some(_)) => assert_eq!((taken, left), (Ok(20 * MIB), 12 * MIB), "{memory:?}"),
                (_, None) => assert_eq!((taken, left), (Ok(20 * MIB), 8 * MIB), "{memory:?}"),
            }
        }
    }
}

#[test]
fn a_request_that_its_own_pool_forbids_takes_nothing_from_others() {
    for memory in MEMORIES {
        let (allocator, sim) = device(memory, GIB, Config::default().limit(128 * MIB));
        let pool = allocator.pool("p", limit_of_pool(4 * MIB)).unwrap();
        drop(allocator.alloc(32 * MIB).unwrap());
        assert_eq!(report(pool.alloc(16 * MIB)).limit, Some(4 * MIB));
        assert_eq!(allocator.stats().reserved.current, 32 * MIB, "{memory:?}");
        let counters = sim.counters();
        assert_eq!(counters.succeeded(Call::Release) + counters.succeeded(Call::Unback), 0, "{memory:?}");
    }
}

#[test]
fn a_request_above_the_limit_keeps_the_cache() {
    for memory in MEMORIES {
        for on_limit in [OnLimit::Climb, OnLimit::FailFast] {
            let (allocator, sim) = device(memory, GIB, Config { on_limit, ..Config::default().limit(64 * MIB) });
            drop(allocator.alloc(32 * MIB).unwrap());
            assert_eq!(report(allocator.alloc(65 * MIB)).verdict(), Verdict::LargerThanLimit);
            let held = allocator.alloc(8 * MIB).unwrap();
            assert_eq!(report(allocator.alloc(60 * MIB)).verdict(), Verdict::LimitReached);
            assert_eq!(allocator.stats().reserved.current, 32 * MIB, "{memory:?} {on_limit:?}");
            let counters = sim.counters();
            assert_eq!(counters.succeeded(Call::Release) + counters.succeeded(Call::Unback), 0, "{memory:?}");
            drop(held);
        }
    }
}

#[test]
fn the_verdict_counts_what_other_pools_hold() {
    let (allocator, _sim) = device(SimMemory::Alias, GIB, Config::default().limit(100 * MIB));
    let pool = allocator.pool("p", PoolConfig::default()).unwrap();
    let held = pool.alloc(90 * MIB).unwrap();
    let refused = report(allocator.alloc(50 * MIB));
    assert_eq!((refused.verdict(), refused.live_elsewhere), (Verdict::LimitReached, 90 * MIB));
    assert_eq!(refused.remedy(), "free 40 MiB, or raise the limit by as much");
    drop(held);
    allocator.purge().unwrap();

    // The pool's own limit is in the way: what others hold does not count.
    pool.set_pool_config(limit_of_pool(20 * MIB)).unwrap();
    let _held = (allocator.alloc(50 * MIB).unwrap(), pool.alloc(16 * MIB).unwrap());
    let refused = report(pool.alloc(8 * MIB));
    assert_eq!((refused.verdict(), refused.live_elsewhere), (Verdict::LimitReached, 0));
    assert_eq!(refused.remedy(), "free 4 MiB, or raise the limit by as much");
}

#[test]
fn the_verdict_of_a_full_device_counts_what_it_still_has() {
    let (allocator, _sim) = device(SimMemory::Alias, 100 * MIB, Config::default());
    let pool = allocator.pool("p", PoolConfig::default()).unwrap();
    let _held = pool.alloc(90 * MIB).unwrap();
    let refused = report(allocator.alloc(50 * MIB));
    assert_eq!((refused.verdict(), refused.room), (Verdict::DeviceFull, 10 * MIB));
    assert_eq!(refused.remedy(), "free 40 MiB first, here or elsewhere on the device");
}

#[test]
fn no_remedy_is_to_free_nothing() {
    for memory in MEMORIES {
        for limit in [None, Some(64 * MIB), Some(100 * MIB)] {
            for (own, other, foreign) in [(0, 60, 0), (60, 0, 0), (30, 30, 0), (10, 10, 40), (0, 0, 60)] {
                let (allocator, sim) = device(memory, 100 * MIB, Config { limit, ..Config::default() });
                let pool = allocator.pool("p", PoolConfig::default()).unwrap();
                sim.set_foreign(foreign * MIB);
                let _held = (allocator.alloc(own * MIB).unwrap(), pool.alloc(other * MIB).unwrap());
                for bytes in [41 * MIB, 50 * MIB, 63 * MIB, 90 * MIB] {
                    let Err(AllocError::OutOfMemory(refused)) = allocator.alloc(bytes) else { continue };
                    let remedy = refused.remedy();
                    assert!(!remedy.contains("free 0 B"), "{memory:?} {limit:?}\n{refused}");
                }
            }
        }
    }
}

// ---- moving pages ---------------------------------------------------------------------------------------------------

#[test]
fn a_crowded_pool_uses_what_is_partly_live() {
    let page = 2 * MIB;
    for memory in [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged] {
        let (allocator, sim) = device(memory, GIB, Config::default());
        let (large, small) = (allocator.alloc(10 * page).unwrap(), allocator.alloc(page / 2).unwrap());
        drop(large);
        allocator.purge().unwrap();
        assert_eq!(allocator.stats().reserved.current, page);
        allocator.set_config(Config::default().limit(2 * page)).unwrap();
        let served = allocator.alloc(page + page / 2).unwrap();
        assert_eq!(allocator.stats().reserved.current, 2 * page);
        sound(&allocator, &sim);
        drop((small, served));
    }
}

#[test]
fn without_alias_a_failed_unmapping_after_a_move_loses_nothing() {
    let page = 2 * MIB;
    let config = Config { alias: false, ..Config::default().slack(1.0) };
    let (allocator, sim) = device(SimMemory::Alias, 8 * page, config);
    let mut held: Vec<_> = (0..8).map(|_| Some(allocator.alloc(page).unwrap())).collect();
    [1, 3, 5].into_iter().for_each(|at| held[at] = None);
    let planted = BackendError::Driver { call: "unback", reason: "planted".into(), code: 1 };
    sim.fail_at(Call::Unback, 1, planted.clone());
    let served = allocator.alloc(3 * page).unwrap();
    assert_eq!((allocator.stats().moved, allocator.stats().reserved.current), (3 * page, 8 * page));
    sound(&allocator, &sim);
    drop((served, held[7].take(), held[0].take()));
    // The next request that climbs is told, once.
    assert_eq!(allocator.alloc(5 * page).map(|block| block.len()), Err(AllocError::Backend(planted)));
    assert_eq!(allocator.alloc(5 * page).map(|block| block.len()), Ok(5 * page));
    sound(&allocator, &sim);
    held.clear();
    assert_eq!(allocator.purge().unwrap(), 8 * page);
    assert_eq!(sim.counters().used, 0);
    sound(&allocator, &sim);
}

// ---- streams --------------------------------------------------------------------------------------------------------

#[test]
fn a_stream_of_another_allocator_orders_nothing() {
    let page = 2 * MIB;
    let (other, _other_sim) = slow_device(SimMemory::Alias, GIB, Config::default());
    let foreign = other.stream().unwrap();
    for follows_own in [false, true] {
        let (allocator, sim) = slow_device(SimMemory::Alias, page, Config::default());
        let (one, two) = (allocator.stream().unwrap(), allocator.stream().unwrap());
        assert_eq!(foreign.id(), one.id(), "the same number on another device");
        let first = allocator.alloc_on(&one, page).unwrap();
        sim.work(one.id(), 1, first.span().unwrap()).unwrap();
        first.used_on(&foreign);
        drop(first);
        two.follows(&foreign);
        if follows_own {
            let event = sim.record(one.id()).unwrap();
            sim.stream_wait(two.id(), event).unwrap();
            sim.forget(event);
            two.follows(&one);
        }
        let second = allocator.alloc_on(&two, page).unwrap();
        assert_eq!(sim.work(two.id(), 2, second.span().unwrap()), Ok(()));
        assert_eq!(allocator.stats().stream_waits, u64::from(!follows_own));
        sound(&allocator, &sim);
    }
}

#[test]
fn a_small_request_to_an_idle_pool_waits_for_no_other_stream() {
    for busy in [false, true] {
        let (allocator, sim) = slow_device(SimMemory::Alias, GIB, Config::default());
        let (own, other) = (allocator.default_stream(), allocator.stream().unwrap());
        let theirs = allocator.alloc_on(&other, 2 * MIB).unwrap();
        let [hole, ours] = [0, 1].map(|_| allocator.alloc_on(&own, 2 * MIB).unwrap());
        drop(hole);
        allocator.trim(0).unwrap();
        sim.complete_all();
        assert_eq!(allocator.trim(0).unwrap(), 2 * MIB);
        sim.work(other.id(), 1, theirs.span().unwrap()).unwrap();
        let keep = busy.then(|| allocator.alloc_on(&own, 4096).unwrap());
        drop((theirs, ours));
        let small = allocator.alloc_on(&own, 512).unwrap();
        sim.work(own.id(), 2, small.span().unwrap()).unwrap();
        assert_eq!((allocator.stats().stream_waits, allocator.stats().host_waits), (0, 0), "busy: {busy}");
        sound(&allocator, &sim);
        drop(keep);
    }
}

// ---- segments -------------------------------------------------------------------------------------------------------

#[test]
fn trim_takes_the_smallest_segment_that_suffices() {
    let (allocator, sim) = device(SimMemory::Segments, GIB, Config::default().slack(1.0));
    let blocks = [256 * MIB, 4 * MIB, 16 * MIB].map(|bytes| allocator.alloc(bytes).unwrap());
    assert_eq!(allocator.stats().reserved.current, 276 * MIB);
    drop(blocks);
    assert_eq!(allocator.trim(272 * MIB).unwrap(), 4 * MIB);
    assert_eq!(allocator.trim(262 * MIB).unwrap(), 16 * MIB);
    assert_eq!(allocator.trim(256 * MIB).unwrap(), 0);
    assert_eq!(allocator.trim(1).unwrap(), 256 * MIB);
    sound(&allocator, &sim);
}

#[test]
fn failing_fast_segments_grow_without_a_wait() {
    let config = Config { on_limit: OnLimit::FailFast, ..Config::default() };
    let (allocator, sim) = slow_device(SimMemory::Segments, GIB, config);
    let stream = allocator.stream().unwrap();
    let first = allocator.alloc_on(&stream, 4 * MIB).unwrap();
    sim.work(stream.id(), 1, first.span().unwrap()).unwrap();
    drop(first);
    let _second = allocator.alloc(64 * MIB).unwrap();
    assert_eq!((allocator.stats().host_waits, sim.counters().waits_forced), (0, 0));
    assert_eq!(allocator.stats().reserved.current, 68 * MIB);
}

#[test]
fn segments_whose_work_is_complete_go_back_without_a_wait() {
    let (allocator, sim) = slow_device(SimMemory::Segments, GIB, Config::default().slack(1.0));
    let stream = allocator.stream().unwrap();
    let [empty, pending, live] = [4 * MIB, MIB, MIB].map(|bytes| allocator.alloc_on(&stream, bytes).unwrap());
    assert_eq!(allocator.stats().reserved.current, 6 * MIB);
    drop(empty);
    allocator.trim(u64::MAX).unwrap();
    sim.complete_all();
    allocator.trim(u64::MAX).unwrap();
    // Unfinished work on a segment that is partly live is no reason to wait: it could not go back anyway.
    sim.work(stream.id(), 1, pending.span().unwrap()).unwrap();
    drop(pending);
    let large = allocator.alloc(64 * MIB).unwrap();
    assert_eq!((allocator.stats().host_waits, sim.counters().waits_forced), (0, 0));
    assert_eq!(allocator.stats().reserved.current, 66 * MIB);
    drop((large, live));
}

// ---- configs --------------------------------------------------------------------------------------------------------

#[test]
#[cfg(unix)]
fn the_config_says_which_page_is_in_force() {
    let config = Config { page: Some(64 * KIB), ..Config::default() };
    for (host, page) in [
        (Allocator::host_mmap(MmapConfig::default(), config.clone()).unwrap(), 2 * MIB),
        (Allocator::host(config).unwrap(), 64 * KIB),
        (Allocator::host(Config::default()).unwrap(), 2 * MIB),
    ] {
        assert_eq!((host.capabilities().page, host.config().page), (Some(page), Some(page)));
        host.set_config(Config { page: Some(4096), ..Config::default() }).unwrap();
        assert_eq!(host.config().page, Some(page), "it stays");
    }
}

#[test]
fn a_new_config_without_a_limit_keeps_the_limit_of_the_host() {
    for host in [Allocator::host(Config::default()).unwrap(), Allocator::host_system(Config::default()).unwrap()] {
        let limit = host.config().limit;
        assert!(limit.is_some());
        host.set_config(Config::default().limit(64 * MIB)).unwrap();
        assert_eq!(host.config().limit, Some(64 * MIB));
        host.set_config(Config::default().slack(1.25)).unwrap();
        assert_eq!((host.config().limit, host.config().slack), (limit, 1.25));
    }
}

/// Whatever device is described: an error that says what is wrong, or an allocator with typed answers and figures that
/// agree.
#[test]
fn no_description_of_a_device_panics() {
    let pages = [0, 1, 3, 4096, 2 * MIB, 1 << 36, 1 << 63, u64::MAX];
    let quanta = [0, 1, 512, 513, MIB, 1 << 40, u64::MAX];
    let regions = [0, 1, 4096, GIB, u64::MAX];
    let (mut made, mut refused) = (0, 0);
    for memory in MEMORIES {
        for page in pages {
            for quantum in quanta {
                for region_max in regions {
                    for capacity in [0, GIB] {
                        let device = SimConfig { capacity, memory, page, quantum, region_max, ..SimConfig::default() };
                        match Allocator::simulated(device, Config::default()) {
                            Ok((allocator, sim)) => {
                                made += 1;
                                ask_for_extremes(&allocator, &sim, &device);
                            }
                            Err(AllocError::Config(_)) => refused += 1,
                            Err(error) => panic!("{device:?}: {error}"),
                        }
                    }
                }
            }
        }
    }
    assert!(made > 100 && refused > 100, "{made} devices made, {refused} refused");
}

fn ask_for_extremes(allocator: &Allocator<Simulated>, sim: &Sim, device: &SimConfig) {
    let huge = [1 << 62, (1 << 63) - 1, 1 << 63, (1 << 63) + 1, u64::MAX - (1 << 37), u64::MAX - 4 * MIB, u64::MAX];
    for bytes in [1, MIB, 3 * GIB].into_iter().chain(huge) {
        match allocator.alloc(bytes) {
            Ok(block) => assert!(bytes <= MIB && block.len() == bytes, "{device:?}: {bytes} bytes"),
            Err(AllocError::OutOfMemory(_) | AllocError::TooLarge { .. }) => {}
            // No addresses, or no segment so large.
            Err(AllocError::Backend(BackendError::OutOfMemory { .. } | BackendError::TooLarge { .. })) => {}
            Err(error) => panic!("{device:?}: {bytes} bytes: {error}"),
        }
        if bytes >= 1 << 62 {
            let max = allocator.capabilities().region_max;
            assert_eq!(allocator.alloc(bytes).unwrap_err(), AllocError::TooLarge { requested: bytes, max });
        }
    }
    assert_eq!((allocator.check(), sim.check(), sim.violations()), (Ok(()), Ok(()), vec![]), "{device:?}");
}

#[test]
fn an_impossible_page_in_the_config_is_named() {
    for page in [0, 1, 3, 2048, 4097, 1 << 37, u64::MAX] {
        let wanted = ConfigError::NotPowerOfTwo { key: "page", value: page, min: 4096, max: 1 << 36 };
        let config = Config { page: Some(page), ..Config::default() };
        assert_eq!(Allocator::simulated(SimConfig::default(), config).unwrap_err(), AllocError::Config(wanted));
    }
    let device = SimConfig { quantum: 0, ..SimConfig::default() };
    let wanted = ConfigError::NotPowerOfTwo { key: "quantum", value: 1, min: 16, max: MIB };
    assert_eq!(Allocator::simulated(device, Config::default()).unwrap_err(), AllocError::Config(wanted));
}

#[test]
fn a_huge_request_at_small_pages_is_refused_at_once() {
    let (allocator, sim) =
        Allocator::simulated(SimConfig { page: 4096, ..SimConfig::default() }, Config::default()).unwrap();
    let start = Instant::now();
    let refused = report(allocator.alloc(2 * TIB));
    assert_eq!((refused.verdict(), refused.room), (Verdict::DeviceFull, TIB));
    assert!(refused.trail.iter().any(|step| step.rung == Rung::Grow));
    // 512 million pages were not looked at one by one.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!((sim.counters().used, allocator.stats().reserved.current), (0, 0));
}

// ---- many pools, recordings, kinds of memory ------------------------------------------------------------------------

#[test]
#[cfg(unix)]
fn two_hundred_pools_find_addresses_on_the_host() {
    for limit in [Some(GIB), None] {
        let mmap = MmapConfig { region_max: Some(16 * TIB), ..MmapConfig::default() };
        let host = Allocator::host_mmap(mmap, Config { limit, ..Config::default() }).unwrap();
        let pools: Vec<_> = (0..200).map(|at| host.pool(&format!("p{at}"), PoolConfig::default()).unwrap()).collect();
        let blocks: Vec<_> = pools.iter().map(|pool| pool.alloc(4 * MIB).unwrap()).collect();
        assert_eq!((blocks.len(), host.total_stats().reserved.current), (200, 800 * MIB));
    }
}

#[test]
fn tags_of_any_characters_survive_a_trace_of_the_history() {
    let tags = ["kv cache", "a\nb", "a=b", "x\ty", "100 %", "a%20b", "größe", "#: ", "\r\n"];
    let host = Allocator::host(Config::default().history(100)).unwrap();
    for tag in tags {
        let _tag = larder::tag(tag);
        drop(host.alloc(100).unwrap());
    }
    let text = write_history(&host.snapshot(), Writer::plain(Vec::new())).unwrap();
    let read: Vec<_> = Reader::new(text.as_slice())
        .filter_map(|event| match event.unwrap() {
            Event::Alloc { tag, .. } => tag,
            _ => None,
        })
        .collect();
    assert!(read.iter().map(|tag| &**tag).eq(tags), "{read:?}");
}

#[test]
fn allocators_are_cast_to_their_own_kind_only() {
    let host = Allocator::host(Config::default()).unwrap();
    let (device, _sim) = device(SimMemory::Alias, GIB, Config::default());
    assert!(host.downcast::<Host>().is_some() && host.downcast::<Any>().is_some());
    assert!(host.downcast::<Simulated>().is_none());
    let (any_host, any_device) = (host.erase(), device.erase());
    assert!(any_host.downcast::<Simulated>().is_none() && any_device.downcast::<Host>().is_none());
    assert!(any_host.downcast::<Any>().is_some() && any_device.downcast::<Any>().is_some());
    // The same allocator, and the same pool of it.
    let pool = host.pool("p", PoolConfig::default()).unwrap();
    let again = pool.erase().downcast::<Host>().unwrap();
    let block = again.alloc(100).unwrap();
    assert_eq!((again.pool_id(), pool.stats().blocks.current), (pool.pool_id(), 1));
    drop(block);
    assert_eq!(any_device.downcast::<Simulated>().unwrap().capabilities(), device.capabilities());
}

#[test]
fn blocks_are_cast_to_their_own_kind_only() {
    let host = Allocator::host(Config::default()).unwrap();
    let block = host.alloc(100).unwrap();
    let (id, address) = (block.id(), block.address());
    let block: Block<Any> = block.erase();
    // Of another kind: it comes back as it was.
    let block = block.downcast::<Simulated>().unwrap_err();
    let mut block = block.downcast::<Any>().unwrap().downcast::<Host>().unwrap();
    block.as_mut_slice::<u8>().unwrap().fill(7);
    assert_eq!((block.id(), block.address(), block.len(), host.stats().blocks.current), (id, address, 100, 1));
    let block = block.downcast::<Simulated>().unwrap_err();
    drop(block);
    assert_eq!((host.stats().blocks.current, host.stats().blocks.freed), (0, 1));
    // No bytes are of every kind.
    let empty = host.alloc(0).unwrap().erase();
    assert!(empty.downcast::<Simulated>().unwrap().downcast::<Host>().unwrap().is_empty());
}

// ---- segments -------------------------------------------------------------------------------------------------------

#[test]
fn the_last_of_a_device_is_had_though_it_is_less_than_a_segment() {
    let config = Config { segment_min: 64 * MIB, ..Config::default() };
    let (allocator, sim) = device(SimMemory::Segments, 100 * MIB, config);
    let first = allocator.alloc(64 * MIB).unwrap();
    let (small, large) = (allocator.alloc(4096).unwrap(), allocator.alloc(30 * MIB).unwrap());
    let left = report(allocator.alloc(30 * MIB));
    assert_eq!(left.verdict(), Verdict::DeviceFull, "{left}");
    drop((first, small, large));
    sound(&allocator, &sim);
}

#[test]
fn what_a_limit_forbids_beside_what_is_live_waits_for_nothing() {
    for memory in MEMORIES {
        let (allocator, sim) = slow_device(memory, GIB, Config::default().limit(256 * MIB));
        let stream = allocator.stream().unwrap();
        drop(allocator.alloc_on(&stream, 64 * MIB).unwrap());
        let report = report(allocator.alloc(768 * MIB));
        assert_eq!(
            (report.verdict(), allocator.stats().host_waits),
            (Verdict::LargerThanLimit, 0),
            "{memory:?}: {report}"
        );
        sound(&allocator, &sim);
    }
}

#[test]
fn a_loss_that_was_seen_refuses_what_is_cached_too() {
    let (allocator, sim) = device(SimMemory::Alias, GIB, Config::default());
    drop(allocator.alloc(8 * MIB).unwrap());
    sim.lose("unplugged");
    assert!(allocator.alloc(64 * MIB).is_err());
    assert!(matches!(allocator.alloc(4096), Err(AllocError::Backend(BackendError::Lost { .. }))));
}
