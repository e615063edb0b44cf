//! The miss path: what a request costs that no free block can serve at once, by the rung of the ladder that serves it.
//!
//! `cargo bench --bench miss` prints the table that `BENCHMARKS.md` holds: microseconds of thread CPU time of one request, each on an
//! allocator made for it. The statistics and the device's counters must show that the rung meant is the one that served.

mod common;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use larder::backend::sim::{Call, Lag, Sim, SimConfig, SimCounters, SimMemory};
use larder::snapshot::{Rung, Verdict};
use larder::trace::replay::thread_cpu_time;
use larder::units::MIB;
use larder::{AllocError, Allocator, Block, Config, Memory, Simulated, Stats, Stream};

const PAGE: u64 = 2 * MIB;

/// What one request did.
struct Change {
    us: f64,
    before: Stats,
    after: Stats,
}

impl Change {
    fn misses(&self) -> u64 {
        self.after.misses - self.before.misses
    }

    fn grown(&self) -> i64 {
        self.after.reserved.current as i64 - self.before.reserved.current as i64
    }

    fn moved(&self) -> u64 {
        self.after.moved - self.before.moved
    }

    fn waits(&self) -> (u64, u64) {
        (self.after.stream_waits - self.before.stream_waits, self.after.host_waits - self.before.host_waits)
    }

    /// Served beyond the first search by the memory that was there, where it was, and waited for nothing.
    fn only_missed(&self) -> bool {
        self.misses() == 1 && self.grown() == 0 && self.moved() == 0 && self.waits() == (0, 0)
    }

    /// Whether more is reserved than the slack allows by itself.
    fn is_beyond(&self, slack: f64) -> bool {
        self.after.reserved.current as f64 > slack * self.before.live.peak.max(self.after.live.current) as f64
    }
}

/// Times one request. The block goes back afterwards, when the figures are read.
fn timed<M: Memory, R>(allocator: &Allocator<M>, request: impl FnOnce() -> R) -> (Change, R) {
    let before = allocator.stats();
    let began = thread_cpu_time();
    let answer = request();
    let us = (thread_cpu_time() - began).as_secs_f64() * 1e6;
    (Change { us, before, after: allocator.stats() }, answer)
}

/// A request that is served.
fn served<M: Memory>(
    allocator: &Allocator<M>,
    request: impl FnOnce() -> Result<Block<M>, AllocError>,
    proof: impl FnOnce(&Change) -> bool,
) -> f64 {
    let (change, block) = timed(allocator, request);
    let block = block.expect("a rung that serves");
    assert!(proof(&change), "another rung served: {:?} to {:?}", change.before, change.after);
    drop(block);
    change.us
}

fn device(config: SimConfig, settings: Config) -> (Allocator<Simulated>, Sim) {
    Allocator::simulated(config, settings).expect("a config that makes sense")
}

fn tight() -> Config {
    Config::default().slack(1.0)
}

fn crowd<M: Memory>(allocator: &Allocator<M>, count: usize, bytes: u64) -> Vec<Option<Block<M>>> {
    (0..count).map(|_| Some(allocator.alloc(bytes).expect("room"))).collect()
}

/// Blocks of a page each on these streams in turns, of work that never ends by itself.
fn busy(
    count: usize,
    memory: SimConfig,
    config: Config,
) -> (Allocator<Simulated>, [Stream; 2], Vec<Option<Block<Simulated>>>) {
    let (allocator, _) = device(SimConfig { lag: Lag::Never, ..memory }, config);
    let streams = [(); 2].map(|()| allocator.stream().expect("streams"));
    let blocks = (0..count).map(|at| Some(allocator.alloc_on(&streams[at % 2], PAGE).expect("room"))).collect();
    (allocator, streams, blocks)
}

/// Every other block goes.
fn thin<M: Memory>(blocks: &mut [Option<Block<M>>]) {
    blocks.iter_mut().step_by(2).for_each(|block| *block = None);
}

fn hit(live: usize) -> f64 {
    let (allocator, _) = device(SimConfig::default(), tight());
    let mut blocks = crowd(&allocator, live, PAGE);
    blocks[live / 2] = None;
    served(&allocator, || allocator.alloc(PAGE), |change| change.misses() == 0)
}

