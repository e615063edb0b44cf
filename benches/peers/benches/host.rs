//! Memory of the host: larder's two host allocators beside general ones, called directly, from 64 B to 64 MiB.
//!
//! `cargo bench --bench host` prints the tables that `BENCHMARKS.md` holds, medians measured in turns: wall time and thread CPU time
//! of an allocation and its free, warm, and resident memory, each of a process of its own. Then criterion measures pairs, one
//! contestant after another.

use std::alloc::System;
use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use larder::trace::replay::thread_cpu_time;
use larder::units::{Bytes, KIB, MIB};
use larder::{Allocator, Config};
use larder_peers::common;
use larder_peers::general::{General, Source};
use mimalloc::MiMalloc;
use snmalloc_rs::SnMalloc;
use tikv_jemallocator::Jemalloc;

const SIZES: [u64; 8] = [64, 512, 4 * KIB, 64 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB];
const NAMES: [&str; 6] = ["larder", "larder, system's heap", "system", "mimalloc", "jemalloc", "snmalloc"];
/// Bytes live at once in a batch, and its most blocks.
const BATCH: (u64, u64) = (256 * MIB, 10_000);
/// Set in a process that measures the resident memory of one contestant at one size.
const RESIDENT: &str = "LARDER_PEERS_RESIDENT";

static SYSTEM: System = System;
static MIMALLOC: MiMalloc = MiMalloc;
static JEMALLOC: Jemalloc = Jemalloc;
static SNMALLOC: SnMalloc = SnMalloc;

/// What a program does with memory.
#[derive(Clone, Copy, PartialEq)]
enum Pattern {
    /// One block after another.
    Pair,
    /// Many live at once, freed in another order than they came in.
    Batch,
}

/// One contestant at one size.
trait Contestant {
    /// Gets and frees so many times, or so many at once.
    fn round(&mut self, pattern: Pattern, count: usize, written: bool);
    /// Bytes resident, of those there before: while a batch is live and written, and after it was freed.
    fn resident(&mut self, count: usize) -> [u64; 2];
}

struct Sized<S: Source> {
    source: S,
    bytes: usize,
    live: Vec<Option<S::Memory>>,
}

impl<S: Source> Sized<S> {
    #[inline]
    fn get(&self, written: bool) -> S::Memory {
        let mut memory = self.source.get(self.bytes);
        let address = black_box(S::address(&mut memory));
        if written {
            // SAFETY: the memory has so many bytes, which are its holder's alone.
            unsafe { address.write_bytes(1, self.bytes) };
            black_box(address);
        }
        memory
    }

    fn fill(&mut self, count: usize, written: bool) {
        self.live.clear();
        for _ in 0..count {
            let memory = self.get(written);
            self.live.push(Some(memory));
        }
    }

    /// Frees in strides, so that neighbours are seldom freed one after the other.
    fn free(&mut self) {
        let stride = 7.min(self.live.len());
        for first in 0..stride {
            self.live[first..].iter_mut().step_by(stride).for_each(|memory| *memory = None);
        }
    }
}

impl<S: Source> Contestant for Sized<S> {
    fn round(&mut self, pattern: Pattern, count: usize, written: bool) {
        match pattern {
            Pattern::Pair => (0..count).for_each(|_| drop(self.get(written))),
            Pattern::Batch => {
                self.fill(count, written);
                self.free();
            }
        }
    }

    fn resident(&mut self, count: usize) -> [u64; 2] {
        self.live.reserve(count);
        self.live.resize_with(count, || None); // the list's own pages are there from the beginning
        let before = resident();
        self.fill(count, true);
        let live = resident();
        self.free();
        [live, resident()].map(|bytes| bytes.saturating_sub(before))
    }
}

/// Bytes of this process that are resident.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    // SAFETY: it takes a number and answers one.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
    pages.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default() * page
}

fn contestant(at: usize, bytes: u64) -> Box<dyn Contestant> {
    fn sized<S: Source + 'static>(source: S, bytes: u64) -> Box<dyn Contestant> {
        Box::new(Sized { source, bytes: bytes as usize, live: Vec::new() })
    }
    let config = || Config::default().limit(2048 * MIB);
    match at {
        0 => sized(Allocator::host(config()).expect("host memory"), bytes),
        1 => sized(Allocator::host_system(config()).expect("host memory"), bytes),
        2 => sized(General(&SYSTEM), bytes),
        3 => sized(General(&MIMALLOC), bytes),
        4 => sized(General(&JEMALLOC), bytes),
        _ => sized(General(&SNMALLOC), bytes),
    }
}

/// Blocks of a batch.
fn batch(bytes: u64) -> usize {
    (BATCH.0 / bytes).min(BATCH.1) as usize
}

/// Medians of one allocation with its free, in nanoseconds.
#[derive(Clone, Copy)]
struct Times {
    wall: f64,
    cpu: f64,
}

/// How much is measured: rounds, and the least wall time of one.
#[derive(Clone, Copy)]
struct Effort(usize, Duration);

