//! Placement among holes, few and many, of mixed or of equal sizes: larder and its peers.
//!
//! `cargo bench --bench holes` prints the tables that `BENCHMARKS.md` holds: means are medians of thread CPU time measured in turns;
//! p50 and p99 are of single pairs (a free and an allocation) by wall time, timer included.

use std::time::{Duration, Instant};

use larder::backend::sim::SimConfig;
use larder::{Allocator, Block, Config, Simulated};
use larder_peers::common::{self, Contestant, Dice, Effort};
use larder_peers::in_band::{Rlsf, Talcs};
use larder_peers::out_of_band::{Buddy, Offset, Ranges, Virtual};
use larder_peers::vulkan::Gpu;
use larder_peers::{Locked, Placer, heap_bytes};

/// Blocks that come and go.
const GUESTS: usize = 32;
/// Pairs of one pass.
const PAIRS: usize = 2000;
/// Nanoseconds of a pair beyond which a contestant is not asked to play among more holes.
const PATIENCE: f64 = 50_000.0;
/// Pairs timed one by one, in this many turns at most, and no longer than this for each contestant.
const SAMPLES: (usize, Duration) = (20, Duration::from_millis(500));

/// What lies about.
#[derive(Clone, Copy, Debug)]
enum Sizes {
    /// Holes, walls and guests log-uniform from 512 B to 8 MiB.
    Mixed,
    /// Holes and walls of 1 KiB; one guest in three fits every hole, the others, of 2 KiB, none.
    Equal,
}

impl Sizes {
    fn wall(self, dice: &mut Dice) -> u64 {
        match self {
            Sizes::Mixed => dice.size(),
            Sizes::Equal => 1024,
        }
    }

    fn guest(self, at: usize, dice: &mut Dice) -> u64 {
        match self {
            Sizes::Mixed => self.wall(dice),
            Sizes::Equal if at.is_multiple_of(3) => 1024,
            Sizes::Equal => 2048,
        }
    }
}

/// This crate as a placer: its public API over a simulated device, everything on.
struct Larder(Allocator<Simulated>);

impl Placer for Larder {
    type Block = Block<Simulated>;

    fn over(range: u64, _: usize) -> Self {
        let device = SimConfig { capacity: range, ..SimConfig::default() };
        Larder(Allocator::simulated(device, Config::default()).expect("the default config").0)
    }

    #[inline]
    fn place(&mut self, bytes: u64) -> Option<Self::Block> {
        self.0.alloc(bytes).ok()
    }

    #[inline]
    fn free(&mut self, block: Self::Block) {
        drop(block);
    }

    fn own_bytes(&self) -> Option<u64> {
        Some(self.0.own_memory())
    }
}

/// A placer with holes.
struct Holed<'a, P: Placer> {
    placer: P,
    guests: Vec<Option<P::Block>>,
    sizes: &'a [u64],
    next: usize,
    /// Bytes of own memory for each live block.
    own_bytes: u64,
    _walls: Vec<Option<P::Block>>,
}

impl<'a, P: Placer> Holed<'a, P> {
    fn new(holes: usize, kind: Sizes, sizes: &'a [u64]) -> Self {
        let mut walls = Vec::with_capacity(2 * holes);
        let guests = (0..GUESTS).map(|_| None).collect();
        let before = heap_bytes();
        let mut placer = P::over(common::UNIT * u64::from(common::UNITS), 2 * holes + GUESTS);
        let mut dice = Dice(holes as u64 | 1);
        walls.extend((0..2 * holes).map(|_| Some(placer.place(kind.wall(&mut dice)).expect("room"))));
        for wall in walls.iter_mut().step_by(2) {
            placer.free(wall.take().expect("placed above"));
        }
        let own = placer.own_bytes().unwrap_or_else(|| heap_bytes().saturating_sub(before));
        Holed { placer, guests, sizes, next: 0, own_bytes: own / holes as u64, _walls: walls }
    }

    #[inline]
    fn pair(&mut self) {
        let guest = self.next % GUESTS;
        if let Some(block) = self.guests[guest].take() {
            self.placer.free(block);
        }
        self.guests[guest] = Some(self.placer.place(self.sizes[self.next % self.sizes.len()]).expect("room"));
        self.next += 1;
    }
}

impl<P: Placer> Contestant for Holed<'_, P> {
    fn pass(&mut self) {
        (0..PAIRS).for_each(|_| self.pair());
    }
}

/// A contestant whose single pairs can be timed.
trait Sampled: Contestant {
    /// Times single pairs, in nanoseconds.
    fn sample(&mut self, into: &mut Vec<u64>);
    fn own_bytes(&self) -> u64;
}

impl<P: Placer> Sampled for Holed<'_, P> {
    fn sample(&mut self, into: &mut Vec<u64>) {
        for _ in 0..PAIRS {
            let began = Instant::now();
            self.pair();
            into.push(began.elapsed().as_nanos() as u64);
        }
    }

    fn own_bytes(&self) -> u64 {
        self.own_bytes
    }
}