fn poll(live: usize) -> f64 {
    let (allocator, sim) = device(SimConfig { lag: Lag::Manual, ..SimConfig::default() }, Config::default().slack(2.0));
    let stream = allocator.stream().expect("streams");
    let mut blocks: Vec<_> = (0..live).map(|_| Some(allocator.alloc_on(&stream, PAGE).expect("room"))).collect();
    blocks[live / 2] = None;
    let _marked = allocator.alloc(PAGE).expect("room within the slack"); // its search marks what is not complete
    sim.complete_all();
    let done = |counters: SimCounters| counters.succeeded(Call::Done);
    let before = done(sim.counters());
    served(&allocator, || allocator.alloc(PAGE), |change| change.only_missed() && done(sim.counters()) > before)
}

fn grow_within_slack(live: usize) -> f64 {
    let (allocator, _) = device(SimConfig::default(), tight());
    let _blocks = crowd(&allocator, live, PAGE);
    let proof = |change: &Change| change.grown() == PAGE as i64 && !change.is_beyond(1.0) && change.moved() == 0;
    served(&allocator, || allocator.alloc(PAGE), proof)
}

fn remap(live: usize) -> f64 {
    let (allocator, _) = device(SimConfig::default(), tight());
    let mut blocks = crowd(&allocator, live, PAGE);
    thin(&mut blocks);
    served(&allocator, || allocator.alloc(4 * PAGE), |change| change.moved() >= 3 * PAGE && change.grown() == 0)
}

fn wait(live: usize) -> f64 {
    let (allocator, _streams, mut blocks) = busy(live, SimConfig::default(), tight());
    blocks[live / 2] = None;
    served(&allocator, || allocator.alloc(PAGE), |change| change.waits() == (1, 0) && change.grown() == 0)
}

fn wait_for_joined(live: usize) -> f64 {
    let (allocator, _streams, mut blocks) = busy(live, SimConfig::default(), tight());
    (blocks[live / 2], blocks[live / 2 + 1]) = (None, None);
    served(&allocator, || allocator.alloc(2 * PAGE), |change| change.waits() == (2, 0) && change.grown() == 0)
}

fn grow(live: usize) -> f64 {
    let (allocator, _) = device(SimConfig::default(), tight());
    let mut blocks = crowd(&allocator, 2 * live, PAGE / 2);
    thin(&mut blocks);
    let proof = |change: &Change| change.grown() > 0 && change.is_beyond(1.0) && change.moved() == 0;
    served(&allocator, || allocator.alloc(2 * PAGE), proof)
}

fn other_pools(live: usize) -> f64 {
    let (allocator, _) = device(SimConfig::default(), tight().limit((live as u64 + 4) * PAGE));
    let other = allocator.pool("other", Default::default()).expect("a new pool");
    drop(other.alloc(4 * PAGE).expect("room"));
    let _blocks = crowd(&allocator, live, PAGE);
    let idle = || other.stats().reserved.current;
    let before = idle();
    let proof = |change: &Change| change.grown() as u64 == 4 * PAGE && before - idle() == 4 * PAGE;
    served(&allocator, || allocator.alloc(4 * PAGE), proof)
}

fn return_idle(live: usize) -> f64 {
    let memory = SimConfig { memory: SimMemory::Segments, ..SimConfig::default() };
    let (allocator, sim) = device(memory, tight().limit(live as u64 * PAGE));
    let mut blocks = crowd(&allocator, live, PAGE);
    blocks.truncate(live / 2);
    let calls = || [Call::Release, Call::GrowSegment].map(|call| sim.counters().succeeded(call));
    let before = calls();
    let bytes = (live as u64 / 4) * PAGE;
    let proof = |_: &Change| calls() == [before[0] + live as u64 / 2, before[1] + 1];
    served(&allocator, || allocator.alloc(bytes), proof)
}

fn host_wait(live: usize) -> f64 {
    let memory = SimConfig { host_ordered: true, ..SimConfig::default() };
    let (allocator, _streams, mut blocks) = busy(live, memory, tight().limit(live as u64 * PAGE));
    blocks[live / 2] = None;
    served(&allocator, || allocator.alloc(PAGE), |change| change.waits().1 > 0 && change.grown() == 0)
}

