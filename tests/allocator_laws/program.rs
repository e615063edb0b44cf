//! Random programs over an allocator, checked as they go; on devices that fail now and then, where that is asked for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use larder::allocator::{AllocError, HookGuard};
use larder::backend::sim::{Call, Lag, SimConfig, SimCounters, SimMemory};
use larder::backend::{Backend, BackendError};
use larder::policy::{Config, OnLimit, PoolConfig, ReportLevel};
use larder::units::KIB;
use larder::{Allocator, Simulated, Stats};

use crate::common::Rng;
use crate::common::world::World;

pub const PAGE: u64 = 64 * KIB;
pub const MEMORIES: [SimMemory; 4] = [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged, SimMemory::Segments];
pub const LAGS: [Lag; 5] = [Lag::Events(0), Lag::Events(7), Lag::Events(50), Lag::Never, Lag::Manual];

pub fn device(memory: SimMemory, lag: Lag) -> SimConfig {
    SimConfig { capacity: 96 * PAGE, memory, page: PAGE, lag, region_max: 1 << 40, ..SimConfig::default() }
}

pub fn config() -> Config {
    Config { segment_min: PAGE, poll_every: 16, ..Config::default() }
}

/// What a program met.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub served: u64,
    pub out_of_memory: u64,
    /// Failures of the device that were ordered; some are never met.
    pub ordered: u64,
    /// Errors of the device that were told, by the call that failed.
    pub told: BTreeMap<&'static str, u64>,
    pub stats: Stats,
    pub counters: SimCounters,
}

/// Four streams and three pools at work, at random.
pub struct Program {
    world: World,
    rng: Rng,
    pools: Vec<Allocator<Simulated>>,
    hook: Option<HookGuard>,
    clock: u64,
    /// A failure of the device is ordered once in so many steps; 0: never.
    faults: u64,
    tally: Tally,
}

impl Program {
    pub fn new(device: SimConfig, config: Config, rng: Rng) -> Program {
        let world = World::new(device, config, 4);
        let pools = vec![
            world.allocator.clone(),
            world.allocator.pool("second", PoolConfig { tag: Some("second".into()), ..PoolConfig::default() }).unwrap(),
            world.allocator.pool("bounded", PoolConfig { limit: Some(24 * PAGE), ..PoolConfig::default() }).unwrap(),
        ];
        Program { world, rng, pools, hook: None, clock: 0, faults: 0, tally: Tally::default() }
    }

    /// A device that fails once in so many steps.
    pub fn with_faults(self, faults: u64) -> Program {
        Program { faults, ..self }
    }

    /// So many steps, or fewer when chance is spent; then everything goes back.
    pub fn run(mut self, steps: u64, check_every: u64) -> Tally {
        for step in 0..steps {
            if self.rng.is_spent() {
                break;
            }
            self.step(step / 64 % 3 < 2);
            if step % check_every == 0 {
                self.world.check();
            }
        }
        self.world.sim.fail_clear();
        // An error may be left that nobody could be told of.
        if let Err(error) = self.world.allocator.trim(u64::MAX) {
            self.tell(error);
        }
        self.tally.stats = self.world.allocator.total_stats();
        self.tally.counters = self.world.sim.counters();
        drop(self.hook);
        drop(self.pools);
        self.world.end();
        self.tally
    }

    /// An error that is no lack of memory: one that was ordered.
    fn tell(&mut self, error: AllocError) {
        match error {
            AllocError::Backend(BackendError::OutOfMemory { call, .. } | BackendError::Driver { call, .. })
                if self.faults > 0 =>
            {
                *self.tally.told.entry(call).or_default() += 1;
            }
            error => panic!("{error}"),
        }
    }

    /// One of the next calls of some kind fails, or all of them for a while.
    fn order_failure(&mut self) {
        let (call, k) = (self.rng.pick(&Call::ALL), self.rng.range(1, 3));
        let error = match self.rng.below(3) {
            0 => BackendError::Driver { call: call.name(), reason: "ordered".into(), code: 700 },
            _ => BackendError::OutOfMemory { call: call.name(), requested: 1 },
        };
        match self.rng.below(8) {
            0 => self.world.sim.fail_from(call, k, error),
            _ => self.world.sim.fail_at(call, k, error),
        }
        self.tally.ordered += 1;
    }

    fn step(&mut self, rising: bool) {
        self.world.sim.advance(1);
        if self.faults > 0 && self.rng.one_in(self.faults) {
            self.order_failure();
        } else if self.faults > 0 && self.rng.one_in(self.faults) {
            self.world.sim.fail_clear();
        }
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
        let (sim, streams) = (&self.world.sim, &self.world.streams);
        let Ok(event) = sim.record(streams[two].id()) else { return };
        let waits = sim.stream_wait(streams[one].id(), event);
        sim.forget(event);
        if waits.is_ok() {
            streams[one].follows(&streams[two]);
        }
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
                self.tally.served += 1;
                let block = &self.world.held[self.world.held.len() - 1].block;
                assert_eq!((block.len(), block.address() % align), (bytes, 0));
                assert_eq!(block.size(), bytes.next_multiple_of(512));
            }
            Err(AllocError::OutOfMemory(report)) => {
                self.tally.out_of_memory += 1;
                assert_eq!((report.request.requested, report.request.align), (bytes, align));
                assert!(!report.trail.is_empty() && !report.to_string().is_empty());
            }
            Err(error) => self.tell(error),
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
        match returned {
            Ok(bytes) => assert_eq!(before - allocator.total_stats().reserved.current, bytes),
            Err(error) => self.tell(error),
        }
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
        match self.world.allocator.stream() {
            Ok(stream) => self.world.streams[at] = stream,
            Err(error) => return self.tell(error),
        }
        if self.rng.one_in(2) {
            // These keep handles of the streams that use them no longer, only blocks do.
            self.world.held.iter_mut().for_each(|held| held.streams.truncate(1));
        }
    }
}
