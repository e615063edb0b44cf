//! Replay: a trace played on an allocator, over any backend and with any config, and what it cost.
//!
//! The completion model of the simulated device: work issued at an event is complete so many events later, on one stream as well.

use std::time::{Duration, Instant};

pub use super::cpu_time::thread_cpu_time;
use super::{Op, Trace};
use crate::allocator::{AllocError, Allocator, Any, Block, Stream, TagId};
use crate::backend::BackendError;
use crate::backend::sim::{Lag, Sim, SimConfig, SimCounters, SimMemory};
use crate::device::{Device, Kind, Unavailable};
use crate::ids::PoolId;
use crate::policy::{Config, PoolConfig};
use crate::snapshot::Snapshot;
use crate::stats::Stats;
use crate::units::align_up;

/// Where a trace is played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A simulated device that moves pages.
    Sim,
    /// A simulated device that gives segments.
    SimSegments,
    /// Real memory.
    Device(Kind),
}

/// How a trace is played.
#[derive(Clone, Debug)]
pub struct ReplayConfig {
    /// Where.
    pub stage: Stage,
    /// Bytes of the simulated device, or the limit on a real one; `None`: as large as wished.
    pub capacity: Option<u64>,
    /// When work on the simulated device is complete.
    pub lag: Lag,
    /// How often the trace is played on one allocator.
    pub repeat: u32,
    /// The allocator's config.
    pub config: Config,
}

impl Default for ReplayConfig {
    fn default() -> Self {
        ReplayConfig { stage: Stage::Sim, capacity: None, lag: Lag::Events(1000), repeat: 1, config: Config::default() }
    }
}

/// Why a replay did not reach the end.
#[derive(Debug, thiserror::Error)]
#[error("at event {event}: {error}")]
pub struct Stopped {
    /// Number of the event, from 1; 0 when the replay could not begin.
    pub event: u64,
    /// What the allocator said.
    pub error: AllocError,
}

/// What a replay used, in its last pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The figures of the last pass: peaks are since its beginning, counts of waits and moves too.
    pub stats: Stats,
    /// Calls of the simulated device in the last pass; what is counted as held now or at most is as of its end.
    pub device: Option<SimCounters>,
    /// Bytes that were asked for in one pass.
    pub allocated: u64,
    /// The peaks of each pass, in order.
    pub passes: Vec<Pass>,
}

/// The peaks of one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Bytes.
    pub peak_reserved: u64,
    /// Bytes of addresses in use.
    pub peak_addresses: u64,
    /// Bytes of pages moved.
    pub moved: u64,
}

/// A trace's handles on one allocator: what is live, its streams and its pools.
pub struct Player<'a> {
    trace: &'a Trace,
    allocator: Allocator<Any>,
    sim: Option<Sim>,
    blocks: Vec<Option<Block<Any>>>,
    streams: Vec<Option<Stream>>,
    pools: Vec<PoolId>,
    tags: Vec<TagId>,
}

impl<'a> Player<'a> {
    /// Opens the streams and pools that a trace names. Stream 0 is the default stream.
    ///
    /// # Errors
    /// What the allocator says.
    pub fn new(trace: &'a Trace, allocator: &Allocator<Any>, sim: Option<Sim>) -> Result<Self, AllocError> {
        let count = trace.streams().max().map_or(0, usize::from) + 1;
        let mut streams: Vec<Option<Stream>> = (0..count).map(|_| None).collect();
        for stream in trace.streams() {
            streams[usize::from(stream)] =
                Some(if stream == 0 { allocator.default_stream() } else { allocator.stream()? });
        }
        let names = trace.names() + 1;
        let mut pools = vec![allocator.pool_id(); names];
        for number in trace.pools() {
            if let Some(name) = trace.name(number) {
                pools[usize::from(number)] = allocator.pool(name, PoolConfig::default())?.pool_id();
            }
        }
        let tags = (0..names).map(|at| trace.name(at as u16).map_or(TagId::NONE, TagId::of)).collect();
        let blocks = (0..trace.slots()).map(|_| None).collect();
        Ok(Player { trace, allocator: allocator.clone(), sim, blocks, streams, pools, tags })
    }

