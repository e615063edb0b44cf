//! Many threads on one allocator: made here and dropped there, while others trim, look, change limits and reclaim.
//!
//! What each block holds is checked when it is dropped; every reading of the figures must be of one instant.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::{Rng, runs};
use larder::backend::sim::{Lag, SimConfig};
use larder::units::{KIB, MIB};
use larder::{AllocError, Allocator, Block, Config, Host, Memory, PoolConfig, Stats};

fn assert_one_instant(stats: &Stats) {
    let chain = [stats.requested.current, stats.live.current, stats.active.current, stats.reserved.current];
    assert!(chain.is_sorted(), "requested, live, active, reserved: {chain:?}");
    assert_eq!(stats.active.current, stats.live.current + stats.pending.current);
    for gauge in [stats.requested, stats.live, stats.active, stats.reserved, stats.blocks] {
        assert!(gauge.current <= gauge.peak, "{gauge:?}");
    }
}

/// Runs `work` on several threads with a seed each, and beside them one that looks and one that meddles, until all are done. The
/// limit changes all the time, between half of `limit` and all of it.
fn with_company<M: Memory>(allocator: &Allocator<M>, limit: u64, work: impl Fn(u64) + Send + Sync) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|seed| {
                scope.spawn({
                    let work = &work;
                    move || work(seed)
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(SeqCst) {
                assert_one_instant(&allocator.stats());
                let snapshot = allocator.snapshot();
                assert_one_instant(&snapshot.stats);
                allocator.check().unwrap();
            }
        });
        scope.spawn(|| {
            let (mut random, began) = (Rng::new(99), Instant::now());
            while !done.load(SeqCst) {
                let mut config = allocator.config().limit(random.range(limit / 2, limit));
                config.slack = 1.0 + random.below(100) as f64 / 100.0;
                config.decay = Some(Duration::from_millis(1));
                allocator.set_config(config).unwrap();
                allocator.trim(random.below(8 * MIB)).unwrap();
                allocator.tick(began.elapsed()).unwrap();
                allocator.reset_peak();
                thread::yield_now();
            }
        });
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        done.store(true, SeqCst);
    });
}

