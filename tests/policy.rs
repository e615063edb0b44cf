//! Limits, guarantees, watermarks, decay, hooks and reports: each as a small story with exact figures.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use larder::backend::sim::{Lag, Sim, SimConfig, SimMemory};
use larder::policy::{OnLimit, ReportLevel};
use larder::snapshot::{Rung, Verdict};
use larder::units::MIB;
use larder::{AllocError, Allocator, Block, Config, PoolConfig, Simulated};

fn device(capacity: u64, config: Config) -> (Allocator<Simulated>, Sim) {
    let device = SimConfig { capacity, page: MIB, lag: Lag::Events(0), ..SimConfig::default() };
    Allocator::simulated(device, config).unwrap()
}

fn rungs(error: &AllocError) -> Vec<Rung> {
    error.report().expect("out of memory").trail.iter().map(|step| step.rung).collect()
}

#[test]
fn the_hard_limit_holds_and_says_so() {
    let (allocator, _sim) = device(64 * MIB, Config::default().limit(10 * MIB));
    let held = allocator.request(8 * MIB).tag("weights").alloc().unwrap();
    let error = allocator.request(4 * MIB).tag("cache").alloc().unwrap_err();
    let report = error.report().unwrap();
    assert_eq!((report.verdict(), report.limit), (Verdict::LimitReached, Some(10 * MIB)));
    assert_eq!(report.request.requested, 4 * MIB);
    assert_eq!((report.holders[0].tag.as_str(), report.holders[0].live), ("weights", 8 * MIB));
    assert!(report.trail.iter().any(|step| step.rung == Rung::Grow) && report.snapshot.is_none());
    assert_eq!(allocator.alloc(11 * MIB).unwrap_err().report().unwrap().verdict(), Verdict::LargerThanLimit);
    // The limit can be changed while running.
    allocator.set_config(Config::default().limit(12 * MIB)).unwrap();
    drop(allocator.alloc(4 * MIB).unwrap());
    drop(held);
    assert!(allocator.total_stats().reserved.peak <= 12 * MIB);
}

#[test]
fn at_the_soft_limit_hooks_come_before_growth() {
    let (allocator, _sim) = device(64 * MIB, Config { soft_limit: Some(8 * MIB), ..Config::default() });
    let cache: Arc<Mutex<Vec<Block<Simulated>>>> = Arc::default();
    for _ in 0..8 {
        cache.lock().unwrap().push(allocator.alloc(MIB).unwrap());
    }
    let hook = allocator.on_shortage({
        let cache = cache.clone();
        move |shortage| {
            assert_eq!(shortage.bytes, 2 * MIB);
            cache.lock().unwrap().truncate(4);
        }
    });
    let _first = allocator.alloc(2 * MIB).unwrap();
    assert_eq!((cache.lock().unwrap().len(), allocator.stats().reserved.current), (4, 8 * MIB));
    drop(hook);
    // Nobody to ask: the soft limit gives way, the hard one would not.
    let _second = allocator.alloc(8 * MIB).unwrap();
    assert!(allocator.stats().reserved.current > 8 * MIB);
}

#[test]
fn a_limit_fails_fast_when_the_config_says_so() {
    let config = Config { on_limit: OnLimit::FailFast, ..Config::default().limit(8 * MIB) };
    let (allocator, sim) = device(64 * MIB, config);
    let asked = Arc::new(AtomicU32::new(0));
    let _hook = allocator.on_shortage({
        let asked = asked.clone();
        move |_| {
            asked.fetch_add(1, SeqCst);
        }
    });
    let _held = allocator.alloc(7 * MIB).unwrap();
    let before = sim.counters().calls;
    for _ in 0..1000 {
        let error = allocator.alloc(2 * MIB).unwrap_err();
        assert_eq!(rungs(&error), [Rung::Grow]);
    }
    assert_eq!((sim.counters().calls, asked.load(SeqCst)), (before, 0), "no call of the device, no hook");
    assert_eq!(allocator.stats().failures, 1000);
}

