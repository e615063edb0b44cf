//! The random programs of the heap's and the allocator's laws, for as long as one likes. A second each by default; with
//! `LARDER_SOAK=1`,
//!
//! ```text
//! LARDER_SOAK=1 cargo test --release --test soak -- --nocapture --test-threads 1
//! ```
//!
//! a thousand million steps on heaps and ten million on allocators whose devices fail now and then. `BENCHMARKS.md` has results.

mod common;
#[allow(dead_code, reason = "the laws of the heap use more of it")]
#[path = "heap_laws/fences.rs"]
mod fences;
#[path = "heap_laws/jobs.rs"]
mod jobs;
#[path = "heap_laws/program.rs"]
mod program;
#[path = "heap_laws/shadow.rs"]
mod shadow;
#[path = "allocator_laws/program.rs"]
mod users;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::Rng;
use larder::Config;
use larder::backend::sim::{Call, SimConfig};
use larder::trace::replay::thread_cpu_time;
use program::{LARGE, MIDDLE, PARTS, Program, SMALL, Shape};
use users::{LAGS, MEMORIES, config, device};

/// `short`, or `long` when a soak is asked for.
fn soak(short: u64, long: u64) -> u64 {
    if std::env::var("LARDER_SOAK").is_ok_and(|value| value == "1") { long } else { short }
}

/// Says how far a soak is.
struct Progress {
    what: &'static str,
    began: Instant,
    /// The thread's time when it began.
    worked: Duration,
    /// Per cent that were told.
    told: u64,
}

impl Progress {
    fn new(what: &'static str) -> Progress {
        Progress { what, began: Instant::now(), worked: thread_cpu_time(), told: 0 }
    }

    /// Minutes of the clock, and of the processor.
    fn time(&self) -> String {
        let minutes = |time: Duration| time.as_secs_f64() / 60.0;
        let (clock, processor) = (self.began.elapsed(), thread_cpu_time() - self.worked);
        format!("{:.1} minutes, {:.1} of them at work", minutes(clock), minutes(processor))
    }

    fn at(&mut self, steps: u64, of: u64) {
        if steps * 100 / of >= self.told + 5 {
            self.told = steps * 100 / of;
            println!("{}: {} %, {steps} steps, {}", self.what, self.told, self.time());
        }
    }
}

/// Every step is one call of a heap, or several, each compared with a shadow of plain intervals; invariants and the shadow of the
/// whole heap are compared now and then, and at the end of every program all is freed and nothing may be left.
#[test]
fn heaps_agree_with_their_shadow() {
    let (programs, checks, steps) = (soak(3, 30), soak(4, 2_000), soak(5_000, 1_000_000_000 / 60_000 + 1));
    let (mut done, mut peak_records, mut peak_live) = ([0; PARTS.len()], 0, 0);
    let mut progress = Progress::new("heap");
    for seed in 0..programs {
        let shape = [SMALL, MIDDLE, LARGE][seed as usize % 3];
        let mut program = Program::new(Shape { check_every: u64::MAX, ..shape }, Rng::new(9000 + seed));
        for check in 1..=checks {
            // Checks before its first step.
            program.run(steps);
            peak_records = peak_records.max(program.heap.memory());
            peak_live = peak_live.max(program.live.len());
            progress.at((seed * checks + check) * steps, programs * checks * steps);
        }
        program.end().iter().zip(&mut done).for_each(|(once, sum)| *sum += once);
    }
    println!(
        "heap: {} steps, {} checks of everything, {}; at most {peak_live} live blocks, {peak_records} bytes of records",
        programs * checks * steps,
        programs * (checks + 1),
        progress.time()
    );
    for (what, times) in PARTS.iter().zip(done) {
        println!("heap: {times:>12} {what}");
        assert!(times > 0, "{what}");
    }
}

/// Streams, pools, limits, trims, hooks and failures at random; every device checks its rules at every call, and everything is
/// recounted now and then.
#[test]
fn allocators_keep_every_figure_on_devices_that_fail() {
    let (programs, steps) = (soak(60, 2_000), soak(500, 5_000));
    let check_every = 50;
    let mut progress = Progress::new("allocator");
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    let mut told: BTreeMap<&str, u64> = BTreeMap::new();
    let mut failed: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..programs {
        let lag = LAGS[(seed / 8) as usize % LAGS.len()];
        // Little memory most of the time; some where the CPU touches it, some without aliases.
        let capacity = if seed % 5 == 4 { 600 * users::PAGE } else { 96 * users::PAGE };
        let device = SimConfig { capacity, host_ordered: seed % 7 == 6, ..device(MEMORIES[seed as usize % 4], lag) };
        let config = Config { alias: seed % 8 < 6, ..config() };
        let tally =
            users::Program::new(device, config, Rng::new(70_000 + seed)).with_faults(64).run(steps, check_every);
        let (stats, counters) = (tally.stats, tally.counters);
        for (what, times) in [
            ("blocks served", tally.served),
            ("out of memory", tally.out_of_memory),
            ("failures ordered", tally.ordered),
            ("requests beyond the first search", stats.misses),
            ("waits between streams", stats.stream_waits),
            ("waits of the host", stats.host_waits),
            ("pages moved", counters.pages_moved),
            ("pages given back", counters.pages_freed),
            ("old addresses of pages unmapped", counters.pages_unbacked - counters.pages_freed),
            ("segments made", counters.succeeded(Call::GrowSegment)),
            ("segments given back", counters.succeeded(Call::Release)),
        ] {
            *sums.entry(what).or_default() += times;
        }
        tally.told.iter().for_each(|(call, times)| *told.entry(call).or_default() += times);
        Call::ALL.iter().for_each(|call| *failed.entry(call.name()).or_default() += counters.failed(*call));
        progress.at((seed + 1) * steps, programs * steps);
    }
    println!(
        "allocator: {} steps, {} checks of everything, {}",
        programs * steps,
        programs * steps.div_ceil(check_every),
        progress.time()
    );
    for (what, times) in &sums {
        println!("allocator: {times:>12} {what}");
        assert!(*times > 0, "{what}");
    }
    println!("allocator: calls of the device that failed: {failed:?}");
    println!("allocator: errors of the device that were told: {told:?}");
}
