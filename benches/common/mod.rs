//! What the benches share: the contestants, the traces, and passes measured in turns.
#![allow(dead_code)] // each bench uses a part of it

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use larder::allocator::TagId;
use larder::backend::sim::{Sim, SimConfig};
use larder::trace::replay::thread_cpu_time;
use larder::trace::{Op, Trace};
use larder::{Allocator, Any, Block, Config, Stream};
use offset_allocator::Allocation;

/// Bytes of a unit of the peer, which counts in `u32`: the quantum of the simulated device.
pub const UNIT: u64 = 512;
/// Units of the peer's range: 1 TiB, as large as the simulated device.
pub const UNITS: u32 = 1 << 31;

/// One who plays the same events as the others.
pub trait Contestant {
    /// All events once, from empty to empty.
    fn pass(&mut self);
}

/// This crate, through its public API: handles made and dropped, everything on. The device's clock moves every [`STEP`] events.
pub struct Larder<'a> {
    trace: &'a Trace,
    pub allocator: Allocator<Any>,
    sim: Sim,
    streams: Vec<Stream>,
    tags: Vec<TagId>,
    slots: Vec<Option<Block<Any>>>,
}

/// Events between two movements of the simulated device's clock.
const STEP: usize = 64;

impl<'a> Larder<'a> {
    pub fn new(trace: &'a Trace) -> Self {
        Larder::with(trace, Config::default())
    }

    pub fn with(trace: &'a Trace, config: Config) -> Self {
        let (allocator, sim) = Allocator::simulated(SimConfig::default(), config).expect("a good config");
        let last = trace.streams().max().unwrap_or(0);
        let opened = (1..=last).map(|_| allocator.stream().expect("a stream of the simulated device"));
        let streams = std::iter::once(allocator.default_stream()).chain(opened).collect();
        let tags = (0..=trace.names() as u16).map(|at| trace.name(at).map_or(TagId::NONE, TagId::of)).collect();
        let slots = (0..trace.slots()).map(|_| None).collect();
        Larder { trace, allocator: allocator.erase(), sim, streams, tags, slots }
    }
}

impl Contestant for Larder<'_> {
    fn pass(&mut self) {
        for ops in self.trace.ops().chunks(STEP) {
            for op in ops {
                match *op {
                    Op::Alloc { slot, bytes, stream, align_log2, tag, .. } => {
                        let mut request = self.allocator.request(bytes).align(1 << align_log2);
                        request = request.tag_id(self.tags[usize::from(tag)]);
                        if stream != 0 {
                            request = request.on(&self.streams[usize::from(stream)]);
                        }
                        self.slots[slot as usize] = Some(request.alloc().expect("a trace within the simulated device"));
                    }
                    Op::Free { slot } => self.slots[slot as usize] = None,
                    Op::Use { slot, stream } => {
                        if let Some(block) = &self.slots[slot as usize] {
                            block.used_on(&self.streams[usize::from(stream)]);
                        }
                    }
                    Op::Mark { .. } => {}
                }
            }
            self.sim.advance(ops.len() as u64);
        }
        self.slots.iter_mut().for_each(|slot| *slot = None);
    }
}

/// offset-allocator behind a mutex that nobody else wants. No alignment, streams, tags, sites, statistics or handles.
pub struct Offset<'a> {
    trace: &'a Trace,
    allocator: Mutex<offset_allocator::Allocator<u32>>,
    slots: Vec<Option<Allocation<u32>>>,
}

impl<'a> Offset<'a> {
    pub fn new(trace: &'a Trace) -> Self {
        Offset { trace, allocator: Mutex::new(peer(trace.slots())), slots: vec![None; trace.slots()] }
    }

    fn free(&mut self, slot: usize) {
        if let Some(allocation) = self.slots[slot].take() {
            self.allocator.lock().expect("no panic before").free(allocation);
        }
    }
}

impl Contestant for Offset<'_> {
    fn pass(&mut self) {
        for op in self.trace.ops() {
            match *op {
                Op::Alloc { slot, bytes, .. } => {
                    let given = self.allocator.lock().expect("no panic before").allocate(units(bytes));
                    self.slots[slot as usize] = Some(given.expect("a trace within 1 TiB"));
                }
                Op::Free { slot } => self.free(slot as usize),
                Op::Use { .. } | Op::Mark { .. } => {}
            }
        }
        (0..self.slots.len()).for_each(|slot| self.free(slot));
    }
}

/// The loop alone: what every contestant's figure contains.
pub struct Empty<'a> {
    trace: &'a Trace,
    slots: Vec<u64>,
}

impl<'a> Empty<'a> {
    pub fn new(trace: &'a Trace) -> Self {
        Empty { trace, slots: vec![0; trace.slots()] }
    }
}

