//! Laws of the heap: random programs against a shadow of plain intervals, and what holds of it in all circumstances.

mod common;
#[path = "heap_laws/fences.rs"]
mod fences;
#[path = "heap_laws/jobs.rs"]
mod jobs;
#[path = "heap_laws/program.rs"]
mod program;
#[path = "heap_laws/shadow.rs"]
mod shadow;

use std::collections::BTreeSet;

use common::{Rng, runs};
use fences::NoFences;
use larder::heap::{Heap, State};
use larder::ids::{Access, FenceId, RegionId, StreamId};
use larder::units::{KIB, MIB};
use program::{LARGE, MIDDLE, PARTS, Program, SMALL, Shape};

const NOW: Access = Access::Now(StreamId(0));

fn drive(shape: Shape, seed: u64, steps: u64) -> [u64; PARTS.len()] {
    let mut program = Program::new(shape, Rng::new(seed));
    program.run(steps);
    program.end()
}

#[test]
fn short_programs_agree_with_the_shadow_after_every_step() {
    let mut done = [0; PARTS.len()];
    for seed in 0..runs(100, 4000) {
        let once = drive(SMALL, seed, 300);
        (0..PARTS.len()).for_each(|part| done[part] += once[part]);
    }
    assert!(done.iter().all(|times| *times >= 10), "a part of the program never did anything: {done:?}");
}

#[test]
fn long_programs_agree_with_the_shadow() {
    for seed in 0..runs(2, 10) {
        drive(MIDDLE, 1000 + seed, runs(15_000, 600_000));
        drive(LARGE, 2000 + seed, runs(15_000, 600_000));
    }
}

fn filled(quantum: u64, size: u64) -> Heap<u64> {
    let mut heap = Heap::new(quantum);
    heap.add_region(RegionId(0), size, None).unwrap();
    heap
}

fn take(heap: &mut Heap<u64>, size: u64) -> u32 {
    heap.take(size.next_multiple_of(heap.quantum()), NOW, &mut NoFences).unwrap()
}

fn put(heap: &mut Heap<u64>, index: u32) {
    heap.put(index, FenceId::NONE, &mut NoFences);
}

/// TensorFlow's NoDups, at a quantum of 256: 1 to 1023 bytes, each block its own, 654,336 bytes in all.
#[test]
fn blocks_of_all_small_sizes_are_distinct_and_exact() {
    let mut heap = filled(256, MIB);
    let blocks: Vec<u32> = (1..1024).map(|size| take(&mut heap, size)).collect();
    let offsets: BTreeSet<u64> = blocks.iter().map(|index| heap.place(*index).1).collect();
    assert_eq!(offsets.len(), blocks.len());
    assert_eq!(blocks.iter().map(|index| heap.place(*index).2).sum::<u64>(), 654_336);
    assert_eq!(heap.largest_free(), MIB - 654_336);
    heap.check().unwrap();
}

/// TensorFlow's AllocateAndFree: every other of 255 blocks is freed and made again; none overlaps another.
#[test]
fn blocks_made_in_holes_do_not_overlap() {
    let mut rng = Rng::new(7);
    let mut heap = filled(256, 64 * MIB);
    let mut blocks: Vec<u32> = (0..255).map(|_| take(&mut heap, rng.range(1, 100_000))).collect();
    let odd: Vec<u32> = (0..127).map(|at| blocks.remove(at + 1)).collect();
    odd.into_iter().for_each(|index| put(&mut heap, index));
    heap.check().unwrap();
    blocks.extend((0..127).map(|_| take(&mut heap, rng.range(1, 100_000))));
    heap.check().unwrap();
    let mut places: Vec<(u64, u64)> = blocks.iter().map(|b| (heap.place(*b).1, heap.place(*b).2)).collect();
    places.sort_unstable();
    assert!(places.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0));
}

/// TensorFlow's ExerciseCoalescing: rounds of growing blocks; after each, the region is one free block again.
#[test]
fn every_round_coalesces_back_to_one_block() {
    let mut heap = filled(256, 64 * MIB);
    for round in 0..1024u64 {
        let sizes = [4096 * 4, 4 * round + 4, 1 << (round % 20), 4096 * (round % 64) + 4];
        let mut blocks: Vec<u32> = sizes.iter().map(|size| take(&mut heap, *size)).collect();
        blocks.rotate_left(round as usize % 4);
        blocks.into_iter().for_each(|index| put(&mut heap, index));
        assert_eq!(heap.largest_free(), 64 * MIB, "round {round}");
        assert!(heap.whole(0).is_some());
    }
    heap.check().unwrap();
}

