//! Threads under a scheduler that a test decides: which one goes on at each lock and each atomic is chosen at random, schedule by
//! schedule, and every schedule must end with sound structures and figures that add up.
//!
//! `.ci/shuttle` runs it; without its cfg there is nothing here. Shuttle interleaves; it has no weak memory, and takes every
//! atomic as sequentially consistent: an ordering that is too weak is for ThreadSanitizer (`tests/races.rs`), or for nobody, to
//! find.
#![cfg(larder_shuttle)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::runs;
use larder::backend::sim::{Lag, Sim, SimConfig, SimMemory};
use larder::stats::{Count, Meter};
use larder::units::KIB;
use larder::{AllocError, Allocator, Block, Config, Fallback, PoolConfig, Simulated, Stats, Stream};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::mpsc;
use shuttle::thread::{self, JoinHandle};
use shuttle::{Runner, sync::Mutex};

/// Plays a story in so many schedules of each kind: chance at every step, and chance with few changes of thread.
fn explore(story: impl Fn() + Send + Sync + Clone + 'static) {
    let schedules = runs(2_000, 40_000) as usize;
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 18;
    config.silence_warnings = true;
    Runner::new(RandomScheduler::new_from_seed(7, schedules), config.clone()).run(story.clone());
    Runner::new(PctScheduler::new_from_seed(7, 3, schedules), config).run(story);
}