#[test]
fn idle_memory_of_another_pool_serves_and_its_guarantee_does_not() {
    let (one, _sim) = device(64 * MIB, Config::default().limit(16 * MIB));
    let two = one.pool("two", PoolConfig { guarantee: 4 * MIB, ..PoolConfig::default() }).unwrap();
    let error = one.alloc(14 * MIB).unwrap_err();
    assert_eq!(error.report().unwrap().limit, Some(12 * MIB), "4 MiB are promised to the other pool");
    drop(one.alloc(12 * MIB).unwrap());
    assert_eq!((one.stats().idle(), two.stats().reserved.current), (12 * MIB, 0));
    // What pool one holds without using it goes over, as far as it is needed.
    let block = two.alloc(10 * MIB).unwrap();
    assert_eq!((two.stats().live.current, one.total_stats().reserved.current), (10 * MIB, 16 * MIB));
    assert_eq!(one.stats().reserved.current, 6 * MIB);
    drop(block);
    // A pool's own limit binds it alone.
    two.set_pool_config(PoolConfig { limit: Some(2 * MIB), ..PoolConfig::default() }).unwrap();
    two.purge().unwrap();
    assert_eq!(two.alloc(3 * MIB).unwrap_err().report().unwrap().limit, Some(2 * MIB));
    drop(one.alloc(16 * MIB).unwrap());
    one.check().unwrap();
}

#[test]
fn the_tick_brings_reserved_from_the_high_to_the_low_watermark() {
    let config = Config { high_watermark: 0.75, low_watermark: 0.5, ..Config::default().limit(16 * MIB) };
    let (allocator, _sim) = device(64 * MIB, config);
    let keep = allocator.alloc(2 * MIB).unwrap();
    drop(allocator.alloc(10 * MIB).unwrap());
    assert_eq!(allocator.tick(Duration::from_secs(1)).unwrap(), 0, "12 of 16 is not above the mark");
    drop((allocator.alloc(10 * MIB).unwrap(), allocator.alloc(3 * MIB).unwrap()));
    assert_eq!(allocator.tick(Duration::from_secs(2)).unwrap(), 7 * MIB);
    assert_eq!(allocator.stats().reserved.current, 8 * MIB);
    drop(keep);
}

#[test]
fn decay_returns_what_was_not_used_for_its_time() {
    let (allocator, _sim) = device(64 * MIB, Config { decay: Some(Duration::from_secs(10)), ..Config::default() });
    let seconds = |n| allocator.tick(Duration::from_secs(n)).unwrap();
    assert_eq!(seconds(0), 0);
    drop(allocator.alloc(8 * MIB).unwrap());
    assert_eq!((seconds(5), seconds(10)), (0, 0), "used within the last ten seconds");
    drop(allocator.alloc(3 * MIB).unwrap());
    assert_eq!((seconds(15), seconds(20)), (0, 5 * MIB), "3 of 8 MiB were used");
    assert_eq!(seconds(30), 3 * MIB);
    assert_eq!(allocator.stats().reserved.current, 0);
}

#[test]
fn trim_goes_down_to_what_is_asked_and_purge_to_nothing() {
    for memory in [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged, SimMemory::Segments] {
        let device = SimConfig { memory, page: MIB, lag: Lag::Events(1_000_000), ..SimConfig::default() };
        let (allocator, sim) = Allocator::simulated(device, Config { segment_min: MIB, ..Config::default() }).unwrap();
        let blocks: Vec<_> = (0..16).map(|_| allocator.alloc(MIB).unwrap()).collect();
        drop(blocks);
        assert_eq!(allocator.trim(4 * MIB).unwrap(), 0, "{memory:?}: the work on it is unfinished");
        sim.advance(1_000_000);
        allocator.trim(u64::MAX).unwrap();
        sim.advance(1_000_000);
        assert_eq!(allocator.trim(4 * MIB).unwrap(), 12 * MIB, "{memory:?}");
        drop(allocator.alloc(2 * MIB).unwrap());
        allocator.purge().unwrap();
        assert_eq!((allocator.stats().reserved.current, sim.counters().used), (0, 0), "{memory:?}");
    }
}

#[test]
fn full_reports_come_no_more_often_than_asked() {
    let report = ReportLevel::Full { at_most_per_second: 1 };
    let (allocator, _sim) = device(64 * MIB, Config { report, ..Config::default().limit(4 * MIB) });
    let _held = allocator.alloc(4 * MIB).unwrap();
    let full = (0..20).filter(|_| allocator.alloc(MIB).unwrap_err().report().unwrap().snapshot.is_some()).count();
    assert!((1..=3).contains(&full), "{full} of 20 within a moment");
}

