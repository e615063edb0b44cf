//! Rows 15 to 17: streams, and what their order costs.

use larder::backend::Backend;
use larder::backend::sim::{Lag, SimConfig, SimMemory, ViolationKind};
use larder::units::MIB;
use larder::{Allocator, Block, Config, Simulated, Stream};

use crate::common::{Rng, runs};
use crate::{grounds, simulated};

const MEMORIES: [SimMemory; 4] = [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged, SimMemory::Segments];

/// Blocks of one stream that another uses too, one after the other. A user who `forgets` does not say so from some block on.
/// Answers the kinds of the broken rules.
fn handed_over(memory: SimMemory, seed: u64, forgets: bool) -> Vec<ViolationKind> {
    let device = SimConfig { memory, capacity: 8 * MIB, lag: Lag::Manual, ..SimConfig::default() };
    let (allocator, sim) = Allocator::simulated(device, Config::default()).unwrap();
    let streams: Vec<Stream> = (0..3).map(|_| allocator.stream().unwrap()).collect();
    let mut rng = Rng::new(seed);
    let forgotten = rng.below(20);
    for owner in 0..40 {
        let (own, other) = (&streams[rng.below(3) as usize], &streams[rng.below(3) as usize]);
        let block: Block<Simulated> = allocator.alloc_on(own, 5 * MIB).unwrap();
        let span = block.span().unwrap();
        let _ = sim.work(own.id(), owner, span);
        let event = sim.record(own.id()).unwrap();
        sim.stream_wait(other.id(), event).unwrap();
        sim.forget(event);
        if !(forgets && owner >= forgotten) {
            block.used_on(other);
        }
        let _ = sim.work(other.id(), owner, span);
        drop(block);
        // Some of it is complete by then, in any order.
        let done = &streams[rng.below(3) as usize];
        sim.complete(done.id(), rng.below(3));
    }
    let waits = allocator.stats().stream_waits + allocator.stats().host_waits;
    assert!(waits > 0, "{memory:?} seed {seed}: nothing was to be ordered");
    sim.violations().into_iter().map(|violation| violation.kind).collect()
}

#[test]
fn t15_no_use_is_forgotten() {
    for memory in MEMORIES {
        for seed in 0..runs(12, 400) {
            assert_eq!(handed_over(memory, seed, false), [], "{memory:?} seed {seed}");
            let broken = handed_over(memory, seed, true);
            assert!(broken.contains(&ViolationKind::Order), "{memory:?} seed {seed}: not seen, {broken:?}");
        }
    }
}

#[test]
fn t16_a_fence_in_a_field() {
    for ground in grounds(&Config::default().limit(4096 * MIB)) {
        let mut small: Vec<Block> = Vec::new();
        for cycle in 0..100 {
            // The field: grows, is cut in two by a small block that stays, and shrinks.
            let size = (128 + cycle) * MIB;
            let field = ground.allocator.alloc(size).unwrap();
            small.push(ground.allocator.alloc(MIB).unwrap());
            drop(field);
            let halves = [size / 2, size / 3].map(|part| ground.allocator.alloc(part).unwrap());
            small.drain(..small.len().saturating_sub(2));
            drop(halves);
        }
        let stats = ground.allocator.stats();
        let ratio = stats.reserved.peak as f64 / stats.live.peak as f64;
        assert!(ratio <= if ground.allocator.capabilities().remap { 1.1 } else { 1.5 }, "{}: {ratio}", ground.name);
        drop(small);
        ground.end();
    }
}

/// Two streams in turn fill 64 MiB in pieces and free them in any order. The streams may be one. Answers whether all of it was
/// served.
fn fits(kind: usize, limit: u64, is_one: bool, synchronise: bool) -> bool {
    let ground = simulated(&Config::default().limit(limit), Lag::Manual).remove(kind);
    let sim = ground.sim.clone().unwrap();
    let first = ground.allocator.stream().unwrap();
    let second = if is_one { first.clone() } else { ground.allocator.stream().unwrap() };
    let mut rng = Rng::new(17);
    for owner in 0..40 {
        let stream = [&first, &second][owner as usize % 2];
        let (mut blocks, mut left) = (Vec::new(), 64);
        while left > 0 {
            let bytes = rng.range(1, left.min(16)) * MIB;
            let Ok(block) = ground.allocator.alloc_on(stream, bytes) else { return false };
            sim.work(stream.id(), owner, block.span().unwrap()).unwrap();
            left -= bytes / MIB;
            blocks.push(block);
        }
        while !blocks.is_empty() {
            blocks.swap_remove(rng.below(blocks.len() as u64) as usize);
        }
        if synchronise {
            sim.complete_all();
        }
    }
    assert!(ground.allocator.stats().reserved.peak <= limit);
    sim.complete_all();
    ground.end();
    true
}

#[test]
fn t17_two_streams_fit_where_one_does() {
    for kind in 0..2 {
        let least = (64..128).find(|limit| fits(kind, limit * MIB, true, true)).expect("one stream fits");
        println!("kind {kind}: {least} MiB");
        // Where pages can be moved, pieces cost nothing.
        assert!(kind == 1 || least == 64, "{least} MiB");
        for synchronise in [true, false] {
            assert!(fits(kind, least * MIB, false, synchronise), "{kind}: {least} MiB do, for one stream");
        }
    }
}
