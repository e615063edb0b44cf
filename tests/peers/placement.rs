//! Rows 1 to 4, 6, 7, 9 to 12: where blocks lie, and that nothing is lost.

use std::path::Path;

use larder::backend::sim::Lag;
use larder::snapshot::{BlockState, RegionRecord};
use larder::trace::Trace;
use larder::trace::replay::{ReplayConfig, Stage, least_capacity, replay};
use larder::units::{KIB, MIB};
use larder::{Block, Config};

use crate::common::{Rng, full, runs};
use crate::{Ground, assert_apart, grounds, simulated};

#[test]
fn t01_no_two_blocks_are_the_same() {
    // Sums of 1 to 1023, each rounded up. 64: 64 * 64 * (1 + ... + 15) + 63 * 1024. 256: 256 * 256 * (1 + 2 + 3) + 255 * 1024.
    // 512: 512 * 512 + 511 * 1024.
    for (quantum, live) in [(64, 556_032), (256, 654_336), (512, 785_408)] {
        for ground in grounds(&Config { quantum: Some(quantum), ..Config::default() }) {
            let blocks: Vec<_> = (1..1024).map(|bytes| ground.allocator.alloc(bytes).unwrap()).collect();
            assert_apart(&blocks);
            let stats = ground.allocator.stats();
            assert_eq!((stats.live.current, stats.requested.current), (live, 523_776), "{} {quantum}", ground.name);
            drop(blocks);
            assert_eq!(ground.allocator.stats().live.current, 0);
            ground.end();
        }
    }
}

#[test]
fn t02_odd_ones_freed_and_made_again() {
    for ground in grounds(&Config::default()) {
        let mut rng = Rng::new(2);
        let mut make = |number: u8| {
            let mut block = ground.allocator.alloc(rng.range(100, MIB)).unwrap();
            block.host_bytes_mut().into_iter().for_each(|bytes| bytes.fill(number));
            (block, number)
        };
        let mut blocks: Vec<_> = (0..255).map(&mut make).collect();
        let mut at = 0;
        blocks.retain(|_| {
            at += 1;
            at % 2 == 1
        });
        assert_eq!(blocks.len(), 128);
        blocks.extend((0..127).map(|number| make(2 * number + 1)));
        assert_apart(blocks.iter().map(|(block, _)| block));
        for (block, number) in &blocks {
            let same = |bytes: &[u8]| bytes == vec![*number; bytes.len()];
            assert!(block.host_bytes().is_none_or(same), "{}: block {number}", ground.name);
        }
        drop(blocks);
        ground.end();
    }
}

#[test]
fn t03_every_round_coalesces() {
    for ground in grounds(&Config::default()) {
        let mut first = None;
        for round in 0..1024u64 {
            let sizes = [16 * KIB, 4 * round + 4, 1 << (round % 20), 4096 * (round % 64) + 4];
            let mut blocks: Vec<_> = sizes.iter().map(|bytes| ground.allocator.alloc(*bytes).unwrap()).collect();
            let place = *first.get_or_insert(blocks[0].address());
            assert_eq!(blocks[0].address(), place, "{} round {round}", ground.name);
            blocks.rotate_left(round as usize % 4);
            blocks.into_iter().for_each(drop);
            ground.assert_whole();
        }
        // At most 16 KiB + 4 KiB + 512 KiB + 253 KiB and rounding are live at once: the least that is ever held.
        assert_eq!(ground.allocator.stats().reserved.peak, 2 * MIB, "{}", ground.name);
        ground.end();
    }
}

#[test]
fn t04_shuffled_stress() {
    for ground in grounds(&Config::default()) {
        let mut rng = Rng::new(42);
        let mut blocks = Vec::new();
        let mut steps = 0;
        let mut step = || {
            steps += 1;
            if steps % runs(64, 1) == 0 {
                ground.allocator.check().unwrap();
            }
        };
        for _ in 0..20 {
            while blocks.len() < 350 {
                blocks.push(ground.allocator.alloc(rng.skewed(128 * KIB)).unwrap());
                step();
            }
            assert_apart(&blocks);
            // All but a few go, in any order.
            while blocks.len() > 20 {
                blocks.swap_remove(rng.below(blocks.len() as u64) as usize);
                step();
            }
        }
        drop(blocks);
        ground.assert_whole();
        ground.end();
    }
}