impl Contestant for Empty<'_> {
    fn pass(&mut self) {
        for op in self.trace.ops() {
            match *op {
                Op::Alloc { slot, bytes, .. } => self.slots[slot as usize] = black_box(bytes),
                Op::Free { slot } | Op::Use { slot, .. } => self.slots[slot as usize] = black_box(0),
                Op::Mark { .. } => {}
            }
        }
        black_box(&mut self.slots);
    }
}

/// The peer, with room for so many blocks and as many holes.
pub fn peer(blocks: usize) -> offset_allocator::Allocator<u32> {
    peer_within(UNITS, blocks)
}

/// The peer over so many units.
pub fn peer_within(units: u32, blocks: usize) -> offset_allocator::Allocator<u32> {
    offset_allocator::Allocator::with_max_allocs(units, (2 * blocks + 1024).max(128 * 1024) as u32)
}

/// Bytes in the peer's units, rounded up.
pub fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).expect("at most 1 TiB")
}

/// Events of one pass: those of the trace, and the frees of what is live at its end.
pub fn events(trace: &Trace) -> u64 {
    trace.events() + trace.live_at_end()
}

/// Numbers that look random and are the same in every run (xorshift64*).
pub struct Dice(pub u64);

impl Dice {
    /// From 0 to 1.
    pub fn roll(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Log-uniform from 512 B to 8 MiB.
    pub fn size(&mut self) -> u64 {
        (9.0 + 14.0 * self.roll()).exp2() as u64
    }
}

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Effort {
    pub passes: usize,
    pub at_least: Duration,
}

impl Effort {
    /// For figures.
    pub const FULL: Effort = Effort { passes: 9, at_least: Duration::from_millis(50) };
    /// To see that it runs.
    pub const SMOKE: Effort = Effort { passes: 1, at_least: Duration::ZERO };
}

/// Median thread CPU time of a round of each contestant, in nanoseconds. A measured pass repeats rounds to last long enough, and the
/// contestants take turns, so that what disturbs the machine for a while disturbs them all.
pub fn in_turns(contestants: &mut [&mut dyn Contestant], effort: Effort) -> Vec<f64> {
    let mut rounds = Vec::new();
    for contestant in contestants.iter_mut() {
        contestant.pass();
        let began = Instant::now();
        contestant.pass();
        let least = effort.at_least.as_secs_f64() / began.elapsed().as_secs_f64().max(1e-6);
        rounds.push(least.ceil().max(1.0) as u32);
    }
    let mut times = vec![Vec::new(); contestants.len()];
    for _ in 0..effort.passes {
        for (at, contestant) in contestants.iter_mut().enumerate() {
            let began = thread_cpu_time();
            (0..rounds[at]).for_each(|_| contestant.pass());
            times[at].push((thread_cpu_time() - began).as_secs_f64() * 1e9 / f64::from(rounds[at]));
        }
    }
    times.into_iter().map(median).collect()
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

pub fn geometric_mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    (values.map(f64::ln).sum::<f64>() / count).exp()
}

/// Whether figures are wanted (`cargo bench`), not only a run that ends soon (`cargo test --benches`).
pub fn wants_figures() -> bool {
    std::env::args().any(|arg| arg == "--bench") && !skips()
}

/// Whether a test runner or criterion only asks for something else than a run.
pub fn skips() -> bool {
    std::env::args().any(|arg| ["--test", "--list", "--load-baseline", "--profile-time", "--help"].contains(&&*arg))
}

/// The traces, by name: of the folder that `LARDER_TRACES` names, of the shared folder beside the package, or those committed.
pub fn traces() -> Vec<(String, Trace)> {
    let root = root();
    let folders = [
        std::env::var_os("LARDER_TRACES").map(PathBuf::from),
        Some(root.join("../shared/traces")),
        Some(root.join("tests/data")),
    ];
    let files = folders.into_iter().flatten().map(|folder| files_in(&folder)).find(|files| !files.is_empty());
    let load = |path: PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match Trace::load(&path) {
            Ok(trace) => Some((name, trace)),
            Err(error) => {
                eprintln!("left out: {error}");
                None
            }
        }
    };
    files.unwrap_or_default().into_iter().filter_map(load).collect()
}

/// The shortest of the committed traces, for a run that ends soon.
pub fn smoke_traces() -> Vec<(String, Trace)> {
    let path = root().join("tests/data/serving_small.gz");
    Trace::load(path).map(|trace| ("serving_small".to_string(), trace)).into_iter().collect()
}

/// The folder of the package larder: the one that is built, or one above it.
fn root() -> &'static Path {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    built.ancestors().find(|folder| folder.join("tests/data").is_dir()).unwrap_or(built)
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "gz" || extension == "trace"));
    files.sort();
    files
}

/// Whether a trace is of a real model: counted in the means.
pub fn is_real(name: &str, trace: &Trace) -> bool {
    let says = trace.headers().iter().any(|(_, value)| value.contains("synthetic"));
    !says && !name.contains("synthetic")
}