#[test]
fn a_hook_that_allocates_is_not_called_by_itself() {
    let (allocator, _sim) = device(8 * MIB, Config::default());
    let (calls, inner) = (Arc::new(AtomicU32::new(0)), allocator.clone());
    let _hook = allocator.on_shortage({
        let calls = calls.clone();
        move |_| {
            calls.fetch_add(1, SeqCst);
            assert!(inner.alloc(9 * MIB).is_err());
        }
    });
    assert!(allocator.alloc(9 * MIB).is_err());
    assert_eq!(calls.load(SeqCst), 1);
}

#[test]
fn figures_of_the_free_and_of_our_own_memory() {
    let (allocator, _sim) = device(64 * MIB, Config::default());
    assert_eq!(allocator.fragmentation(), 0.0);
    let blocks: Vec<_> = (0..8).map(|_| allocator.alloc(MIB / 2).unwrap()).collect();
    let mut blocks: Vec<_> = blocks.into_iter().map(Some).collect();
    (0..8).step_by(2).for_each(|at| blocks[at] = None);
    assert_eq!(allocator.fragmentation(), 0.75, "one of four equal holes");
    drop(blocks);
    assert_eq!(allocator.fragmentation(), 0.0);
    let many: Vec<_> = (0..20_000).map(|_| allocator.alloc(512).unwrap()).collect();
    let own = allocator.own_memory() as f64 / many.len() as f64;
    assert!(own <= 96.0, "{own} bytes of records for each live block");
}

#[test]
fn the_host_may_wait_for_pages_to_move_when_the_config_says_so() {
    // Twice eight blocks of a page and a half, every second one freed: whole pages are free, but not in one piece.
    let reserved = |wait_to_move| {
        let device = SimConfig { memory: SimMemory::Remap, page: MIB, lag: Lag::Never, ..SimConfig::default() };
        let config = Config { wait_to_move, slack: 1.0, ..Config::default() };
        let (allocator, sim) = Allocator::simulated(device, config).unwrap();
        let mut blocks: Vec<_> = (0..16).map(|_| Some(allocator.alloc(3 * MIB).unwrap())).collect();
        blocks.iter_mut().step_by(2).for_each(|block| *block = None);
        let _large = allocator.alloc(20 * MIB).unwrap();
        assert_eq!(sim.violations(), []);
        (allocator.stats().reserved.peak, allocator.stats().host_waits > 0)
    };
    assert_eq!(reserved(false), (68 * MIB, false), "what is unfinished cannot move: memory grows");
    assert_eq!(reserved(true), (48 * MIB, true));
}

#[test]
fn addresses_stay_bounded_even_when_no_work_ever_ends_by_itself() {
    let device = SimConfig { page: MIB, lag: Lag::Never, ..SimConfig::default() };
    let (allocator, sim) = Allocator::simulated(device, Config::default().slack(1.0)).unwrap();
    for _ in 0..200 {
        let mut blocks: Vec<_> = (0..16).map(|_| Some(allocator.alloc(3 * MIB).unwrap())).collect();
        blocks.iter_mut().step_by(2).for_each(|block| *block = None);
        let _large = allocator.alloc(20 * MIB).unwrap();
    }
    let stats = allocator.stats();
    assert!(stats.addresses_peak <= 10 * stats.live.peak, "{} times", stats.addresses_peak / stats.live.peak);
    assert!(stats.host_waits > 0 && sim.violations().is_empty());
}

#[test]
fn a_report_names_the_largest_of_many_holders() {
    let (allocator, _sim) = device(64 * MIB, Config::default().limit(MIB));
    let held: Vec<_> =
        (0..300).map(|at| allocator.request(512 * (1 + at % 3)).tag(&format!("tag {at}")).alloc().unwrap()).collect();
    let big = allocator.request(64 * 1024).tag("big").alloc().unwrap();
    let error = allocator.alloc(2 * MIB).unwrap_err();
    let holders = &error.report().unwrap().holders;
    let named: Vec<_> = holders.iter().map(|holder| (holder.tag.as_str(), holder.live)).collect();
    assert_eq!(named, [("big", 65536), ("tag 2", 1536), ("tag 5", 1536), ("tag 8", 1536), ("tag 11", 1536)]);
    assert_eq!(allocator.snapshot().pools[0].tags.len(), 301);
    drop((held, big));
}