fn measure(bytes: u64, pattern: Pattern, written: bool, effort: Effort) -> Vec<Times> {
    let mut all: Vec<_> = (0..NAMES.len()).map(|at| contestant(at, bytes)).collect();
    let step = if pattern == Pattern::Pair { 1 } else { batch(bytes) };
    let mut counts = Vec::new();
    for one in &mut all {
        one.round(pattern, step, written);
        let began = Instant::now();
        one.round(pattern, step, written);
        let rounds = effort.1.as_secs_f64() / began.elapsed().as_secs_f64().max(1e-7);
        counts.push(rounds.clamp(1.0, 1e6) as usize);
    }
    let mut times = vec![(Vec::new(), Vec::new()); all.len()];
    for _ in 0..effort.0 {
        for (at, one) in all.iter_mut().enumerate() {
            let (wall, cpu) = (Instant::now(), thread_cpu_time());
            match pattern {
                Pattern::Pair => one.round(pattern, counts[at], written),
                Pattern::Batch => (0..counts[at]).for_each(|_| one.round(pattern, step, written)),
            }
            let blocks = (counts[at] * step) as f64;
            times[at].0.push(wall.elapsed().as_secs_f64() * 1e9 / blocks);
            times[at].1.push((thread_cpu_time() - cpu).as_secs_f64() * 1e9 / blocks);
        }
    }
    times.into_iter().map(|(wall, cpu)| Times { wall: common::median(wall), cpu: common::median(cpu) }).collect()
}

/// Nanoseconds, or micro- or milliseconds.
fn short(ns: f64) -> String {
    match ns {
        _ if ns < 1e3 => format!("{ns:.1} ns"),
        _ if ns < 1e6 => format!("{:.2} us", ns / 1e3),
        _ => format!("{:.2} ms", ns / 1e6),
    }
}

fn head(first: &str) {
    println!("| {first} | {} |", NAMES.join(" | "));
    println!("|---|{}", "--:|".repeat(NAMES.len()));
}

fn table(title: &str, sizes: &[u64], pattern: Pattern, written: bool, effort: Effort) {
    head(title);
    for bytes in sizes {
        let times = measure(*bytes, pattern, written, effort);
        let cell = |at: usize| {
            let Times { wall, cpu } = times[at];
            let ratio = cpu / times[0].cpu;
            format!("{} / {} ({ratio:.2})", short(wall), short(cpu))
        };
        println!("| {} | {} |", Bytes(*bytes), (0..NAMES.len()).map(cell).collect::<Vec<_>>().join(" | "));
    }
    println!();
}

/// Resident memory, each figure from a process that does nothing else.
fn residents(sizes: &[u64]) {
    head("resident over live: while live, after the free");
    let program = std::env::current_exe().expect("a program that runs");
    for bytes in sizes {
        let cell = |at: usize| {
            let output = Command::new(&program).env(RESIDENT, format!("{at} {bytes}")).output();
            String::from_utf8_lossy(&output.expect("this program again").stdout).trim().to_string()
        };
        println!("| {} | {} |", Bytes(*bytes), (0..NAMES.len()).map(cell).collect::<Vec<_>>().join(" | "));
    }
    println!();
}

fn resident_of(order: &str) {
    let mut words = order.split(' ').map(|word| word.parse::<u64>().expect("a number"));
    let (at, bytes) = (words.next().expect("a contestant"), words.next().expect("a size"));
    let live = batch(bytes) as u64 * bytes;
    let [full, empty] = contestant(at as usize, bytes).resident(batch(bytes)).map(|held| held as f64 / live as f64);
    println!("{full:.2}, {empty:.2}");
}

fn groups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("written_pair");
    group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(300));
    for bytes in [4 * KIB, MIB, 64 * MIB] {
        group.throughput(Throughput::Bytes(bytes));
        for (at, name) in NAMES.iter().enumerate() {
            let mut one = contestant(at, bytes);
            group.bench_function(BenchmarkId::new(*name, bytes), |bencher| {
                bencher.iter(|| one.round(Pattern::Pair, 1, true));
            });
        }
    }
    group.finish();
}

fn main() {
    let flags = option_env!("CXXFLAGS").unwrap_or_default();
    assert!(
        flags.contains("-DNDEBUG"),
        "snmalloc is built with assertions: build in this package's folder, see .cargo/config.toml"
    );
    if let Ok(order) = std::env::var(RESIDENT) {
        return resident_of(&order);
    }
    let figures = common::wants_figures();
    if figures || !common::skips() {
        let effort = if figures { Effort(7, Duration::from_millis(10)) } else { Effort(1, Duration::ZERO) };
        let sizes = if figures { &SIZES[..] } else { &[512, MIB][..] };
        for (pattern, what) in [(Pattern::Pair, "one at a time"), (Pattern::Batch, "a batch")] {
            for (written, how) in [(false, "untouched"), (true, "written")] {
                table(&format!("{what}, {how}: wall / CPU"), sizes, pattern, written, effort);
            }
        }
        residents(sizes);
    }
    let mut criterion = Criterion::default().configure_from_args();
    groups(&mut criterion);
    criterion.final_summary();
}
