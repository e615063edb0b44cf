//! What is measured: pairs of a drop and an allocation in a heap that was laid out beforehand.
//!
//! Everything goes through the public API, over a simulated device whose work is complete at once: no call of a device is in the
//! figures but those by which the device is asked, once in many pairs, which work of several streams is done.

use larder::backend::sim::SimConfig;
use larder::units::{GIB, MIB};
use larder::{Allocator, Block, Config, Simulated, Stream};

/// How the heap is laid out, and what comes and goes in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    /// A hole of 4 KiB for each stream; a block of 4 KiB fills it and leaves.
    ExactHit,
    /// A hole of 16 MiB for each stream; a block of 1 MiB is split off and joins it again.
    SplitAndMerge,
    /// So many holes of 512 B to 8 MiB; of 32 blocks of such sizes the oldest leaves and another comes.
    Holes(usize),
}

impl Layout {
    /// Sizes of the holes.
    fn holes(self, streams: usize) -> Vec<u64> {
        match self {
            Layout::ExactHit => vec![4096; streams],
            Layout::SplitAndMerge => vec![16 * MIB; streams],
            // And one that takes whatever the others do not, so that nothing is ever short.
            Layout::Holes(count) => sizes(count).into_iter().chain([GIB]).collect(),
        }
    }

    /// Sizes of the blocks that come, over and over; and how many of them are there at a time.
    fn guests(self) -> (Vec<u64>, usize) {
        match self {
            Layout::ExactHit => (vec![4096], 1),
            Layout::SplitAndMerge => (vec![MIB], 1),
            Layout::Holes(_) => (sizes(100_003), 32),
        }
    }
}

/// A heap laid out, and the blocks that come and go.
pub struct Stage {
    pub allocator: Allocator<Simulated>,
    /// The streams that take turns; none where there is only the default one.
    streams: Vec<Stream>,
    slots: Vec<Option<Block<Simulated>>>,
    sizes: Vec<u64>,
    turn: usize,
    /// What lies between the holes.
    _walls: Vec<Block<Simulated>>,
}

impl Stage {
    pub fn new(layout: Layout, streams: usize) -> Stage {
        let (allocator, _) = Allocator::simulated(SimConfig::default(), Config::default()).expect("the default config");
        let (sizes, guests) = layout.guests();
        let mut stage = Stage {
            streams: (0..streams).filter(|_| streams > 1).map(|_| allocator.stream().expect("a stream")).collect(),
            slots: (0..guests).map(|_| None).collect(),
            allocator,
            sizes,
            turn: 0,
            _walls: Vec::new(),
        };
        let lay = |(at, size): (usize, &u64)| (stage.block(at, *size), stage.block(at, 4096));
        let (holes, walls): (Vec<_>, Vec<_>) = layout.holes(streams).iter().enumerate().map(lay).unzip();
        drop(holes);
        stage._walls = walls;
        stage
    }

    #[inline]
    fn block(&self, turn: usize, size: u64) -> Block<Simulated> {
        let block = match self.streams.len() {
            0 => self.allocator.alloc(size),
            streams => self.allocator.alloc_on(&self.streams[turn % streams], size),
        };
        block.expect("room on a device of 1 TiB")
    }

    /// So many pairs: the oldest block leaves, another comes.
    pub fn pairs(&mut self, count: usize) {
        for turn in self.turn..self.turn + count {
            let slot = turn % self.slots.len();
            self.slots[slot] = None;
            self.slots[slot] = Some(self.block(turn, self.sizes[turn % self.sizes.len()]));
        }
        self.turn += count;
    }
}

/// Numbers that look random and are always the same (xorshift64*), log-uniform from 512 B to 8 MiB.
fn sizes(count: usize) -> Vec<u64> {
    let mut state = count as u64;
    let mut size = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let share = (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64;
        (9.0 + 14.0 * share).exp2() as u64
    };
    (0..count).map(|_| size()).collect()
}
