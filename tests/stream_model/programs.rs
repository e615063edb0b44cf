//! Random programs.

use larder::Config;
use larder::backend::sim::{Lag, SimConfig, SimMemory};
use std::time::Duration;

use crate::world::{Random, World};

const PAGE: u64 = 64 << 10;

/// What one seed plays.
#[derive(Debug)]
struct Plan {
    seed: u64,
    device: SimConfig,
    config: Config,
    lanes: u64,
    pools: u64,
    steps: u64,
    /// Percent of the steps that open or close a stream.
    churn: u64,
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let SimConfig { memory, lag, host_ordered, capacity, .. } = &self.device;
        write!(f, "seed {}: {memory:?} of {} pages, {lag:?}, host_ordered {host_ordered}", self.seed, capacity / PAGE)?;
        write!(f, ", {} lanes, {} pools, slack {}", self.lanes, self.pools, self.config.slack)
    }
}

const KINDS: [SimMemory; 4] = [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged, SimMemory::Segments];
const LAGS: [Lag; 5] = [Lag::Manual, Lag::Events(0), Lag::Events(30), Lag::Events(1000), Lag::Never];

impl Plan {
    fn new(seed: u64) -> Plan {
        let mut random = Random::new(seed);
        // Aliases have most to go wrong; the rest in turn.
        let memory = KINDS[[0, 1, 0, 2, 0, 3][(seed % 6) as usize]];
        let device = SimConfig {
            capacity: (6 + random.below(30)) * PAGE,
            memory,
            page: PAGE,
            lag: LAGS[[0, 1, 0, 2, 3, 4][(random.below(6)) as usize]],
            host_ordered: random.chance(15),
            region_max: 4096 * PAGE,
            ..SimConfig::default()
        };
        let config = Config {
            slack: *random.pick(&[1.0, 1.01, 1.05, 1.3]),
            page: Some(PAGE),
            segment_min: *random.pick(&[4096, PAGE, 4 * PAGE]),
            alias: !random.chance(10),
            wait_max: if random.chance(20) { Duration::ZERO } else { Duration::from_secs(30) },
            poll_every: *random.pick(&[1, 3, 16, 256]),
            limit: random.chance(20).then_some(device.capacity - 2 * PAGE),
            ..Config::default()
        };
        let lanes = 1 + random.below(5);
        let churn = if random.chance(40) { 3 } else { 0 };
        Plan { seed, device, config, lanes, pools: 1 + u64::from(random.chance(20)), steps: 400, churn }
    }

    fn play(&self) -> Seen {
        let mut world = World::new(self.device, self.config.clone(), self.lanes);
        (1..self.pools).for_each(|_| world.add_pool());
        let mut random = Random::new(self.seed ^ 0xabcdef);
        for step in 0..self.steps {
            self.step(&mut world, &mut random);
            if step % 64 == 0 {
                world.sound(self);
            } else {
                world.unbroken(self);
            }
        }
        let stats = world.allocator.total_stats();
        let seen = Seen {
            moved: u64::from(stats.moved > 0),
            waits: u64::from(stats.stream_waits > 0),
            host_waits: u64::from(stats.host_waits > 0),
            failures: u64::from(stats.failures > 0),
        };
        world.end(self);
        seen
    }

    fn step(&self, world: &mut World, random: &mut Random) {
        world.sim.advance(1);
        if random.chance(self.churn) {
            let lane = random.below(world.lanes.len() as u64) as usize;
            if world.lanes.len() < 6 && random.chance(50) { world.open_lane() } else { world.close_lane(lane) }
        }
        let lane = random.below(world.lanes.len() as u64) as usize;
        match random.below(100) {
            0..=41 => alloc(world, random, lane, self.device.capacity),
            42..=49 if !world.live.is_empty() => {
                let at = random.below(world.live.len() as u64) as usize;
                let from = random.below(2 * PAGE);
                let part = (from, from + 1 + random.below(2 * PAGE));
                let users = random.below(8);
                world.work(&world.live[at], part, |user| users >> (user % 3) & 1 == 1);
            }
            50..=57 if !world.live.is_empty() => {
                let at = random.below(world.live.len() as u64) as usize;
                let mut held = world.live.swap_remove(at);
                world.share(&mut held, lane);
                if random.chance(70) {
                    world.work_whole(&held);
                }
                world.live.push(held);
            }
            58..=87 if !world.live.is_empty() => free(world, random),
            88..=91 => {
                let earlier = random.below(world.lanes.len() as u64) as usize;
                if random.chance(70) {
                    world.follow(lane, earlier);
                } else {
                    world.order(&world.lanes[lane].stream, &world.lanes[earlier].stream);
                }
            }
            92 => {
                let keep = random.below(self.device.capacity * 2);
                world.allocator.trim(keep).unwrap_or_else(|error| panic!("{self}: trim: {error}"));
            }
            93 if random.chance(20) => {
                world.allocator.purge().unwrap_or_else(|error| panic!("{self}: purge: {error}"));
            }
            // Nothing is live for a moment.
            94 if random.chance(40) => (0..world.live.len()).for_each(|_| free(world, random)),
            _ => complete(world, random),
        }
    }
}

/// What a program came across, as 0 or 1 each.
#[derive(Debug, Default)]
struct Seen {
    moved: u64,
    waits: u64,
    host_waits: u64,
    failures: u64,
}

impl Seen {
    fn add(&mut self, other: &Seen) {
        self.moved += other.moved;
        self.waits += other.waits;
        self.host_waits += other.host_waits;
        self.failures += other.failures;
    }
}

fn alloc(world: &mut World, random: &mut Random, lane: usize, capacity: u64) {
    let bytes = 1 + match random.below(10) {
        0..=2 => random.below(4096),
        3..=6 => random.below(PAGE),
        7..=8 => random.below(4 * PAGE),
        _ => random.below(capacity / 2),
    };
    let align = *random.pick(&[1, 1, 1, 4096, PAGE]);
    let pool = *random.pick(&world.pools);
    let Some(held) = world.alloc(lane, pool, bytes, align) else {
        for _ in 0..=random.below(3) {
            free(world, random);
        }
        return;
    };
    if random.chance(90) {
        world.work_whole(&held);
    }
    world.live.push(held);
}

fn free(world: &mut World, random: &mut Random) {
    if world.live.is_empty() {
        return;
    }
    let at = random.below(world.live.len() as u64) as usize;
    let held = world.live.swap_remove(at);
    let users = random.below(8);
    world.work(&held, (0, u64::MAX), |user| users >> (user % 3) & 1 == 1);
}

/// Some stream gets on with its work; which and how far is the device's choice.
fn complete(world: &mut World, random: &mut Random) {
    match world.lanes.get(random.below(world.lanes.len() as u64 * 2) as usize) {
        Some(lane) => {
            world.sim.complete(lane.stream.id(), 1 + random.below(12));
        }
        None => world.sim.advance(random.below(60)),
    }
}

#[test]
fn random_programs_break_no_rule() {
    let mut seen = Seen::default();
    let seeds = crate::seeds();
    for seed in 0..seeds {
        seen.add(&Plan::new(seed).play());
    }
    println!("of {seeds} programs: {seen:?}");
    // Programs that never come into need would prove nothing.
    if seeds >= 100 {
        let least = [seen.moved, seen.waits, seen.host_waits, seen.failures].into_iter().min();
        assert!(least > Some(seeds / 20), "{seen:?}");
    }
}