type Make = for<'a> fn(usize, Sizes, &'a [u64]) -> Box<dyn Sampled + 'a>;

fn entry<P: Placer + 'static>(name: &'static str) -> (&'static str, Make) {
    (name, |holes, kind, sizes| Box::new(Holed::<P>::new(holes, kind, sizes)))
}

/// What one contestant did among so many holes.
struct Cell {
    /// Nanoseconds of a pair.
    mean: f64,
    p50: u64,
    p99: u64,
    own_bytes: u64,
}

impl Cell {
    fn is_quick(&self) -> bool {
        self.mean < PATIENCE
    }
}

fn measure(makes: &[Make], holes: usize, kind: Sizes, sizes: &[u64], effort: Effort) -> Vec<Cell> {
    let mut contestants: Vec<_> = makes.iter().map(|make| make(holes, kind, sizes)).collect();
    let mut turns: Vec<&mut dyn Contestant> = contestants.iter_mut().map(|one| &mut **one as _).collect();
    let times = common::in_turns(&mut turns, effort);
    let mut samples = vec![Vec::new(); contestants.len()];
    let mut spent = vec![Duration::ZERO; contestants.len()];
    for _ in 0..SAMPLES.0 {
        for (at, contestant) in contestants.iter_mut().enumerate() {
            if spent[at] >= SAMPLES.1 {
                continue;
            }
            let began = Instant::now();
            contestant.sample(&mut samples[at]);
            spent[at] += began.elapsed();
        }
    }
    let cells = times.iter().zip(&mut samples).zip(&contestants).map(|((time, samples), contestant)| {
        samples.sort_unstable();
        let at = |share: usize| samples[samples.len() * share / 100];
        Cell { mean: time / PAIRS as f64, p50: at(50), p99: at(99), own_bytes: contestant.own_bytes() }
    });
    cells.collect()
}

fn table(entries: &[(&str, Make)], counts: &[usize], kind: Sizes, effort: Effort) {
    let mut dice = Dice(7);
    let sizes: Vec<u64> = (0..100_000).map(|at| kind.guest(at, &mut dice)).collect();
    let mut columns: Vec<Vec<Option<Cell>>> = Vec::new();
    for &holes in counts {
        let plays = |at: usize| columns.last().is_none_or(|fewer| fewer[at].as_ref().is_some_and(Cell::is_quick));
        let (playing, makes): (Vec<usize>, Vec<Make>) =
            entries.iter().enumerate().filter(|(at, _)| plays(*at)).map(|(at, (_, make))| (at, *make)).unzip();
        let mut column: Vec<Option<Cell>> = entries.iter().map(|_| None).collect();
        for (at, cell) in playing.into_iter().zip(measure(&makes, holes, kind, &sizes, effort)) {
            column[at] = Some(cell);
        }
        columns.push(column);
    }
    let heads: Vec<String> = counts.iter().map(|holes| format!("{holes} holes: mean / p50 / p99")).collect();
    println!("| {kind:?} | {} | larder's mean over it | own bytes a live block |", heads.join(" | "));
    println!("|---|{}--:|--:|", "--:|".repeat(counts.len()));
    for (at, (name, _)) in entries.iter().enumerate() {
        let cell = |column: &Vec<Option<Cell>>| match &column[at] {
            Some(Cell { mean, p50, p99, .. }) => format!("{mean:.0} / {p50} / {p99}"),
            None => "-".to_string(),
        };
        let cells: Vec<String> = columns.iter().map(cell).collect();
        let last = columns.iter().rev().find_map(|column| column[0].as_ref().zip(column[at].as_ref()));
        let (larder, own) = last.expect("all play in the first column");
        println!("| {name} | {} | {:.3} | {} |", cells.join(" | "), larder.mean / own.mean, own.own_bytes);
    }
    println!();
}

fn main() {
    let figures = common::wants_figures();
    if !figures && common::skips() {
        return;
    }
    let (counts, effort) = if figures {
        (&[100, 4096, 16_384, 65_536][..], Effort { passes: 5, at_least: Duration::from_millis(20) })
    } else {
        (&[100][..], Effort::SMOKE)
    };
    let entries = [
        entry::<Larder>("larder"),
        entry::<Offset>("offset-allocator, no lock"),
        entry::<Locked<Offset>>("offset-allocator"),
        entry::<Locked<Rlsf>>("rlsf"),
        entry::<Locked<Talcs>>("talc"),
        entry::<Locked<Virtual>>("VMA VirtualBlock"),
        entry::<Locked<Buddy>>("buddy_system_allocator"),
        entry::<Locked<Ranges>>("range-alloc"),
        entry::<Locked<Gpu>>("gpu-allocator"),
    ];
    for kind in [Sizes::Mixed, Sizes::Equal] {
        table(&entries, counts, kind, effort);
    }
}