    /// Plays the trace once. `step` is the number of events between two movements of the simulated clock; `each` sees the
    /// number of events done, now and then, and may end the replay by answering `false`.
    ///
    /// # Errors
    /// The first request that could not be served. What is live stays live.
    pub fn play(&mut self, step: u64, mut each: impl FnMut(u64) -> bool) -> Result<(), Stopped> {
        let (mut done, mut left) = (0, step);
        for op in self.trace.ops() {
            if !matches!(op, Op::Mark { .. }) {
                done += 1;
                left -= 1;
                if left == 0 {
                    left = step;
                    if let Some(sim) = &self.sim {
                        sim.advance(step);
                    }
                    if done % (step * 4096) == 0 && !each(done) {
                        return Ok(());
                    }
                }
            }
            self.op(op).map_err(|error| Stopped { event: done, error })?;
        }
        Ok(())
    }

    #[inline]
    /// Plays one event.
    ///
    /// # Errors
    /// What the allocator says.
    pub fn op(&mut self, op: &Op) -> Result<(), AllocError> {
        match *op {
            Op::Alloc { slot, bytes, stream, align_log2, tag, pool } => {
                let mut request = self.allocator.request(bytes).align(1 << align_log2);
                if stream != 0
                    && let Some(stream) = &self.streams[usize::from(stream)]
                {
                    request = request.on(stream);
                }
                if tag != 0 {
                    request = request.tag_id(self.tags[usize::from(tag)]);
                }
                if pool != 0 {
                    request = request.pool(self.pools[usize::from(pool)]);
                }
                self.blocks[slot as usize] = Some(request.alloc()?);
            }
            Op::Free { slot } => self.blocks[slot as usize] = None,
            Op::Use { slot, stream } => {
                if let (Some(block), Some(stream)) = (&self.blocks[slot as usize], &self.streams[usize::from(stream)]) {
                    block.used_on(stream);
                }
            }
            Op::Mark { .. } => {}
        }
        Ok(())
    }

    /// Frees what is live, in the order of the slots.
    pub fn free_all(&mut self) {
        self.blocks.iter_mut().for_each(|block| *block = None);
    }
}

/// An allocator as a [`ReplayConfig`] asks for it.
///
/// # Errors
/// A config that contradicts itself, or a device that cannot be had ([`Device::open`] tells that in types).
pub fn stage(config: &ReplayConfig) -> Result<(Allocator<Any>, Option<Sim>), AllocError> {
    let mut settings = config.config.clone();
    let memory = match &config.stage {
        Stage::Device(kind) => {
            settings.limit = config.capacity.or(settings.limit);
            return match Device::open(kind, settings) {
                Ok(device) => Ok((device.allocator().clone(), None)),
                Err(Unavailable::Refused(error)) => Err(error),
                Err(reason) => Err(BackendError::Driver { call: "open", reason: reason.to_string(), code: 0 }.into()),
            };
        }
        Stage::Sim => SimMemory::Alias,
        Stage::SimSegments => SimMemory::Segments,
    };
    let capacity = config.capacity.unwrap_or(SimConfig::default().capacity);
    let device = SimConfig { capacity, memory, lag: config.lag, ..SimConfig::default() };
    let (allocator, sim) = Allocator::simulated(device, settings)?;
    Ok((allocator.erase(), Some(sim)))
}

/// Plays a trace `repeat` times on one new allocator, freeing what is live after each pass, and reports the last.
///
/// # Errors
/// The first request that could not be served, or a config that contradicts itself (at event 0).
pub fn replay(trace: &Trace, config: &ReplayConfig, mut each: impl FnMut(u64) -> bool) -> Result<Outcome, Stopped> {
    let start = |error| Stopped { event: 0, error };
    let (allocator, sim) = stage(config).map_err(start)?;
    let mut player = Player::new(trace, &allocator, sim.clone()).map_err(start)?;
    let mut passes = Vec::new();
    let mut before = Stats::default();
    let mut device_before = None;
    let repeat = config.repeat.max(1);
    for pass in 0..repeat {
        if pass > 0 {
            player.free_all();
            allocator.reset_peak();
        }
        before = allocator.total_stats();
        device_before = sim.as_ref().map(Sim::counters);
        player.play(1, |done| each(u64::from(pass) * trace.events() + done))?;
        let after = allocator.total_stats();
        passes.push(Pass {
            peak_reserved: after.reserved.peak,
            peak_addresses: after.addresses_peak,
            moved: after.moved - before.moved,
        });
    }
    let mut stats = allocator.total_stats();
    stats.moved -= before.moved;
    stats.stream_waits -= before.stream_waits;
    stats.host_waits -= before.host_waits;
    stats.misses -= before.misses;
    let device = sim.map(|sim| sim.counters()).zip(device_before).map(|(after, before)| after.since(&before));
    Ok(Outcome { stats, device, allocated: trace.total_allocated(), passes })
}

