//! Threads at full speed, for ThreadSanitizer to look at: blocks made here and dropped there over every kind of memory at hand, while
//! others trim, look, change limits and reclaim.
//!
//! `.ci/tsan` builds and runs it so. A plain `cargo test` runs it too, as a story of its own. It is a plain program, and its threads are
//! joined by handle: std is not instrumented, and its test harness, scoped threads, channels, and mutexes that threads wait for would be
//! reported for what they are not guilty of.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::{Rng, runs};
use larder::backend::sim::{Call, Lag, SimConfig, SimMemory};
use larder::units::{KIB, MIB};
use larder::{AllocError, Allocator, Block, Config, Fallback, Host, Memory, PoolConfig, Simulated, Stats};
use parking_lot::Mutex;

fn main() {
    // What else cargo or a test runner asks for is not here.
    if std::env::args().any(|arg| arg == "--list") {
        return;
    }
    let stories: [(&str, fn()); 5] = [
        ("mapped_bytes_change_hands", mapped_bytes_change_hands),
        ("heap_bytes_change_hands", heap_bytes_change_hands),
        ("streams_pools_and_hooks", streams_pools_and_hooks),
        ("a_slow_driver_gives_nothing_twice", a_slow_driver_gives_nothing_twice),
        ("tiers_are_shared", tiers_are_shared),
    ];
    // The table of names is made by std's means, before there are threads to see it.
    let _tag = larder::tag("races");
    #[cfg(planted_race)]
    planted::race();
    for (name, story) in stories {
        story();
        println!("test {name} ... ok");
    }
}

fn out_of_memory<T>(result: Result<T, AllocError>) -> Option<T> {
    match result {
        Ok(block) => Some(block),
        Err(AllocError::OutOfMemory(_)) => None,
        Err(error) => panic!("{error}"),
    }
}

fn assert_one_instant(stats: &Stats) {
    let chain = [stats.requested.current, stats.live.current, stats.active.current, stats.reserved.current];
    assert!(chain.is_sorted(), "requested, live, active, reserved: {chain:?}");
}

