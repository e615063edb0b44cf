//! Never out of memory while the bytes exist: where pages can move, a request is served whenever the pages that hold no live byte,
//! backed or not, are as many as it needs. A random search for a counterexample, on small devices where every page counts.

mod common;

use std::collections::BTreeSet;

use common::world::World;
use common::{Rng, runs};
use larder::allocator::AllocError;
use larder::backend::sim::{Lag, SimConfig, SimMemory};
use larder::policy::Config;
use larder::snapshot::BlockState;
use larder::units::KIB;

const PAGE: u64 = 16 * KIB;

/// Pages with a live byte. Every such page is a physical page of its own.
fn pages_in_use(world: &World) -> u64 {
    let snapshot = world.allocator.snapshot();
    let regions = snapshot.pools.iter().flat_map(|pool| &pool.regions);
    let mut pages = BTreeSet::new();
    for region in regions {
        for block in region.blocks.iter().filter(|block| block.state == BlockState::Live) {
            let last = (block.offset + block.size - 1) / PAGE;
            pages.extend((block.offset / PAGE..=last).map(|page| (region.id, page)));
        }
    }
    pages.len() as u64
}

/// One program. Answers how many requests were refused, and how many were served although the largest free block and the
/// memory not yet reserved were too small for them: those that only moved pages could serve.
fn search(memory: SimMemory, lag: Lag, pages: u64, slack: f64, seed: u64, steps: u64) -> (u64, u64) {
    let device = SimConfig { capacity: pages * PAGE, memory, page: PAGE, lag, ..SimConfig::default() };
    let mut world = World::new(device, Config::default().slack(slack), 3);
    let mut rng = Rng::new(seed);
    let (mut refused, mut moved) = (0, 0);
    for step in 0..steps {
        world.sim.advance(1);
        let count = world.held.len() as u64;
        if count > 0 && rng.one_in(if step / 48 % 2 == 0 { 4 } else { 2 }) {
            world.drop_at(rng.below(count) as usize);
        } else if count > 0 && rng.one_in(8) {
            world.use_on(rng.below(count) as usize, rng.below(3) as usize);
        } else {
            let bytes = match rng.below(4) {
                0 => rng.range(1, pages) * PAGE,
                1 => rng.range(1, pages * PAGE / 2),
                2 => rng.range(1, 2 * PAGE),
                _ => rng.skewed(PAGE),
            };
            let stream = rng.below(3) as usize;
            let before = world.allocator.snapshot();
            let stats = before.stats;
            let free = pages - pages_in_use(&world);
            let fits = bytes.div_ceil(PAGE) <= free;
            match world.alloc(stream, bytes) {
                Ok(()) => {
                    let piece = before.pools[0].largest_free.max(pages * PAGE - stats.reserved.current);
                    moved += u64::from(bytes > piece);
                }
                Err(AllocError::OutOfMemory(report)) => {
                    let case = format!("{memory:?} {lag:?} {pages} pages, slack {slack}, seed {seed}, step {step}");
                    assert!(!fits, "{case}: {bytes} bytes refused with {free} pages free\n{report}\n{before:#?}");
                    refused += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    world.check();
    world.end();
    (refused, moved)
}

fn search_all(memory: SimMemory, lags: &[Lag], seeds: u64) {
    let (mut refused, mut moved) = (0, 0);
    for seed in 0..seeds {
        for lag in lags {
            let pages = [8, 13, 24, 64][seed as usize % 4];
            let slack = [1.0, 1.05, 1.5][seed as usize / 4 % 3];
            let (no, only_moved) = search(memory, *lag, pages, slack, seed, 160);
            refused += no;
            moved += only_moved;
        }
    }
    assert!(refused > seeds && moved > seeds, "the search is idle: {refused} refused, {moved} served by moves");
}

/// As few pages as can be: idle memory is purged, and the limit lowered to the pages with a live byte and those of the
/// request alone. It is served, whatever addresses the program left behind. Answers how many such requests there were.
fn search_tight(memory: SimMemory, lag: Lag, pages: u64, seed: u64, steps: u64) -> u64 {
    let device = SimConfig { capacity: pages * PAGE, memory, page: PAGE, lag, ..SimConfig::default() };
    let mut world = World::new(device, Config::default(), 3);
    let mut rng = Rng::new(seed);
    let mut tight = 0;
    for step in 0..steps {
        world.sim.advance(1);
        let count = world.held.len() as u64;
        let (bytes, stream) = (rng.skewed(pages * PAGE / 2), rng.below(3) as usize);
        if count > 0 && rng.one_in(2) {
            world.drop_at(rng.below(count) as usize);
        } else if rng.one_in(4) {
            world.allocator.purge().unwrap();
            let in_use = pages_in_use(&world);
            assert_eq!(world.allocator.stats().reserved.current, in_use * PAGE, "only pages with a live byte are left");
            let least = in_use + bytes.div_ceil(PAGE);
            if least > pages {
                continue;
            }
            world.allocator.set_config(Config::default().limit(least * PAGE)).unwrap();
            let case = format!("{memory:?} {lag:?} {pages} pages, seed {seed}, step {step}");
            let served = world.alloc(stream, bytes);
            served.unwrap_or_else(|error| panic!("{case}: {bytes} bytes with {in_use} pages in use\n{error}"));
            world.allocator.set_config(Config::default()).unwrap();
            tight += 1;
        } else {
            // Whether it is served is the other search's law.
            let _ = world.alloc(stream, bytes);
        }
    }
    world.check();
    world.end();
    tight
}

fn search_all_tight(memory: SimMemory, seeds: u64) {
    let mut tight = 0;
    for seed in 0..seeds {
        let lag = LAGS[seed as usize % LAGS.len()];
        tight += search_tight(memory, lag, [8, 13, 24, 64][seed as usize % 4], seed, 160);
    }
    assert!(tight > 10 * seeds, "the search is idle: {tight} requests under a tight limit");
}

const LAGS: [Lag; 5] = [Lag::Events(0), Lag::Events(5), Lag::Events(40), Lag::Never, Lag::Manual];

#[test]
fn with_alias_free_pages_always_serve() {
    search_all(SimMemory::Alias, &LAGS, runs(60, 4_000));
}

#[test]
fn with_remap_free_pages_always_serve() {
    search_all(SimMemory::Remap, &LAGS, runs(60, 4_000));
}

#[test]
fn with_alias_the_least_limit_serves_after_a_purge() {
    search_all_tight(SimMemory::Alias, runs(100, 10_000));
}

#[test]
fn with_remap_the_least_limit_serves_after_a_purge() {
    search_all_tight(SimMemory::Remap, runs(100, 10_000));
}
