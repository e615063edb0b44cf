//! Latency and own memory with few and with many holes: neither may depend on their number.
//!
//! Holes of 512 B to 8 MiB (log-uniform) lie between live blocks; 32 further blocks of such sizes come and go. `cargo bench --bench holes`
//! prints the table that `BENCHMARKS.md` holds, medians of thread CPU time measured in turns.

mod common;

use common::{Contestant, Dice, Effort};
use larder::backend::sim::SimConfig;
use larder::{Allocator, Block, Config, Simulated};
use offset_allocator::Allocation;
use std::sync::Mutex;

/// Blocks that come and go.
const GUESTS: usize = 32;

/// The sizes of the blocks that come and go, and how many times one does in a pass.
struct Guests {
    sizes: Vec<u64>,
}

/// This crate over a simulated device large enough, with holes.
struct Larder<'a> {
    guests: &'a Guests,
    allocator: Allocator<Simulated>,
    /// What is between the holes.
    walls: Vec<Block<Simulated>>,
    slots: Vec<Option<Block<Simulated>>>,
}

impl<'a> Larder<'a> {
    fn new(holes: usize, guests: &'a Guests) -> Self {
        let device = SimConfig { capacity: common::UNIT * u64::from(common::UNITS), ..SimConfig::default() };
        let (allocator, _) = Allocator::simulated(device, Config::default()).expect("the default config");
        let mut dice = Dice(holes as u64 | 1);
        let all: Vec<_> = (0..2 * holes).map(|_| allocator.alloc(dice.size()).expect("room")).collect();
        let walls = all.into_iter().enumerate().filter(|(at, _)| at % 2 == 1).map(|(_, block)| block).collect();
        Larder { guests, allocator, walls, slots: (0..GUESTS).map(|_| None).collect() }
    }

    fn bytes_per_block(&self) -> u64 {
        self.allocator.own_memory() / (self.walls.len() + GUESTS) as u64
    }
}

impl Contestant for Larder<'_> {
    fn pass(&mut self) {
        for (at, size) in self.guests.sizes.iter().enumerate() {
            self.slots[at % GUESTS] = None;
            self.slots[at % GUESTS] = Some(self.allocator.alloc(*size).expect("room"));
        }
    }
}

/// offset-allocator behind a mutex, with the same holes.
struct Offset<'a> {
    guests: &'a Guests,
    allocator: Mutex<offset_allocator::Allocator<u32>>,
    slots: Vec<Option<Allocation<u32>>>,
}

impl<'a> Offset<'a> {
    fn new(holes: usize, guests: &'a Guests) -> Self {
        let mut allocator = common::peer(2 * holes + GUESTS);
        let mut dice = Dice(holes as u64 | 1);
        let all: Vec<_> =
            (0..2 * holes).map(|_| allocator.allocate(common::units(dice.size())).expect("room")).collect();
        all.into_iter().step_by(2).for_each(|block| allocator.free(block));
        Offset { guests, allocator: Mutex::new(allocator), slots: vec![None; GUESTS] }
    }
}

impl Contestant for Offset<'_> {
    fn pass(&mut self) {
        for (at, size) in self.guests.sizes.iter().enumerate() {
            if let Some(block) = self.slots[at % GUESTS].take() {
                self.allocator.lock().expect("no panic before").free(block);
            }
            let given = self.allocator.lock().expect("no panic before").allocate(common::units(*size));
            self.slots[at % GUESTS] = Some(given.expect("room"));
        }
    }
}

fn main() {
    let figures = common::wants_figures();
    if !figures && common::skips() {
        return;
    }
    let (effort, counts, turns) =
        if figures { (Effort::FULL, &[100, 4096, 65_536][..], 100_000) } else { (Effort::SMOKE, &[100][..], 1000) };
    let mut dice = Dice(7);
    let guests = Guests { sizes: (0..turns).map(|_| dice.size()).collect() };
    println!(
        "| holes | larder, ns an event | offset-allocator + mutex, ns an event | ratio | own bytes a live block |"
    );
    println!("|--:|--:|--:|--:|--:|");
    for holes in counts {
        let (mut larder, mut offset) = (Larder::new(*holes, &guests), Offset::new(*holes, &guests));
        let times = common::in_turns(&mut [&mut larder, &mut offset], effort);
        let [larder_ns, offset_ns] = [times[0], times[1]].map(|time| time / (2 * turns) as f64);
        let (ratio, bytes) = (larder_ns / offset_ns, larder.bytes_per_block());
        println!("| {holes} | {larder_ns:.1} | {offset_ns:.1} | {ratio:.3} | {bytes} |");
    }
}
