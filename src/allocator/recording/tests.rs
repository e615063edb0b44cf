//! Random programs with several open recordings over a simulated device with one queue: a recording's uses reach the queue when it is
//! submitted, in whatever order, and no use may come behind one of a younger owner of the same bytes.

use std::collections::BTreeMap;

use super::OpenRecording;
use crate::allocator::{Allocator, Block, Simulated};
use crate::backend::Span;
use crate::backend::sim::{Lag, Sim, SimConfig, SimMemory, SimStreams};
use crate::ids::StreamId;
use crate::policy::Config;
use crate::snapshot::{Outcome, Rung};
use crate::units::{KIB, MIB};

/// An owner's number and the bytes it used.
type Use = (u64, Span);

struct World {
    allocator: Allocator<Simulated>,
    sim: Sim,
    held: Vec<(Block<Simulated>, u64)>,
    open: Vec<(OpenRecording, Vec<Use>)>,
    /// The youngest owner whose use of a quantum was submitted.
    youngest: BTreeMap<(u32, u64), u64>,
    owners: u64,
}

fn one_queue(memory: SimMemory, lag: Lag, config: Config) -> (Allocator<Simulated>, Sim) {
    let device = SimConfig { memory, lag, streams: SimStreams::One, ..SimConfig::default() };
    Allocator::simulated(device, config).unwrap()
}

impl World {
    fn new(memory: SimMemory, lag: Lag) -> World {
        let config = Config { segment_min: MIB, ..Config::default() };
        let (allocator, sim) = one_queue(memory, lag, config);
        World { allocator, sim, held: Vec::new(), open: Vec::new(), youngest: BTreeMap::new(), owners: 0 }
    }

    fn submit(&mut self, (owner, span): Use) {
        self.sim.work(StreamId(0), owner, span).unwrap();
        for quantum in span.offset / 512..(span.offset + span.size).div_ceil(512) {
            let youngest = self.youngest.entry((span.region.0, quantum)).or_default();
            assert!(*youngest <= owner, "owner {owner} uses {span:?} behind its next owner {youngest}");
            *youngest = owner;
        }
    }

    /// A use goes to the queue now, or into one of the recordings.
    fn touch(&mut self, at: usize, choice: usize) {
        let (block, owner) = &self.held[at];
        let what = (*owner, block.span().unwrap());
        match self.open.get_mut(choice) {
            Some((_, uses)) => uses.push(what),
            None => self.submit(what),
        }
    }

    fn close(&mut self, at: usize, submitted: bool) {
        let (recording, uses) = self.open.swap_remove(at);
        if submitted {
            uses.into_iter().for_each(|what| self.submit(what));
        }
        drop(recording);
    }

    fn step(&mut self, random: &mut impl FnMut(u64) -> u64) {
        let choice = random(5) as usize;
        match random(20) {
            0..=7 => {
                let most = if random(8) == 0 { MIB } else { 40 * KIB };
                let bytes = 1 + random(most);
                let block = self.allocator.alloc(bytes).unwrap();
                self.owners += 1;
                self.held.push((block, self.owners));
                self.touch(self.held.len() - 1, choice);
            }
            8..=10 if !self.held.is_empty() => self.touch(random(self.held.len() as u64) as usize, choice),
            11..=16 if !self.held.is_empty() => {
                self.held.swap_remove(random(self.held.len() as u64) as usize);
            }
            17 if self.open.len() < 4 => {
                self.open.push((OpenRecording::new(&self.allocator.core).unwrap(), Vec::new()))
            }
            18 if !self.open.is_empty() => {
                let at = random(self.open.len() as u64) as usize;
                // One in eight is given up; its blocks are then never used.
                self.close(at, random(8) > 0);
            }
            19 if random(4) == 0 => {
                self.allocator.trim(random(4) * MIB).unwrap();
            }
            _ => {}
        }
    }

    fn end(mut self) {
        while !self.open.is_empty() {
            self.close(0, true);
        }
        self.held.clear();
        self.sim.complete_all();
        self.allocator.purge().unwrap();
        self.allocator.check().unwrap();
        assert_eq!(self.allocator.stats().reserved.current, 0);
        assert_eq!(self.sim.violations(), []);
    }
}

fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |bound| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    }
}

#[test]
fn what_an_open_recording_may_touch_is_nobody_elses() {
    for memory in [SimMemory::Segments, SimMemory::Alias, SimMemory::Remap] {
        for lag in [Lag::Events(0), Lag::Events(50), Lag::Never] {
            for seed in 0..2 {
                let mut world = World::new(memory, lag);
                let mut random = numbers(seed);
                for _ in 0..3_000 {
                    world.step(&mut random);
                }
                world.allocator.check().unwrap();
                world.end();
            }
        }
    }
}

#[test]
fn memory_behind_an_open_recording_is_pending_until_it_closes_and_the_report_says_so() {
    let (allocator, _) = one_queue(SimMemory::Segments, Lag::Events(0), Config::default().limit(8 * MIB));
    let recording = OpenRecording::new(&allocator.core).unwrap();
    drop(allocator.alloc(8 * MIB).unwrap());
    assert_eq!(allocator.stats().pending.current, 8 * MIB);
    let error = allocator.alloc(8 * MIB).unwrap_err();
    let waited =
        error.report().unwrap().trail.iter().find(|step| step.rung == Rung::HostWait).map(|step| &step.outcome);
    assert!(matches!(waited, Some(Outcome::NotApplicable { reason }) if reason.contains("recorded")), "{error}");
    drop(recording);
    let misses = allocator.stats().misses;
    let address = allocator.alloc(8 * MIB).unwrap().address();
    assert_eq!(
        allocator.stats().misses,
        misses,
        "what was submitted is in the queue's order: the first search finds it"
    );
    // A recording opened later has touched nothing of it, and its number may be the same.
    let _later = OpenRecording::new(&allocator.core).unwrap();
    assert_eq!(allocator.pool("other", Default::default()).unwrap().stats().live.current, 0);
    assert_eq!(allocator.alloc(8 * MIB).map(|block| block.address()).ok(), Some(address));
}