#[test]
fn host_blocks_keep_what_is_written_whoever_drops_them() {
    let limit = 48 * MIB;
    let allocator = Allocator::host(Config::default().limit(limit)).unwrap();
    // What nobody needs and the hook gives back, on the thread that is short of memory.
    let cache = Arc::new(Mutex::new(Vec::<Block<Host>>::new()));
    let given = Arc::new(AtomicU64::new(0));
    let hook = allocator.on_shortage({
        let (cache, given) = (cache.clone(), given.clone());
        move |_| {
            let blocks = std::mem::take(&mut *cache.lock().unwrap());
            given.fetch_add(blocks.len() as u64, SeqCst);
        }
    });
    let rounds = runs(2_000, 40_000);
    with_company(&allocator, limit, |seed| {
        let (to, from) = mpsc::channel::<(Block<Host>, u8)>();
        let dropper = thread::spawn(move || {
            for (block, byte) in from {
                assert!(block.as_bytes().iter().all(|b| *b == byte), "a block was given twice");
            }
        });
        let mut random = Rng::new(seed);
        for round in 0..rounds {
            let is_cached = random.one_in(8);
            let bytes = if is_cached { 512 * KIB } else { 1 + random.skewed(256 * 1024) };
            let byte = (round ^ seed) as u8;
            match allocator.alloc(bytes) {
                Ok(block) if is_cached => cache.lock().unwrap().push(block),
                Ok(mut block) => {
                    block.as_mut_bytes().fill(byte);
                    to.send((block, byte)).unwrap();
                }
                Err(AllocError::OutOfMemory(_)) => thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
        drop(to);
        dropper.join().unwrap();
    });
    drop(hook);
    assert!(given.load(SeqCst) > 0, "the hook had nothing to give");
    allocator.check().unwrap();
    let left = std::mem::take(&mut *cache.lock().unwrap());
    assert_eq!(allocator.stats().blocks.current, left.len() as u64);
    assert_eq!(allocator.stats().live.current, left.len() as u64 * 512 * KIB);
    drop(left);
    allocator.check().unwrap();
    assert_one_instant(&allocator.stats());
    assert_eq!((allocator.stats().blocks.current, allocator.stats().live.current), (0, 0));
    allocator.purge().unwrap();
    assert_eq!(allocator.total_stats().reserved.current, 0);
}

#[test]
fn streams_pools_and_hooks_at_once() {
    let device = SimConfig { capacity: 64 * MIB, page: MIB, lag: Lag::Events(3), ..SimConfig::default() };
    let (allocator, sim) = Allocator::simulated(device, Config::default()).unwrap();
    let pools = [allocator.clone(), allocator.pool("other", PoolConfig::default()).unwrap()];
    let asked = Arc::new(AtomicU64::new(0));
    let hook = allocator.on_shortage({
        let asked = asked.clone();
        move |_| {
            asked.fetch_add(1, SeqCst);
        }
    });
    let rounds = runs(2_000, 30_000);
    with_company(&allocator, 64 * MIB, |seed| {
        let mut random = Rng::new(seed);
        let mine = &pools[seed as usize % 2];
        let streams = [allocator.stream().unwrap(), allocator.stream().unwrap()];
        let mut held = Vec::new();
        for _ in 0..rounds {
            sim.advance(1);
            if random.below(2) == 0 || held.len() > 40 {
                if !held.is_empty() {
                    held.swap_remove(random.below(held.len() as u64) as usize);
                }
                continue;
            }
            let request = mine.request(1 + random.skewed(4 * MIB)).on(random.pick(&[&streams[0], &streams[1]]));
            match request.deadline(Instant::now() + Duration::from_micros(random.below(50))).alloc() {
                Ok(block) => {
                    if random.one_in(4) {
                        block.used_on(&streams[1]);
                    }
                    held.push(block);
                }
                Err(AllocError::OutOfMemory(_)) => held.clear(),
                Err(error) => panic!("{error}"),
            }
        }
    });
    drop(hook);
    assert_eq!(allocator.total_stats().blocks.current, 0);
    assert_eq!(sim.violations(), []);
    allocator.purge().unwrap();
    assert_eq!((allocator.total_stats().reserved.current, sim.counters().used), (0, 0));
}

#[test]
fn who_waits_is_served_in_the_order_of_arrival() {
    let device = SimConfig { capacity: 8 * MIB, page: MIB, lag: Lag::Events(0), ..SimConfig::default() };
    let (allocator, _sim) = Allocator::simulated(device, Config::default()).unwrap();
    let whole = allocator.alloc(8 * MIB).unwrap();
    let (tell, order) = mpsc::channel();
    thread::scope(|scope| {
        for number in 0..3 {
            let (allocator, tell) = (allocator.clone(), tell.clone());
            let misses = allocator.stats().misses;
            let watched = allocator.clone();
            scope.spawn(move || {
                let block =
                    allocator.request(8 * MIB).deadline(Instant::now() + Duration::from_secs(60)).alloc().unwrap();
                tell.send(number).unwrap();
                thread::sleep(Duration::from_millis(5));
                drop(block);
            });
            // The next one comes when this one has missed and had time to queue up.
            while watched.stats().misses == misses {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(50));
        }
        drop(whole);
        assert_eq!([order.recv().unwrap(), order.recv().unwrap(), order.recv().unwrap()], [0, 1, 2]);
    });
}

#[test]
fn a_deadline_that_passes_is_an_error_with_its_line_in_the_trail() {
    let (allocator, _sim) =
        Allocator::simulated(SimConfig { capacity: 8 * MIB, ..SimConfig::default() }, Config::default()).unwrap();
    let _whole = allocator.alloc(8 * MIB).unwrap();
    let error = allocator.request(MIB).deadline(Instant::now() + Duration::from_millis(20)).alloc().unwrap_err();
    let report = error.report().expect("out of memory");
    assert_eq!(report.trail.last().unwrap().rung, larder::snapshot::Rung::Deadline);
}