#[test]
fn t06_alignments() {
    for ground in grounds(&Config::default()) {
        let most = ground.allocator.capabilities().base_align;
        let aligns = (5..13).map(|bit| 1 << bit).chain([2 * MIB]).filter(|align| *align <= most);
        for align in aligns {
            let mut blocks = vec![ground.allocator.alloc(1).unwrap()];
            for bytes in [1, 64, 100, 4095, 4096, 65_537, MIB, 3 * MIB] {
                let block = ground.allocator.request(bytes).align(align).alloc().unwrap();
                let (address, quantum) = (block.address(), ground.allocator.capabilities().quantum);
                assert_eq!((address % align, block.size()), (0, bytes.next_multiple_of(quantum)), "{}", ground.name);
                blocks.push(block);
            }
            assert_apart(&blocks);
            drop(blocks);
            ground.assert_whole();
        }
        ground.end();
    }
}

/// Blocks that come and go; where each lay, from the start of its region.
fn churn(ground: &Ground, seed: u64, rounds: u64) -> Vec<u64> {
    let mut rng = Rng::new(seed);
    let (mut blocks, mut offsets) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        if blocks.len() < 60 || rng.one_in(2) {
            let block = ground.allocator.alloc(rng.skewed(MIB)).unwrap();
            offsets.push(block.span().unwrap().offset);
            blocks.push(block);
        } else {
            blocks.swap_remove(rng.below(blocks.len() as u64) as usize);
        }
    }
    offsets
}

#[test]
fn t07_offsets_are_stable() {
    let config = Config::default();
    for seed in 0..31 {
        for (one, two) in grounds(&config).into_iter().zip(grounds(&config)) {
            assert_eq!(churn(&one, seed, 120), churn(&two, seed, 120), "{} seed {seed}", one.name);
            // When all is given back, nothing of the churn is left: another program lies as in a fresh allocator.
            one.allocator.purge().unwrap();
            let fresh = grounds(&config).into_iter().find(|fresh| fresh.name == one.name).unwrap();
            assert_eq!(churn(&one, 100, 40), churn(&fresh, 100, 40), "{} seed {seed}", one.name);
            [one, two, fresh].into_iter().for_each(Ground::end);
        }
    }
}

#[test]
fn t09_contents_survive_churn() {
    const ROOM: u64 = 16 * MIB;
    for ground in grounds(&Config::default().limit(ROOM)) {
        let mut rng = Rng::new(9);
        let mut blocks: Vec<(Block<larder::Any>, u8)> = Vec::new();
        let mut live = 0;
        for number in 0..runs(10_000, 100_000) {
            if rng.below(10) < 7 && live < ROOM * 3 / 10 {
                let mut block = ground.allocator.alloc(rng.skewed(64 * KIB)).unwrap();
                live += block.len();
                block.host_bytes_mut().into_iter().for_each(|bytes| bytes.fill(number as u8));
                touch(&ground, &block, number);
                blocks.push((block, number as u8));
            } else if !blocks.is_empty() {
                let (block, byte) = blocks.swap_remove(rng.below(blocks.len() as u64) as usize);
                live -= block.len();
                let whole = |bytes: &[u8]| bytes == vec![byte; bytes.len()];
                assert!(block.host_bytes().is_none_or(whole), "{} {number}", ground.name);
            }
        }
        drop(blocks);
        ground.assert_whole();
        ground.end();
    }
}

/// Work of a new owner on all of a block, which a simulated device judges.
fn touch(ground: &Ground, block: &Block<larder::Any>, owner: u64) {
    if let Some(sim) = &ground.sim {
        sim.work(larder::ids::StreamId(0), owner + 1, block.span().unwrap()).unwrap();
    }
}

#[test]
fn t10_random_allocations() {
    for most in [MIB, 4 * MIB, 64 * MIB, 256 * MIB, 1024 * MIB, 4096 * MIB] {
        for ground in simulated(&Config::default(), Lag::Events(0)) {
            let mut misses = Vec::new();
            let counts: &[u64] = if full() { &[1000, 10_000, 100_000] } else { &[500, 1000] };
            for count in counts.iter().copied() {
                let before = ground.allocator.stats().misses;
                random_allocations(&ground, most, count);
                misses.push((ground.allocator.stats().misses - before) as f64 / count as f64);
            }
            // No more of them miss when there are more, but for chance.
            assert!(misses.is_sorted_by(|few, many| *many <= few * 1.25), "{} {most}: {misses:?}", ground.name);
            let stats = ground.allocator.stats();
            let ratio = stats.reserved.peak as f64 / stats.live.peak as f64;
            // Segments cannot be moved together, and the largest blocks are a quarter of what is live.
            let bound = if ground.is_paged() { 1.06 } else { 2.5 };
            assert!(ratio <= bound, "{} {most}: {ratio}", ground.name);
            ground.end();
        }
    }
}

