//! Blocks made and dropped by one thread, by two on one pool, and by two on a pool each: pairs a second of wall time.
//!
//! `cargo bench --bench threads` prints the table of `BENCHMARKS.md`: short turns, many of them, one setting after another, and the medians
//! of those turns in which all threads ran from beginning to end: two that take turns on one processor do not get in each other's way.

mod common;

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use larder::backend::sim::SimConfig;
use larder::trace::replay::thread_cpu_time;
use larder::{Allocator, Block, Config, PoolConfig, Simulated};
use offset_allocator::Allocation;

/// Blocks that a thread holds at a time.
const HELD: usize = 64;

/// One thread's part: replaces blocks of 512 B to 1 MiB (log-uniform), each at a place of its `HELD` that chance chooses.
trait Worker: Send {
    fn replace(&mut self, at: usize, bytes: u64);
}

struct Larder {
    pool: Allocator<Simulated>,
    held: Vec<Option<Block<Simulated>>>,
}

impl Larder {
    fn boxed(pool: &Allocator<Simulated>) -> Box<dyn Worker> {
        Box::new(Larder { pool: pool.clone(), held: (0..HELD).map(|_| None).collect() })
    }
}

impl Worker for Larder {
    fn replace(&mut self, at: usize, bytes: u64) {
        self.held[at] = None;
        self.held[at] = Some(self.pool.alloc(bytes).expect("a device of a TiB"));
    }
}

/// In cache lines of its own, so that two peers do not get in each other's way by chance.
#[repr(align(128))]
struct Peer(Mutex<offset_allocator::Allocator<u32>>);

struct Offset {
    shared: Arc<Peer>,
    held: Vec<Option<Allocation<u32>>>,
}

impl Offset {
    fn boxed(shared: &Arc<Peer>) -> Box<dyn Worker> {
        Box::new(Offset { shared: shared.clone(), held: vec![None; HELD] })
    }
}

impl Worker for Offset {
    fn replace(&mut self, at: usize, bytes: u64) {
        if let Some(old) = self.held[at].take() {
            self.shared.0.lock().expect("no panic before").free(old);
        }
        let given = self.shared.0.lock().expect("no panic before").allocate(common::units(bytes));
        self.held[at] = Some(given.expect("a range of a TiB"));
    }
}

fn play(worker: &mut dyn Worker, seed: u64, pairs: u64) {
    let mut random = seed;
    for _ in 0..pairs {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bits = random >> 32;
        let floor = 512 << (bits % 11);
        let bytes = floor + (bits >> 8) % floor;
        worker.replace(black_box((bits >> 24) as usize % HELD), black_box(bytes));
    }
}

/// When a worker began and ended, and whether it ran all that time, but for its own waits.
struct Ran {
    began: Instant,
    ended: Instant,
    clean: bool,
}

/// Wall time of a turn of all workers; `None` when they did not run at the same time all along, so that it says nothing.
fn turn(workers: &mut [Box<dyn Worker>], pairs: u64) -> Option<Duration> {
    let (ready, count) = (AtomicUsize::new(0), workers.len());
    let all: Vec<Ran> = thread::scope(|scope| {
        let mut threads = Vec::new();
        for (seed, worker) in (1..).zip(workers) {
            let ready = &ready;
            threads.push(scope.spawn(move || {
                let (before, used) = (interruptions(), thread_cpu_time());
                ready.fetch_add(1, SeqCst);
                while ready.load(SeqCst) < count {
                    spin_loop();
                }
                let began = Instant::now();
                play(&mut **worker, seed, pairs);
                let ended = Instant::now();
                // One that lets others go first on its own accord is counted as interrupted, although it goes on at once.
                let used = (thread_cpu_time() - used).as_secs_f64();
                let clean = interruptions() == before || used > 0.95 * (ended - began).as_secs_f64();
                Ran { began, ended, clean }
            }));
        }
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let (first, last) = (all.iter().map(|ran| ran.began).min()?, all.iter().map(|ran| ran.ended).max()?);
    let together = all.iter().map(|ran| ran.ended).min()?.duration_since(all.iter().map(|ran| ran.began).max()?);
    let time = last - first;
    let clean = all.iter().all(|ran| ran.clean) && together.as_secs_f64() > 0.8 * time.as_secs_f64();
    clean.then_some(time)
}

/// How often this thread has lost its processor to another; 0 where the system does not say.
fn interruptions() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// The settings, each with one contestant's workers.
fn larders() -> [Vec<Box<dyn Worker>>; 4] {
    let allocator = || Allocator::simulated(SimConfig::default(), Config::default()).expect("the default config").0;
    let (alone, one, two, other) = (allocator(), allocator(), allocator(), allocator());
    let pool = |name| two.pool(name, PoolConfig::default()).expect("few pools");
    let pools = [pool("first"), pool("second")];
    [
        vec![Larder::boxed(&alone)],
        vec![Larder::boxed(&one), Larder::boxed(&one)],
        pools.iter().map(Larder::boxed).collect(),
        vec![Larder::boxed(&alone), Larder::boxed(&other)],
    ]
}

fn offsets() -> [Vec<Box<dyn Worker>>; 4] {
    let peer = || Arc::new(Peer(Mutex::new(common::peer(4 * HELD))));
    let (alone, one, two) = (peer(), peer(), [peer(), peer()]);
    [
        vec![Offset::boxed(&alone)],
        vec![Offset::boxed(&one), Offset::boxed(&one)],
        two.iter().map(Offset::boxed).collect(),
        two.iter().map(Offset::boxed).collect(),
    ]
}

fn main() {
    if common::skips() {
        return;
    }
    let (turns, pairs) = if common::wants_figures() { (1000, 10_000) } else { (1, 500) };
    let names = ["one thread", "two threads, one pool", "two threads, two pools", "two threads, two allocators"];
    let mut contestants = [larders(), offsets()];
    let mut times: [[Vec<f64>; 4]; 2] = Default::default();
    // The first turn is to warm up.
    for round in 0..=turns {
        for (settings, times) in contestants.iter_mut().zip(&mut times) {
            for (workers, times) in settings.iter_mut().zip(times) {
                let time = turn(workers, pairs);
                times.extend(time.filter(|_| round > 0).map(|time| time.as_secs_f64()));
            }
        }
    }
    let rate = |contestant: usize, setting: usize| {
        let all = contestants[contestant][setting].len() as f64 * pairs as f64;
        all / common::median(times[contestant][setting].clone()) / 1e6
    };
    println!(
        "| | larder, million pairs a second | of one thread | turns | offset-allocator + mutex | of one thread | turns |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|");
    for (setting, name) in names.iter().enumerate() {
        if times.iter().any(|times| times[0].is_empty() || times[setting].is_empty()) {
            println!("| {name} | no turn without interruption |");
            continue;
        }
        let (larder, offset) = (rate(0, setting), rate(1, setting));
        let (of_larder, of_offset) = (larder / rate(0, 0), offset / rate(1, 0));
        let (kept, kept_offset) = (times[0][setting].len(), times[1][setting].len());
        println!("| {name} | {larder:.2} | {of_larder:.2} | {kept} | {offset:.2} | {of_offset:.2} | {kept_offset} |");
    }
}