/// Runs `work` on so many threads with a number each, and beside them one that looks and one that meddles, until all are done.
fn with_company<M: Memory>(
    allocator: &Allocator<M>,
    threads: u64,
    limit: u64,
    work: impl Fn(u64) + Send + Sync + 'static,
) {
    let done = Arc::new(AtomicBool::new(false));
    let until_done = |mut body: Box<dyn FnMut() + Send>| {
        let done = done.clone();
        thread::spawn(move || {
            while !done.load(SeqCst) {
                body();
                thread::yield_now();
            }
        })
    };
    let (seen, meddled, began) = (allocator.clone(), allocator.clone(), Instant::now());
    let mut random = Rng::new(99);
    let company = [
        until_done(Box::new(move || {
            assert_one_instant(&seen.stats());
            assert_one_instant(&seen.snapshot().stats);
            seen.check().unwrap();
        })),
        until_done(Box::new(move || {
            let mut config = meddled.config().limit(random.range(limit / 2, limit));
            config.slack = 1.0 + random.below(100) as f64 / 100.0;
            config.decay = Some(Duration::from_millis(1));
            meddled.set_config(config).unwrap();
            meddled.set_pool_config(PoolConfig { limit: Some(limit), ..PoolConfig::default() }).unwrap();
            meddled.trim(random.below(limit)).unwrap();
            meddled.tick(began.elapsed()).unwrap();
            meddled.reset_peak();
        })),
    ];
    let work = Arc::new(work);
    let workers: Vec<JoinHandle<()>> = (0..threads)
        .map(|number| {
            let work = work.clone();
            thread::spawn(move || work(number))
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    done.store(true, SeqCst);
    company.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Blocks of bytes on their way between threads; whoever takes one checks what the other wrote.
#[derive(Default)]
struct Exchange(Mutex<Vec<(Block<Host>, u32)>>);

impl Exchange {
    fn give(&self, block: Block<Host>, word: u32) {
        self.0.lock().push((block, word));
    }

    fn take(&self) -> bool {
        let Some((block, word)) = self.0.lock().pop() else { return false };
        let words = block.as_slice::<u32>().unwrap();
        assert!(words.iter().all(|other| *other == word), "a block was given twice");
        true
    }
}

/// Without a limit more addresses are reserved than ThreadSanitizer keeps account of, and it is silent about races there.
fn limited() -> Config {
    Config::default().limit(24 * MIB)
}

fn bytes_change_hands(allocator: &Allocator<Host>) {
    let exchange = Arc::new(Exchange::default());
    // What nobody needs and the hook gives back, on the thread that is short of memory.
    let cache = Arc::new(Mutex::new(Vec::<Block<Host>>::new()));
    let given = Arc::new(AtomicU64::new(0));
    let hook = allocator.on_shortage({
        let (cache, given) = (cache.clone(), given.clone());
        move |_| {
            let blocks = std::mem::take(&mut *cache.lock());
            given.fetch_add(blocks.len() as u64, Relaxed);
        }
    });
    let (rounds, limit) = (runs(250, 5_000), 24 * MIB);
    with_company(allocator, 6, limit, {
        let (exchange, cache, allocator) = (exchange.clone(), cache.clone(), allocator.clone());
        move |number| {
            let mut random = Rng::new(number);
            for round in 0..rounds {
                if random.one_in(4) {
                    let spare = out_of_memory(allocator.alloc(256 * KIB));
                    cache.lock().extend(spare);
                }
                let word = (round << 8 | number) as u32;
                let block = out_of_memory(allocator.alloc(4 * random.skewed(8 * KIB)));
                if let Some(mut block) = block {
                    block.as_mut_slice::<u32>().unwrap().fill(word);
                    exchange.give(block, word);
                }
                if random.one_in(3) {
                    exchange.take();
                }
                while random.one_in(2) && exchange.take() {}
            }
        }
    });
    drop(hook);
    assert!(given.load(Relaxed) > 0, "the hook had nothing to give");
    cache.lock().clear();
    while exchange.take() {}
    allocator.check().unwrap();
    assert_one_instant(&allocator.stats());
    assert_eq!((allocator.stats().blocks.current, allocator.stats().live.current), (0, 0));
    allocator.purge().unwrap();
    assert_eq!(allocator.total_stats().reserved.current, 0);
}

fn mapped_bytes_change_hands() {
    bytes_change_hands(&Allocator::host(Config { page: Some(64 * KIB), ..limited() }).unwrap());
}

fn heap_bytes_change_hands() {
    bytes_change_hands(&Allocator::host_system(Config { segment_min: MIB, ..limited() }).unwrap());
}

fn streams_pools_and_hooks() {
    let device = SimConfig { capacity: 64 * MIB, page: MIB, lag: Lag::Events(3), ..SimConfig::default() };
    let (allocator, sim) = Allocator::simulated(device, Config::default()).unwrap();
    let pools = Arc::new([allocator.clone(), allocator.pool("other", PoolConfig::default()).unwrap()]);
    let asked = Arc::new(AtomicU64::new(0));
    let hook = allocator.on_shortage({
        let asked = asked.clone();
        move |shortage| {
            asked.fetch_add(shortage.bytes, Relaxed);
        }
    });
    let rounds = runs(300, 5_000);
    let device = sim.clone();
    with_company(&allocator, 4, 64 * MIB, {
        let allocator = allocator.clone();
        move |number| {
            let mut random = Rng::new(number);
            let streams = [allocator.stream().unwrap(), allocator.stream().unwrap()];
            let mut held = Vec::new();
            for _ in 0..rounds {
                device.advance(1);
                if held.len() > 20 || random.one_in(3) {
                    held.clear();
                }
                let stream = &streams[random.below(2) as usize];
                let request = pools[random.below(2) as usize].request(random.skewed(4 * MIB)).on(stream).tag("races");
                let deadline = Instant::now() + Duration::from_micros(random.below(50));
                let Some(block) = out_of_memory(request.deadline(deadline).alloc()) else { continue };
                block.used_on(&streams[1]);
                held.push(block);
                if random.one_in(200) {
                    let pool = allocator.pool("made meanwhile", PoolConfig::default()).unwrap();
                    held.extend(out_of_memory(pool.alloc_on(stream, MIB)));
                }
            }
        }
    });
    drop(hook);
    assert_eq!(sim.violations(), []);
    allocator.purge().unwrap();
    assert_eq!((allocator.total_stats().reserved.current, sim.counters().used), (0, 0));
}

/// Every call of the driver leaves time for the others between what was decided before it and what is noted after it.
fn a_slow_driver_gives_nothing_twice() {
    for memory in [SimMemory::Alias, SimMemory::Remap, SimMemory::Segments] {
        let device = SimConfig { capacity: 8 * MIB, page: 64 * KIB, memory, ..SimConfig::default() };
        let config = Config { segment_min: 256 * KIB, slack: 1.0, ..Config::default() };
        let (allocator, sim) = Allocator::simulated(device, config).unwrap();
        sim.meanwhile(|call| {
            if !matches!(call, Call::Done | Call::Budget) {
                thread::sleep(Duration::from_micros(20));
            }
        });
        let live = Arc::new(Mutex::new(BTreeMap::new()));
        let rounds = runs(120, 3_000);
        with_company(&allocator, 8, 8 * MIB, {
            let allocator = allocator.clone();
            move |number| {
                let (mut random, stream) = (Rng::new(number), allocator.stream().unwrap());
                let mut held: Vec<Block<Simulated>> = Vec::new();
                for _ in 0..rounds {
                    while held.len() > 2 || (!held.is_empty() && random.one_in(2)) {
                        let block = held.swap_remove(0);
                        live.lock().remove(&block.address());
                    }
                    let request = allocator.request(random.skewed(MIB)).on(&stream);
                    let Some(block) = out_of_memory(request.alloc()) else { continue };
                    let (start, end) = (block.address(), block.address() + block.size());
                    let mut live = live.lock();
                    let before = live.range(..end).next_back();
                    assert!(before.is_none_or(|(_, other)| *other <= start), "bytes given twice at {start:#x}");
                    live.insert(start, end);
                    held.push(block);
                }
                held.iter().for_each(|block| assert!(live.lock().remove(&block.address()).is_some()));
            }
        });
        assert_eq!(sim.violations(), []);
        allocator.check().unwrap();
    }
}

fn tiers_are_shared() {
    let small = Allocator::host(Config::default().limit(4 * MIB)).unwrap();
    let large = Allocator::host_system(Config::default().limit(64 * MIB)).unwrap();
    let memory = Fallback::new("small", &small).then("large", &large);
    let rounds = runs(200, 5_000);
    let threads: Vec<JoinHandle<()>> = (0..4)
        .map(|number| {
            let memory = memory.clone();
            thread::spawn(move || {
                let mut random = Rng::new(number);
                for _ in 0..rounds {
                    let mut placed = memory.alloc(random.skewed(2 * MIB)).unwrap();
                    placed.block.host_bytes_mut().unwrap()[0] = number as u8;
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let stats = memory.stats();
    assert_eq!((stats[0].served + stats[0].refused, stats[1].served), (4 * rounds, stats[0].refused));
}

/// A race on the bytes of a block, which a run under ThreadSanitizer must report: that it sees them is shown by this.
#[cfg(planted_race)]
mod planted {
    use super::{Allocator, AtomicU64, Relaxed, limited, thread};

    static ADDRESS: AtomicU64 = AtomicU64::new(0);

    #[allow(unsafe_code)]
    pub fn race() {
        let allocator = Allocator::host(limited()).unwrap();
        let writer = thread::spawn(move || {
            let mut block = allocator.alloc(4096).unwrap();
            block.as_mut_slice::<u32>().unwrap()[0] = 7;
            ADDRESS.store(block.address(), Relaxed);
            block
        });
        while ADDRESS.load(Relaxed) == 0 {
            thread::yield_now();
        }
        // SAFETY: the block lives until its writer is joined. That nothing orders the reading behind the writing is the race.
        let seen = unsafe { *(ADDRESS.load(Relaxed) as *const u32) };
        println!("planted: {seen} seen, {} blocks", writer.join().unwrap().len());
    }
}