/// `count` allocations, 73 of 100 steps being one, with at most 16,000 MiB live.
fn random_allocations(ground: &Ground, most: u64, count: u64) {
    let mut rng = Rng::new(10);
    let (mut blocks, mut live, mut made) = (Vec::new(), 0, 0);
    while made < count {
        let bytes = rng.range(1, most);
        if rng.below(100) < 73 && live + bytes <= 16_000 * MIB {
            blocks.push(ground.allocator.alloc(bytes).unwrap());
            (live, made) = (live + bytes, made + 1);
        } else if !blocks.is_empty() {
            live -= blocks.swap_remove(rng.below(blocks.len() as u64) as usize).len();
        }
    }
}

#[test]
fn t11_holes_equal_and_mixed() {
    for count in [4096, 16_384, 65_536].into_iter().take(runs(1, 3) as usize) {
        for ground in simulated(&Config::default(), Lag::Events(0)) {
            let mut rng = Rng::new(11);
            holes(&ground, &vec![KIB; count], |_| KIB);
            let sizes: Vec<u64> = (0..count).map(|_| log_uniform(&mut rng)).collect();
            holes(&ground, &sizes, log_uniform);
            ground.end();
        }
    }
}

/// From 512 B to 4 MiB, of which every doubling is as likely.
fn log_uniform(rng: &mut Rng) -> u64 {
    let doublings = 13.0 * rng.below(1 << 20) as f64 / (1u64 << 20) as f64;
    (512.0 * doublings.exp2()) as u64
}

/// Holes of these sizes between live blocks, and pairs of an allocation and a drop of such sizes.
fn holes(ground: &Ground, sizes: &[u64], size: impl Fn(&mut Rng) -> u64) {
    let allocator = &ground.allocator;
    let make = |bytes: &u64| (allocator.alloc(*bytes).unwrap(), allocator.alloc(512).unwrap());
    let (filled, walls): (Vec<_>, Vec<_>) = sizes.iter().map(make).unzip();
    drop(filled);
    // Ends of segments are holes too.
    let free: Vec<(u64, u64)> = free_blocks(ground);
    let largest = free.iter().map(|hole| hole.1).max().unwrap();
    let calls = || ground.sim.as_ref().map(|sim| sim.counters());
    let (before, device) = (allocator.stats(), calls());
    let mut rng = Rng::new(12);
    for _ in 0..1000 {
        let bytes = size(&mut rng).next_multiple_of(512).min(largest);
        let block = allocator.alloc(bytes).unwrap();
        let (_, hole) = free[free.partition_point(|hole| hole.0 <= block.address()) - 1];
        // The hole may be of the next bin that has any, and bins span a 32nd of their size.
        let least = free.iter().map(|hole| hole.1).filter(|hole| *hole >= bytes).min().unwrap();
        assert!((bytes..=least + least / 8).contains(&hole), "{}: {bytes} in {hole}, not {least}", ground.name);
    }
    let after = allocator.stats();
    assert_eq!((after.misses, after.reserved), (before.misses, before.reserved), "{}", ground.name);
    assert_eq!(calls(), device, "{}: the device was called", ground.name);
    drop(walls);
}

/// Address and size of every free block, in order.
fn free_blocks(ground: &Ground) -> Vec<(u64, u64)> {
    let regions = &ground.allocator.snapshot().pools[0].regions;
    let of = |region: &RegionRecord| -> Vec<(u64, u64)> {
        let free = region.blocks.iter().filter(|block| block.state == BlockState::Free);
        free.map(|block| (region.base + block.offset, block.size)).collect()
    };
    let mut all: Vec<_> = regions.iter().flat_map(of).collect();
    all.sort_unstable();
    all
}

#[test]
fn t12_least_size_of_a_trace() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    for (file, pages, segments) in [("serving_small.gz", 1.02, 1.3), ("06_resnet50_server.gz", 1.02, 1.3)] {
        if file != "serving_small.gz" && !full() {
            continue;
        }
        let trace = Trace::load(root.join(file)).unwrap();
        for (stage, bound) in [(Stage::Sim, pages), (Stage::SimSegments, segments)] {
            let config = ReplayConfig {
                stage,
                lag: Lag::Events(0),
                config: Config::default().slack(1.0),
                ..ReplayConfig::default()
            };
            let least = least_capacity(&trace, &config, |_| true).unwrap();
            let ratio = least as f64 / trace.peak_requested() as f64;
            println!("{file} on {:?}: {least} bytes, {ratio:.4} of the peak", config.stage);
            assert!((1.0..=bound).contains(&ratio), "{file} {:?}: {ratio}", config.stage);
            let with =
                |capacity| replay(&trace, &ReplayConfig { capacity: Some(capacity), ..config.clone() }, |_| true);
            assert!(with(least).is_ok());
            let stopped = with(trace.peak_requested() / 2).unwrap_err();
            assert!(stopped.error.report().is_some(), "{stopped}");
        }
    }
}