fn join(threads: Vec<JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

const PAGE: u64 = 4 * KIB;
/// Longer than any schedule takes.
const HOUR: Duration = Duration::from_secs(3600);

/// An allocator over a small device, with an oracle that no bytes belong to two at a time. The oracle's own lock is std's: nothing
/// is interleaved while it is held.
#[derive(Clone)]
struct World {
    allocator: Allocator<Simulated>,
    sim: Sim,
    claims: Arc<std::sync::Mutex<Claims>>,
}

#[derive(Default)]
struct Claims {
    owners: u64,
    /// Ends of live blocks by their starts.
    live: BTreeMap<u64, u64>,
}

/// A block with its claim.
struct Claimed {
    block: Block<Simulated>,
    world: World,
}

impl World {
    fn new(memory: SimMemory, pages: u64, config: Config) -> World {
        let device =
            SimConfig { capacity: pages * PAGE, page: PAGE, memory, lag: Lag::Events(2), ..SimConfig::default() };
        let config = Config { segment_min: 2 * PAGE, poll_every: 2, wait_max: HOUR, ..config };
        let (allocator, sim) = Allocator::simulated(device, config).unwrap();
        World { allocator, sim, claims: Arc::default() }
    }

    /// Uses a fresh block on its stream and claims its bytes. An answer of no memory is one.
    fn take(&self, request: larder::Request<'_, Simulated>, stream: &Stream) -> Option<Claimed> {
        let block = match request.on(stream).alloc() {
            Ok(block) => block,
            Err(AllocError::OutOfMemory(_)) => return None,
            Err(error) => panic!("{error}"),
        };
        let (start, end) = (block.address(), block.address() + block.size());
        let owner = {
            let mut claims = self.claims.lock().unwrap();
            let before = claims.live.range(..end).next_back();
            assert!(before.is_none_or(|(_, other_end)| *other_end <= start), "bytes given twice at {start:#x}");
            claims.live.insert(start, end);
            claims.owners += 1;
            claims.owners
        };
        self.sim.work(stream.id(), owner, block.span().unwrap()).unwrap();
        Some(Claimed { block, world: self.clone() })
    }

    /// What must hold when every thread is done and every block is back.
    fn settled(&self) {
        self.allocator.check().unwrap();
        assert_eq!(held(&self.allocator.total_stats()), [0, 0, 0]);
        self.allocator.purge().unwrap();
        assert_eq!((self.allocator.total_stats().reserved.current, self.sim.counters().used), (0, 0));
        assert_eq!(self.sim.violations(), []);
        self.sim.check().unwrap();
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        // Before the block goes: the next owner may come at once.
        self.world.claims.lock().unwrap().live.remove(&self.block.address());
    }
}

fn held(stats: &Stats) -> [u64; 3] {
    [stats.blocks.current, stats.live.current, stats.requested.current]
}

fn assert_one_instant(stats: &Stats) {
    let chain = [stats.requested.current, stats.live.current, stats.active.current, stats.reserved.current];
    assert!(chain.is_sorted(), "requested, live, active, reserved: {chain:?}");
    for gauge in [stats.requested, stats.live, stats.active, stats.reserved, stats.blocks] {
        assert!(gauge.current <= gauge.peak && gauge.current == gauge.allocated - gauge.freed, "{gauge:?}");
    }
}

#[test]
fn a_meter_is_read_at_one_instant() {
    explore(|| {
        let meter = Arc::new(Meter::default());
        let writer = meter.clone();
        let mut threads = vec![thread::spawn(move || {
            writer.reserved(100);
            for size in [10, 20] {
                writer.gave(size, 2 * size, 0);
                writer.took_back(size, 2 * size, 2 * size);
                writer.pending_is(0);
                writer.count(Count::Miss);
            }
            writer.returned(100);
        })];
        for _ in 0..2 {
            let meter = meter.clone();
            threads.push(thread::spawn(move || {
                for _ in 0..3 {
                    let stats = meter.read();
                    assert_one_instant(&stats);
                    assert_eq!(stats.live.allocated, 2 * stats.requested.allocated, "half of a change is seen");
                }
            }));
        }
        join(threads);
        let stats = meter.read();
        assert_eq!((stats.blocks.allocated, stats.live.freed, stats.misses), (2, 60, 2));
    });
}

/// Blocks go from two makers to a dropper, while another thread trims, looks, and changes limits.
fn made_here_dropped_there(memory: SimMemory) {
    let world = World::new(memory, 12, Config::default());
    let (to, from) = mpsc::channel::<Claimed>();
    let mut threads = Vec::new();
    for number in 1..=2 {
        let (world, to) = (world.clone(), to.clone());
        threads.push(thread::spawn(move || {
            let stream = world.allocator.stream().unwrap();
            for size in [PAGE / 2, 3 * PAGE, number * PAGE] {
                if let Some(claimed) = world.take(world.allocator.request(size), &stream) {
                    to.send(claimed).unwrap();
                }
            }
        }));
    }
    drop(to);
    threads.push(thread::spawn({
        let world = world.clone();
        move || {
            let mine = world.allocator.default_stream();
            for claimed in from {
                claimed.block.used_on(&mine);
            }
        }
    }));
    threads.push(thread::spawn({
        let allocator = world.allocator.clone();
        move || {
            for limit in [6 * PAGE, 20 * PAGE] {
                allocator.set_config(allocator.config().limit(limit)).unwrap();
                allocator.trim(PAGE).unwrap();
                let snapshot = allocator.snapshot();
                assert_one_instant(&snapshot.stats);
                assert_one_instant(&allocator.stats());
            }
            allocator.reset_peak();
            allocator.tick(Duration::from_secs(1)).unwrap();
            allocator.check().unwrap();
        }
    }));
    join(threads);
    world.settled();
}

#[test]
fn pages_made_here_and_dropped_there() {
    explore(|| made_here_dropped_there(SimMemory::Alias));
}

#[test]
fn moved_pages_made_here_and_dropped_there() {
    explore(|| made_here_dropped_there(SimMemory::Remap));
}

#[test]
fn segments_made_here_and_dropped_there() {
    explore(|| made_here_dropped_there(SimMemory::Segments));
}

#[test]
fn whoever_waits_long_enough_is_served() {
    explore(|| {
        let world = World::new(SimMemory::Alias, 4, Config::default());
        let far = Instant::now() + HOUR;
        let work = |size: u64| {
            let world = world.clone();
            thread::spawn(move || {
                let stream = world.allocator.default_stream();
                for _ in 0..2 {
                    let request = world.allocator.request(size).deadline(far);
                    assert!(world.take(request, &stream).is_some(), "nobody freed in an hour");
                }
            })
        };
        join(vec![work(4 * PAGE), work(3 * PAGE), work(2 * PAGE)]);
        assert_eq!(world.allocator.total_stats().failures, 0);
        world.settled();
    });
}

#[test]
fn hooks_give_back_what_they_keep() {
    explore(|| {
        let world = World::new(SimMemory::Paged, 4, Config::default());
        let stream = world.allocator.default_stream();
        let kept = Arc::new(Mutex::new(world.take(world.allocator.request(3 * PAGE), &stream)));
        let hook = world.allocator.on_shortage({
            let (kept, allocator) = (kept.clone(), world.allocator.clone());
            move |shortage| {
                assert!(shortage.bytes >= 2 * PAGE);
                drop(kept.lock().unwrap().take());
                // A hook's own requests call no hooks, and may fail.
                drop(allocator.alloc(3 * PAGE));
            }
        });
        let other = world.allocator.on_shortage(|_| ());
        let asks = |pages: u64| {
            let world = world.clone();
            thread::spawn(move || {
                let stream = world.allocator.default_stream();
                drop(world.take(world.allocator.request(pages * PAGE), &stream));
            })
        };
        let leaves = thread::spawn(move || drop(other));
        join(vec![asks(2), asks(4), leaves]);
        drop((hook, kept));
        world.settled();
    });
}

#[test]
fn pools_and_streams_come_while_others_work() {
    explore(|| {
        let world = World::new(SimMemory::Alias, 16, Config::default());
        let mut threads = Vec::new();
        for name in ["one", "other"] {
            let world = world.clone();
            threads.push(thread::spawn(move || {
                let pool = world.allocator.pool(name, PoolConfig::default()).unwrap();
                let stream = world.allocator.stream().unwrap();
                let own = world.take(pool.request(PAGE), &stream);
                let lent = world.take(world.allocator.request(PAGE).pool(pool.pool_id()), &stream);
                pool.set_pool_config(PoolConfig { limit: Some(8 * PAGE), ..PoolConfig::default() }).unwrap();
                stream.follows(&world.allocator.default_stream());
                drop((own, lent));
            }));
        }
        threads.push(thread::spawn({
            let world = world.clone();
            move || {
                let stream = world.allocator.default_stream();
                // More than the default pool can have: the others' idle memory is asked for.
                drop(world.take(world.allocator.request(15 * PAGE), &stream));
                drop(world.take(world.allocator.request(17 * PAGE), &stream));
                world.allocator.trim(0).unwrap();
            }
        }));
        join(threads);
        assert_eq!(world.allocator.snapshot().pools.len(), 3);
        world.settled();
    });
}

#[test]
fn captures_keep_their_memory_while_others_work() {
    explore(|| {
        let world = World::new(SimMemory::Alias, 12, Config::default());
        let graphs = thread::spawn({
            let world = world.clone();
            move || {
                let stream = world.allocator.stream().unwrap();
                let capture = world.allocator.capture(&stream).unwrap();
                world.sim.capture(stream.id(), true);
                let block = world.allocator.alloc_on(&stream, 2 * PAGE).unwrap();
                world.sim.capture(stream.id(), false);
                let graph = capture.end();
                assert!(world.allocator.request(PAGE).pool(graph.pool_id()).alloc().is_err(), "it is the graph's");
                drop(block);
                assert!(graph.reserved() >= 2 * PAGE, "a graph's pages went");
            }
        });
        let others = thread::spawn({
            let world = world.clone();
            move || {
                let stream = world.allocator.stream().unwrap();
                for pages in [3, 9, 1] {
                    drop(world.take(world.allocator.request(pages * PAGE), &stream));
                }
                world.allocator.trim(0).unwrap();
            }
        });
        join(vec![graphs, others]);
        world.settled();
    });
}

#[test]
fn a_fallback_counts_each_request_once_in_each_tier_it_reached() {
    explore(|| {
        let (small, large) =
            (World::new(SimMemory::Paged, 2, Config::default()), World::new(SimMemory::Paged, 16, Config::default()));
        let memory = Fallback::new("small", &small.allocator).then("large", &large.allocator);
        let work = || {
            let memory = memory.clone();
            thread::spawn(move || {
                let first = memory.alloc(2 * PAGE).unwrap();
                let second = memory.alloc(PAGE).unwrap();
                assert!(first.tier == "large" || second.tier == "large");
            })
        };
        join(vec![work(), work()]);
        let stats = memory.stats();
        assert_eq!(stats[0].served + stats[0].refused, 4);
        assert_eq!(stats[1].served, stats[0].refused);
        assert_eq!(stats[0].served_bytes + stats[1].served_bytes, 6 * PAGE);
        drop(memory);
        small.settled();
        large.settled();
    });
}

#[test]
fn a_device_lost_under_way_is_an_error_and_nobody_hangs() {
    explore(|| {
        let world = World::new(SimMemory::Alias, 8, Config::default());
        let work = |pages: u64| {
            let allocator = world.allocator.clone();
            thread::spawn(move || {
                let Ok(stream) = allocator.stream() else { return };
                let blocks: Vec<_> = (0..3).filter_map(|_| allocator.alloc_on(&stream, pages * PAGE).ok()).collect();
                drop(blocks);
                let _ = allocator.trim(0);
            })
        };
        let loses = thread::spawn({
            let sim = world.sim.clone();
            move || sim.lose("unplugged")
        });
        join(vec![work(1), work(3), loses]);
        assert_eq!(held(&world.allocator.total_stats()), [0, 0, 0]);
        world.allocator.check().unwrap();
        assert_eq!(world.sim.violations(), []);
    });
}
