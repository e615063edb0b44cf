//! What the history costs: an allocation or free of a warm trace with it and without, and how long an allocation is held up by a
//! snapshot of its pool.
//!
//! `cargo bench --bench history` prints both. `LARDER_TRACES` names another folder of traces. For instruction counts run one
//! contestant under callgrind, `valgrind --tool=callgrind BENCH --bench --only off`, and the other with `--only on`: the passes are
//! the same, four of each trace.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use common::{Contestant, Effort};
use larder::backend::sim::SimConfig;
use larder::trace::Trace;
use larder::trace::replay::{Player, ReplayConfig, stage};
use larder::{Allocator, Config};

/// Events that each pool keeps.
const EVENTS: usize = 4096;

struct Larder<'a>(Player<'a>);

impl<'a> Larder<'a> {
    fn new(trace: &'a Trace, history: usize) -> Self {
        let config = ReplayConfig { config: Config::default().history(history), ..ReplayConfig::default() };
        let (allocator, sim) = stage(&config).expect("a config that makes sense");
        Larder(Player::new(trace, &allocator, sim).expect("streams of the simulated device"))
    }
}

impl Contestant for Larder<'_> {
    fn pass(&mut self) {
        self.0.play(64, |_| true).expect("a trace within the simulated device");
        self.0.free_all();
    }
}

fn costs(traces: &[(String, Trace)], effort: Effort) {
    println!("| trace | off | on ({EVENTS} events) | ns an event |");
    println!("|---|--:|--:|--:|");
    let (mut offs, mut ons) = (Vec::new(), Vec::new());
    for (name, trace) in traces {
        let (mut off, mut on) = (Larder::new(trace, 0), Larder::new(trace, EVENTS));
        let times = common::in_turns(&mut [&mut off, &mut on], effort);
        let (off, on) = (times[0] / common::events(trace) as f64, times[1] / common::events(trace) as f64);
        println!("| {name} | {off:.1} | {on:.1} | {:.1} |", on - off);
        if common::is_real(name, trace) {
            offs.push(off);
            ons.push(on);
        }
    }
    if !offs.is_empty() {
        let (off, on) = (common::geometric_mean(offs.into_iter()), common::geometric_mean(ons.into_iter()));
        println!("| **geometric mean of the real** | {off:.1} | {on:.1} | **{:.1}** |", on - off);
    }
    println!();
}

/// Passes of one kind alone, for a tool that counts instructions.
fn only(which: &str, traces: &[(String, Trace)]) {
    for (_, trace) in traces {
        let mut larder = Larder::new(trace, if which == "on" { EVENTS } else { 0 });
        (0..4).for_each(|_| larder.pass());
    }
}

/// How long one thread's allocation and drop take at most while another makes a snapshot, and what the snapshot takes in all: of 31
/// snapshots the middle one and the worst. What is measured is time on the clock: the pool's lock, and all else that the machine
/// does meanwhile; where the threads share a core, turns of the scheduler too.
fn holds(blocks: usize) {
    let config = Config::default().history(blocks);
    let (allocator, _sim) = Allocator::simulated(SimConfig::default(), config).expect("a device");
    // Half of the blocks are live, with a free one between each two.
    let mut live: Vec<_> = (0..blocks as u64).map(|at| allocator.alloc(512 * (1 + at % 7)).ok()).collect();
    live.iter_mut().step_by(2).for_each(|block| drop(block.take()));
    let (over, worst) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut waited, mut took) = (Vec::new(), Vec::new());
    let mut snapshot = allocator.snapshot();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                let began = Instant::now();
                drop(allocator.alloc(512));
                worst.fetch_max(began.elapsed().as_nanos() as u64, Relaxed);
            }
        });
        for _ in 0..31 {
            worst.store(0, Relaxed);
            let began = Instant::now();
            snapshot = allocator.snapshot();
            took.push(began.elapsed());
            waited.push(Duration::from_nanos(worst.load(Relaxed)));
        }
        over.store(true, Relaxed);
    });
    let [(held, held_worst), (took, took_worst)] = [waited, took].map(|mut times| {
        times.sort_unstable();
        (times[times.len() / 2], times[times.len() - 1])
    });
    let events = snapshot.history.as_ref().map_or(0, |history| history.events.len());
    let blocks: usize = snapshot.pools[0].regions.iter().map(|region| region.blocks.len()).sum();
    println!(
        "of 31 snapshots of {blocks} blocks and {events} events: the slowest allocation and drop meanwhile took {held:.1?} \
         (worst {held_worst:.1?}), the snapshot {took:.1?} (worst {took_worst:.1?})"
    );
}

fn main() {
    if common::skips() && !common::wants_figures() {
        return;
    }
    let figures = common::wants_figures();
    let traces = if figures { common::traces() } else { common::smoke_traces() };
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--only") {
        return only(arguments.get(at + 1).map_or("off", String::as_str), &traces);
    }
    costs(&traces, if figures { Effort::FULL } else { Effort::SMOKE });
    holds(if figures { 100_000 } else { 100 });
}
