//! Laws of the allocator over the simulated device: whatever is done in whatever order, the figures are what a walk finds, the
//! device holds what is said to be reserved, no rule of the contract is broken, and everything goes back in the end.

mod common;

use std::time::{Duration, Instant};

use common::world::World;
use common::{Rng, runs};
use larder::allocator::{AllocError, HookGuard};
use larder::backend::sim::{Lag, SimConfig, SimMemory, SimStreams};
use larder::policy::{Config, OnLimit, PoolConfig, ReportLevel};
use larder::units::{KIB, MIB};
use larder::{Allocator, Simulated};

const PAGE: u64 = 64 * KIB;
const MEMORIES: [SimMemory; 4] = [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged, SimMemory::Segments];
const LAGS: [Lag; 5] = [Lag::Events(0), Lag::Events(7), Lag::Events(50), Lag::Never, Lag::Manual];

fn device(memory: SimMemory, lag: Lag) -> SimConfig {
    SimConfig { capacity: 96 * PAGE, memory, page: PAGE, lag, region_max: 1 << 40, ..SimConfig::default() }
}

fn config() -> Config {
    Config { segment_min: PAGE, poll_every: 16, ..Config::default() }
}

struct Program {
    world: World,
    rng: Rng,
    pools: Vec<Allocator<Simulated>>,
    hook: Option<HookGuard>,
    clock: u64,
    failures: u64,
}

impl Program {
    fn new(device: SimConfig, config: Config, seed: u64) -> Program {
        let world = World::new(device, config, 4);
        let pools = vec![
            world.allocator.clone(),
            world.allocator.pool("second", PoolConfig { tag: Some("second".into()), ..PoolConfig::default() }).unwrap(),
            world.allocator.pool("bounded", PoolConfig { limit: Some(24 * PAGE), ..PoolConfig::default() }).unwrap(),
        ];
        Program { world, rng: Rng::new(seed), pools, hook: None, clock: 0, failures: 0 }
    }

    fn run(mut self, steps: u64, check_every: u64) -> u64 {
        for step in 0..steps {
            self.step(step / 64 % 3 < 2);
            if step % check_every == 0 {
                self.world.check();
            }
        }
        drop(self.hook);
        drop(self.pools);
        self.world.end();
        self.failures
    }

    fn step(&mut self, rising: bool) {
        self.world.sim.advance(1);
        let any = !self.world.held.is_empty();
        match self.rng.below(64) {
            part if part < if rising { 34 } else { 16 } => self.alloc(),
            0..=45 if any => {
                let at = self.rng.below(self.world.held.len() as u64) as usize;
                self.world.drop_at(at);
            }
            46..=51 if any => {
                let at = self.rng.below(self.world.held.len() as u64) as usize;
                let stream = self.stream();
                self.world.use_on(at, stream);
            }
            52 if any => self.world.work(self.rng.below(self.world.held.len() as u64) as usize, 0),
            53 => {
                let (one, two) = (self.stream(), self.stream());
                self.follow(one, two);
            }
            54 => self.complete(),
            55 => self.give_back(),
            56 => self.change_config(),
            57 => self.change_hook(),
            58 => self.change_stream(),
            59 => self.world.allocator.reset_peak(),
            _ => self.world.sim.advance(self.rng.below(8)),
        }
    }

    fn stream(&mut self) -> usize {
        if self.rng.one_in(2) { 0 } else { self.rng.below(self.world.streams.len() as u64) as usize }
    }

    /// The user orders one stream behind another, and says so.
    fn follow(&mut self, one: usize, two: usize) {
        use larder::backend::Backend;
        let (sim, streams) = (&self.world.sim, &self.world.streams);
        let Ok(event) = sim.record(streams[two].id()) else { return };
        sim.stream_wait(streams[one].id(), event).unwrap();
        sim.forget(event);
        streams[one].follows(&streams[two]);
    }