/// The state at the moment when most is live.
///
/// # Errors
/// As [`replay`].
pub fn snapshot_at_peak(trace: &Trace, config: &ReplayConfig) -> Result<Snapshot, Stopped> {
    let start = |error| Stopped { event: 0, error };
    let (allocator, sim) = stage(config).map_err(start)?;
    let mut player = Player::new(trace, &allocator, sim.clone()).map_err(start)?;
    let (mut peak, mut at) = (0, 0);
    let mut live = 0;
    let mut sizes = vec![0; trace.slots()];
    for (index, op) in trace.ops().iter().enumerate() {
        match *op {
            Op::Alloc { slot, bytes, .. } => {
                sizes[slot as usize] = bytes;
                live += bytes;
            }
            Op::Free { slot } => live -= sizes[slot as usize],
            _ => {}
        }
        if live > peak {
            (peak, at) = (live, index);
        }
    }
    for (index, op) in trace.ops()[..(at + 1).min(trace.ops().len())].iter().enumerate() {
        if let Some(sim) = &sim {
            sim.advance(1);
        }
        player.op(op).map_err(|error| Stopped { event: index as u64, error })?;
    }
    Ok(allocator.snapshot())
}

/// The least capacity, in whole pages, on which the trace passes. Searches by halving; what it answers passes, and one page less
/// than some tried capacity above it does not.
pub fn least_capacity(trace: &Trace, config: &ReplayConfig, mut each: impl FnMut(u64) -> bool) -> Option<u64> {
    let page = config.config.page.unwrap_or(SimConfig::default().page);
    let passes = |pages: u64, each: &mut dyn FnMut(u64) -> bool| {
        let mut config = config.clone();
        config.capacity = Some(pages * page);
        replay(trace, &config, &mut *each).is_ok()
    };
    let mut low = align_up(trace.peak_requested(), page)? / page;
    let mut high = (low + low / 64).max(low + 1);
    while !passes(high, &mut each) {
        low = high + 1;
        high = high.checked_mul(2)?;
        if high > u64::MAX / page / 2 {
            return None;
        }
    }
    while low < high {
        let middle = low + (high - low) / 2;
        if passes(middle, &mut each) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Some(high * page)
}

/// How long warm passes take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Least wall time of a pass, in nanoseconds for each event.
    pub ns_wall_least: f64,
    /// Median of the thread's CPU time of a pass, in nanoseconds for each event.
    pub ns_cpu_median: f64,
    /// Passes that were measured.
    pub passes: u32,
}

/// Times whole warm passes through the public API: handles made and dropped, everything on. Each measured pass plays the trace as often
/// as it takes to fill `at_least`.
///
/// # Errors
/// As [`replay`].
pub fn time(trace: &Trace, config: &ReplayConfig, passes: u32, at_least: Duration) -> Result<Timing, Stopped> {
    let start = |error| Stopped { event: 0, error };
    let (allocator, sim) = stage(config).map_err(start)?;
    let mut player = Player::new(trace, &allocator, sim).map_err(start)?;
    let once = |player: &mut Player<'_>| -> Result<(), Stopped> {
        player.play(64, |_| true)?;
        player.free_all();
        Ok(())
    };
    once(&mut player)?;
    let warm = Instant::now();
    once(&mut player)?;
    let rounds = (at_least.as_secs_f64() / warm.elapsed().as_secs_f64().max(1e-6)).ceil().max(1.0) as u32;
    let events = (trace.events() + trace.live_at_end()) as f64 * f64::from(rounds);
    let (mut wall, mut cpu) = (f64::INFINITY, Vec::new());
    for _ in 0..passes.max(1) {
        let (began, cpu_began) = (Instant::now(), thread_cpu_time());
        for _ in 0..rounds {
            once(&mut player)?;
        }
        wall = wall.min(began.elapsed().as_secs_f64());
        cpu.push((thread_cpu_time() - cpu_began).as_secs_f64());
    }
    cpu.sort_unstable_by(f64::total_cmp);
    Ok(Timing {
        ns_wall_least: wall * 1e9 / events,
        ns_cpu_median: cpu[cpu.len() / 2] * 1e9 / events,
        passes: passes.max(1),
    })
}