#[test]
fn a_full_device_takes_idle_pages_of_others_although_the_own_limit_leaves_less_than_the_request() {
    let (one, _sim) = device(16 * MIB, Config::default());
    let two = one.pool("two", PoolConfig { limit: Some(12 * MIB), ..PoolConfig::default() }).unwrap();
    drop(one.alloc(8 * MIB).unwrap());
    let mut blocks: Vec<_> = (0..8).map(|_| two.alloc(MIB).unwrap()).collect();
    blocks.truncate(2);
    // Six pages are idle in the pool, two more are needed: its limit allows them, the device has none, pool one has eight.
    let _large = two.alloc(8 * MIB).unwrap();
    assert_eq!((two.stats().reserved.current, one.total_stats().reserved.current), (10 * MIB, 14 * MIB));
}

#[test]
fn a_report_blames_the_limit_that_forbids() {
    let (one, _sim) = device(256 * MIB, Config::default().limit(100 * MIB));
    let two = one.pool("two", PoolConfig { limit: Some(25 * MIB), ..PoolConfig::default() }).unwrap();
    let _held = two.alloc(10 * MIB).unwrap();
    drop(one.alloc(90 * MIB).unwrap());
    let error = two.alloc(20 * MIB).unwrap_err();
    let report = error.report().unwrap();
    assert_eq!((report.verdict(), report.limit, report.live_elsewhere), (Verdict::LimitReached, Some(25 * MIB), 0));
    assert_eq!(report.remedy(), "free 5 MiB, or raise the limit by as much");

    // What another pool keeps within its guarantee is in the way as if it were live.
    let (one, _sim) = device(256 * MIB, Config::default().limit(100 * MIB));
    let two = one.pool("two", PoolConfig { guarantee: 50 * MIB, ..PoolConfig::default() }).unwrap();
    drop(two.alloc(50 * MIB).unwrap());
    let _held = one.alloc(40 * MIB).unwrap();
    let error = one.alloc(20 * MIB).unwrap_err();
    assert_eq!(error.report().unwrap().verdict(), Verdict::LimitReached);
    assert_eq!(error.report().unwrap().remedy(), "free 10 MiB, or raise the limit by as much");
}

#[test]
fn a_small_segment_is_made_where_the_limit_leaves_no_usual_one() {
    let host = Allocator::host_system(Config::default().limit(3 * MIB)).unwrap();
    let _held = (host.alloc(2 * MIB).unwrap(), host.alloc(MIB).unwrap());
    assert_eq!(host.stats().reserved.current, 3 * MIB);
}

#[test]
fn fail_fast_and_a_past_deadline_wait_for_nothing() {
    let device = SimConfig { page: MIB, lag: Lag::Never, ..SimConfig::default() };
    for on_limit in [OnLimit::FailFast, OnLimit::Climb] {
        let config = Config { on_limit, ..Config::default().slack(1.0).limit(28 * MIB) };
        let (allocator, sim) = Allocator::simulated(device, config).unwrap();
        for _ in 0..100 {
            let mut blocks: Vec<_> = (0..8).map(|_| allocator.alloc(MIB).ok()).collect();
            blocks.iter_mut().step_by(2).for_each(|block| *block = None);
            let large = allocator.request(4 * MIB).deadline(std::time::Instant::now()).alloc();
            if let Err(error) = large {
                assert!(error.report().is_some(), "{error}");
            }
        }
        assert_eq!(sim.counters().waits_forced, 0, "{on_limit:?}");
    }
}

#[cfg(feature = "serde")]
#[test]
fn what_a_written_config_leaves_out_is_the_default() {
    use larder::policy::DebugConfig;

    let config: Config = serde_json::from_str(r#"{ "debug": { "guard": 128 } }"#).unwrap();
    assert_eq!(config, Config::default().debug(DebugConfig { guard: 128, ..DebugConfig::default() }));
}