    fn alloc(&mut self) {
        let bytes = match self.rng.below(8) {
            0 => 0,
            1 => self.rng.range(1, 12) * PAGE,
            2 => self.rng.range(1, 12 * PAGE),
            _ => self.rng.skewed(2 * PAGE),
        };
        let stream = self.stream();
        let align = if self.rng.one_in(4) { 1 << self.rng.range(0, 21) } else { 1 };
        let pool = self.pools[self.rng.below(8).saturating_sub(5) as usize].clone();
        let chance = self.rng.next();
        let made = self.world.serve_from(&pool, stream, bytes, |mut request| {
            request = request.align(align);
            if chance & 7 == 0 {
                request = request.tag("program");
            }
            if chance & 0x70 == 0 {
                request = request.deadline(Instant::now());
            }
            if chance & 0x700 == 0 { request.zeroed() } else { request }
        });
        match made {
            Ok(()) => {
                let block = &self.world.held[self.world.held.len() - 1].block;
                assert_eq!((block.len(), block.address() % align), (bytes, 0));
                assert_eq!(block.size(), bytes.next_multiple_of(512));
            }
            Err(AllocError::OutOfMemory(report)) => {
                self.failures += 1;
                assert_eq!((report.request.requested, report.request.align), (bytes, align));
                assert!(!report.trail.is_empty() && !report.to_string().is_empty());
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn complete(&mut self) {
        match self.rng.below(4) {
            0 => self.world.sim.complete_all(),
            _ => {
                let stream = self.stream();
                self.world.sim.complete(self.world.streams[stream].id(), self.rng.below(12));
            }
        }
    }

    fn give_back(&mut self) {
        let allocator = &self.world.allocator;
        let before = allocator.total_stats().reserved.current;
        let returned = match self.rng.below(8) {
            0 => allocator.purge(),
            1..=3 => allocator.trim(self.rng.below(64) * PAGE),
            4 => allocator.trim(0),
            _ => {
                self.clock += self.rng.below(4);
                allocator.tick(Duration::from_secs(self.clock))
            }
        };
        assert_eq!(before - allocator.total_stats().reserved.current, returned.unwrap());
    }

    fn change_config(&mut self) {
        let some = |rng: &mut Rng, value| rng.one_in(2).then_some(value);
        let limit = self.rng.range(48, 120) * PAGE;
        let soft = self.rng.range(8, 48) * PAGE;
        let config = Config {
            limit: some(&mut self.rng, limit),
            soft_limit: some(&mut self.rng, soft),
            on_limit: self.rng.pick(&[OnLimit::Climb, OnLimit::Climb, OnLimit::FailFast]),
            slack: self.rng.pick(&[1.0, 1.01, 1.05, 1.3, 4.0]),
            high_watermark: 0.7,
            low_watermark: 0.5,
            decay: some(&mut self.rng, 2).map(Duration::from_secs),
            poll_every: self.rng.range(1, 32) as u32,
            report: self.rng.pick(&[ReportLevel::Summary, ReportLevel::Full { at_most_per_second: 100 }]),
            ..config()
        };
        self.world.allocator.set_config(config).unwrap();
        let guarantee = self.rng.below(8) * PAGE;
        self.pools[1].set_pool_config(PoolConfig { guarantee, tag: None, limit: None }).unwrap();
    }

    /// A hook that trims, and allocates.
    fn change_hook(&mut self) {
        let inner = self.world.allocator.erase();
        let hook = move |_: &larder::allocator::Shortage| {
            let _ = inner.trim(0);
            drop(inner.alloc(100));
        };
        self.hook = if self.hook.is_none() { Some(self.world.allocator.on_shortage(hook)) } else { None };
    }

    /// A stream's handles go, but not the blocks on it; another takes its place.
    fn change_stream(&mut self) {
        let at = self.rng.range(1, self.world.streams.len() as u64 - 1) as usize;
        self.world.streams[at] = self.world.allocator.stream().unwrap();
        if self.rng.one_in(2) {
            // These keep handles of the streams that use them no longer, only blocks do.
            self.world.held.iter_mut().for_each(|held| held.streams.truncate(1));
        }
    }
}

#[test]
fn random_programs_keep_every_figure() {
    let mut failures = 0;
    for memory in MEMORIES {
        for lag in LAGS {
            for seed in 0..runs(3, 200) {
                failures += Program::new(device(memory, lag), config(), seed).run(300, 3);
            }
        }
    }
    assert!(failures > 100, "memory never ran out: {failures}");
}

#[test]
fn longer_programs_keep_every_figure() {
    for (seed, memory) in MEMORIES.into_iter().enumerate() {
        let device = SimConfig { capacity: 600 * PAGE, ..device(memory, Lag::Events(50)) };
        Program::new(device, config(), 77 + seed as u64).run(runs(3000, 60_000), 64);
    }
}

#[test]
fn without_alias_in_the_config_old_addresses_are_unmapped_at_once() {
    for lag in [Lag::Events(0), Lag::Events(50)] {
        for seed in 0..runs(4, 200) {
            Program::new(device(SimMemory::Alias, lag), Config { alias: false, ..config() }, seed).run(300, 3);
        }
    }
}

#[test]
fn memory_that_the_cpu_touches_is_reused_only_when_complete() {
    for memory in MEMORIES {
        for lag in [Lag::Events(0), Lag::Events(30), Lag::Never] {
            for seed in 0..runs(2, 100) {
                let device = SimConfig { host_ordered: true, ..device(memory, lag) };
                Program::new(device, config(), seed).run(250, 3);
            }
        }
    }
}

#[test]
fn a_device_without_streams_has_one_order() {
    for memory in MEMORIES {
        let mut world = World::new(SimConfig { streams: SimStreams::None, ..device(memory, Lag::Never) }, config(), 3);
        let mut rng = Rng::new(1);
        for _ in 0..600 {
            if world.held.len() > 20 || (!world.held.is_empty() && rng.one_in(3)) {
                world.drop_at(rng.below(world.held.len() as u64) as usize);
            } else {
                world.alloc(rng.below(3) as usize, rng.skewed(4 * PAGE)).unwrap();
            }
            world.check();
        }
        assert_eq!(world.allocator.total_stats().pending.peak, 0);
        world.end();
    }
}

#[test]
fn blocks_outlive_every_handle_and_go_on_any_thread() {
    for memory in MEMORIES {
        let mut world = World::new(device(memory, Lag::Events(50)), config(), 3);
        for at in 0..12 {
            world.alloc(at % 3, (at as u64 + 1) * 10_000).unwrap();
        }
        world.use_on(4, 2);
        let World { allocator, sim, streams, held, .. } = world;
        let mut blocks: Vec<_> = held.into_iter().map(|held| held.block).collect();
        drop((allocator, streams));
        let last = blocks.pop();
        let half = blocks.split_off(6);
        std::thread::scope(|scope| {
            scope.spawn(move || drop(half));
            scope.spawn(move || drop(blocks));
        });
        assert!(sim.counters().used > 0, "the last block keeps its memory");
        drop(last);
        let counters = sim.counters();
        assert_eq!((counters.used, counters.live_events, sim.violations()), (0, 0, vec![]));
    }
}

#[test]
fn blocks_cross_threads_while_others_allocate() {
    for memory in MEMORIES {
        let (allocator, sim) = Allocator::simulated(
            SimConfig { capacity: 64 * MIB, ..device(memory, Lag::Events(5)) },
            Config { segment_min: PAGE, ..Config::default() },
        )
        .unwrap();
        let (send, receive) = std::sync::mpsc::sync_channel::<larder::Block<Simulated>>(64);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (allocator, send) = (allocator.clone(), send.clone());
                scope.spawn(move || {
                    let stream = allocator.stream().unwrap();
                    let mut rng = Rng::new(thread);
                    for _ in 0..runs(400, 20_000) {
                        send.send(allocator.alloc_on(&stream, rng.skewed(4 * PAGE)).unwrap()).unwrap();
                    }
                });
            }
            drop(send);
            let sim = sim.clone();
            scope.spawn(move || {
                for block in receive {
                    sim.advance(1);
                    drop(block);
                }
            });
        });
        allocator.check().unwrap();
        allocator.purge().unwrap();
        assert_eq!((allocator.total_stats().reserved.current, sim.counters().used), (0, 0));
        assert_eq!((sim.check(), sim.violations()), (Ok(()), vec![]));
    }
}