/// XLA's stress test: 350 blocks, 20 rounds in shuffled order, every invariant after each step.
#[test]
fn shuffled_stress_keeps_every_invariant() {
    let mut rng = Rng::new(11);
    let mut heap = filled(256, 64 * MIB);
    let mut blocks: Vec<u32> = Vec::new();
    for _ in 0..20 {
        while blocks.len() < 350 {
            blocks.push(take(&mut heap, rng.skewed(128 * KIB)));
        }
        for _ in 0..175 {
            let at = rng.below(blocks.len() as u64) as usize;
            put(&mut heap, blocks.swap_remove(at));
            heap.check().unwrap();
        }
    }
}

/// Alignments from 32 to 4096 bytes, and 2 MiB, with many sizes: aligned, exact, and nothing is lost when all is freed.
#[test]
fn aligned_blocks_lose_nothing() {
    let mut aligns: Vec<u64> = (5..13).map(|bit| 1 << bit).collect();
    aligns.extend([2 * MIB, 8 * MIB]);
    let mut heap = filled(64, 512 * MIB);
    for align in aligns {
        let mut blocks = vec![take(&mut heap, 64)];
        for size in [1, 64, 100, 4095, 4096, 65_537, MIB, 3 * MIB] {
            let size = u64::next_multiple_of(size, 64);
            let index = heap.take_aligned(size, align, NOW, &mut NoFences).unwrap();
            let (_, offset, took) = heap.place(index);
            assert_eq!((offset % align, took), (0, size), "{align}");
            blocks.push(index);
            heap.check().unwrap();
        }
        let held: u64 = blocks.iter().map(|index| heap.place(*index).2).sum();
        let free: u64 = heap.blocks(0).filter(|b| b.state == State::Free).map(|b| b.size).sum();
        assert_eq!(held + free, 512 * MIB, "the padding stays usable");
        blocks.into_iter().for_each(|index| put(&mut heap, index));
        assert_eq!(heap.largest_free(), 512 * MIB);
    }
}

/// The same program gives the same places, whatever the process did before.
#[test]
fn the_same_calls_give_the_same_places() {
    let places = |seed: u64| {
        let mut rng = Rng::new(seed);
        let mut heap = filled(512, 256 * MIB);
        let (mut blocks, mut seen) = (Vec::new(), Vec::new());
        for _ in 0..2000 {
            if blocks.len() < 100 || rng.one_in(2) {
                let index = take(&mut heap, rng.skewed(2 * MIB));
                seen.push((heap.id(index), heap.place(index)));
                blocks.push(index);
            } else {
                let at = rng.below(blocks.len() as u64) as usize;
                put(&mut heap, blocks.swap_remove(at));
            }
        }
        seen
    };
    for seed in 0..31 {
        assert_eq!(places(seed), places(seed));
    }
    assert_ne!(places(1), places(2));
}

/// On one stream the quick search misses only where the request's own bin is all that fits: then the best block is larger by
/// less than a bin, and below 64 quanta not at all. So the ladder's thorough search costs density nothing.
#[test]
fn the_quick_search_misses_only_within_the_own_bin() {
    for seed in 0..runs(20, 400) {
        let mut rng = Rng::new(seed);
        let mut heap = filled(512, 8 * MIB);
        let mut blocks = Vec::new();
        for _ in 0..1500 {
            let size = rng.skewed(2048) * 512;
            let fit = heap.blocks(0).filter(|b| b.state == State::Free && b.size >= size).map(|b| b.size).min();
            match heap.take(size, NOW, &mut NoFences) {
                Some(index) => blocks.push(index),
                None if fit.is_some() => {
                    let least = fit.unwrap();
                    assert!(size >= 64 * 512 && least - size < size / 32, "{size} misses a block of {least}");
                    blocks.push(heap.take_thorough(size, 1, NOW, &mut NoFences).expect("the fit that is there"));
                    assert_eq!(heap.place(blocks[blocks.len() - 1]).2, size);
                }
                None => assert_eq!(heap.take_thorough(size, 1, NOW, &mut NoFences), None),
            }
            while blocks.len() > 60 || (!blocks.is_empty() && rng.one_in(3)) {
                let at = rng.below(blocks.len() as u64) as usize;
                put(&mut heap, blocks.swap_remove(at));
            }
        }
    }
}

#[test]
fn records_take_less_than_96_bytes_a_block() {
    let mut rng = Rng::new(5);
    let mut heap = filled(512, 1 << 40);
    let before = heap.memory();
    let blocks: Vec<u32> = (0..100_000).map(|_| take(&mut heap, rng.skewed(4 * MIB))).collect();
    let each = (heap.memory() - before) as f64 / blocks.len() as f64;
    assert!(each <= 96.0, "{each} bytes");
}