fn hooks(live: usize) -> f64 {
    let (allocator, _) = device(SimConfig::default(), tight().limit(live as u64 * PAGE));
    let mut blocks = crowd(&allocator, live, PAGE);
    let victim = Mutex::new(blocks.pop());
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let _hook = allocator.on_shortage(move |_| {
        counted.fetch_add(1, Relaxed);
        victim.lock().expect("no panic before").take();
    });
    served(&allocator, || allocator.alloc(PAGE), |change| change.only_missed() && calls.load(Relaxed) == 1)
}

fn error(live: usize) -> f64 {
    let (allocator, _) = device(SimConfig::default(), tight().limit(live as u64 * PAGE));
    let _blocks = crowd(&allocator, live, PAGE);
    let (change, answer) = timed(&allocator, || allocator.alloc(PAGE));
    let error = answer.expect_err("a limit that is reached");
    let report = error.report().expect("out of memory");
    assert!(
        report.verdict() == Verdict::LimitReached && report.trail.last().is_some_and(|step| step.rung == Rung::Grow)
    );
    change.us
}

fn host(config: Config) -> Allocator<larder::Host> {
    Allocator::host(config.limit(64 << 30)).expect("host memory")
}

fn host_grow(live: usize, bytes: u64) -> f64 {
    let allocator = host(tight());
    let _blocks = crowd(&allocator, live, PAGE);
    served(&allocator, || allocator.alloc(bytes), |change| change.grown() as u64 == bytes && change.moved() == 0)
}

fn host_grow_page(live: usize) -> f64 {
    host_grow(live, PAGE)
}

fn host_grow_much(live: usize) -> f64 {
    host_grow(live, 32 * PAGE)
}

fn host_remap(live: usize) -> f64 {
    let allocator = host(tight());
    let mut blocks = crowd(&allocator, live, PAGE);
    thin(&mut blocks);
    served(&allocator, || allocator.alloc(4 * PAGE), |change| change.moved() >= 3 * PAGE && change.grown() == 0)
}

/// What is measured, what shows that it was that, and how.
type Row = (&'static str, &'static str, fn(usize) -> f64);

const ROWS: [Row; 15] = [
    ("none: a hit", "no miss counted", hit),
    ("poll completed work", "nothing grown, moved or waited for; events asked", poll),
    ("grow within the slack, 1 page", "grown, within the slack", grow_within_slack),
    ("move free pages, 4 pages", "moved, not grown", remap),
    ("wait on the device, one stream", "1 wait", wait),
    ("wait on the device, a block joined of two streams'", "2 waits", wait_for_joined),
    ("grow to the limit, 2 pages", "grown beyond the slack", grow),
    ("idle memory of other pools, 4 pages", "the other pool shrank", other_pools),
    ("return idle memory (segments)", "half of the segments released, one made", return_idle),
    ("wait for unfinished work (simulated)", "a host wait", host_wait),
    ("reclaim hooks", "called once", hooks),
    ("none serves: the error with its report", "the trail", error),
    ("host: grow within the slack, 2 MiB", "grown", host_grow_page),
    ("host: grow within the slack, 64 MiB", "grown", host_grow_much),
    ("host: move free pages, 4 pages", "moved, not grown", host_remap),
];

fn main() {
    let figures = common::wants_figures();
    if !figures && common::skips() {
        return;
    }
    let columns = if figures { &[(64, 101), (4096, 21)][..] } else { &[(64, 1)][..] };
    let heads: Vec<String> = columns.iter().map(|(live, _)| format!("{live} live: median (p90), us")).collect();
    println!("| rung that serves | shown by | {} |", heads.join(" | "));
    println!("|---|---|{}", "--:|".repeat(columns.len()));
    let mut times = vec![vec![Vec::new(); columns.len()]; ROWS.len()];
    for (at, &(live, samples)) in columns.iter().enumerate() {
        for _ in 0..samples {
            ROWS.iter().zip(&mut times).for_each(|((_, _, run), times)| times[at].push(run(live)));
        }
    }
    for ((name, shown_by, _), mut times) in ROWS.iter().zip(times) {
        let cell = |times: &mut Vec<f64>| {
            times.sort_unstable_by(f64::total_cmp);
            format!("{:.2} ({:.2})", times[times.len() / 2], times[times.len() * 9 / 10])
        };
        println!("| {name} | {shown_by} | {} |", times.iter_mut().map(cell).collect::<Vec<_>>().join(" | "));
    }
}
