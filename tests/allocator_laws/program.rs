//! Random programs over an allocator on a simulated device: streams, pools, hooks, changes of config, and failures if they are wanted.

use std::time::{Duration, Instant};

use larder::allocator::{AllocError, HookGuard};
use larder::backend::BackendError;
use larder::backend::sim::{Call, Lag, SimConfig, SimMemory};
use larder::policy::{Config, OnLimit, PoolConfig, ReportLevel};
use larder::units::KIB;
use larder::{Allocator, Simulated};

use super::common::Rng;
use super::common::world::World;

pub const PAGE: u64 = 64 * KIB;
pub const MEMORIES: [SimMemory; 4] = [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged, SimMemory::Segments];
pub const LAGS: [Lag; 5] = [Lag::Events(0), Lag::Events(7), Lag::Events(50), Lag::Never, Lag::Manual];

pub fn device(memory: SimMemory, lag: Lag) -> SimConfig {
    SimConfig { capacity: 96 * PAGE, memory, page: PAGE, lag, region_max: 1 << 40, ..SimConfig::default() }
}

pub fn config() -> Config {
    Config { segment_min: PAGE, poll_every: 16, ..Config::default() }
}

pub struct Program {
    world: World,
    rng: Rng,
    pools: Vec<Allocator<Simulated>>,
    hook: Option<HookGuard>,
    clock: u64,
    failures: u64,
    /// Whether calls of the device are made to fail, and what they say then.
    faulty: bool,
    planned: Vec<BackendError>,
}

impl Program {
    pub fn new(device: SimConfig, config: Config, rng: Rng) -> Program {
        let world = World::new(device, config, 4);
        let pools = vec![
            world.allocator.clone(),
            world.allocator.pool("second", PoolConfig { tag: Some("second".into()), ..PoolConfig::default() }).unwrap(),
            world.allocator.pool("bounded", PoolConfig { limit: Some(24 * PAGE), ..PoolConfig::default() }).unwrap(),
        ];
        Program { world, rng, pools, hook: None, clock: 0, failures: 0, faulty: false, planned: Vec::new() }
    }

    /// The same on a device some of whose calls fail.
    pub fn faulty(self) -> Program {
        Program { faulty: true, ..self }
    }

    /// So many steps, or fewer when chance is spent; then everything goes back. Answers how often memory ran out.
    pub fn run(mut self, steps: u64, check_every: u64) -> u64 {
        for step in 0..steps {
            if self.rng.is_spent() {
                break;
            }
            self.step(step / 64 % 3 < 2);
            if step % check_every == 0 {
                self.world.check();
            }
        }
        self.heal();
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
            60 if self.faulty => self.plan_failure(),
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
        let ordered = sim.stream_wait(streams[one].id(), event);
        sim.forget(event);
        match ordered {
            Ok(()) => streams[one].follows(&streams[two]),
            Err(error) => self.told(&error.into()),
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
                let block = &self.world.held[self.world.held.len() - 1].block;
                assert_eq!((block.len(), block.address() % align), (bytes, 0));
                assert_eq!(block.size(), bytes.next_multiple_of(512));
            }
            Err(AllocError::OutOfMemory(report)) => {
                self.failures += 1;
                assert_eq!((report.request.requested, report.request.align), (bytes, align));
                assert!(!report.trail.is_empty() && !report.to_string().is_empty());
            }
            Err(error) => self.told(&error),
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
        let gone = before - allocator.total_stats().reserved.current;
        match returned {
            Ok(returned) => assert_eq!(gone, returned),
            Err(error) => self.told(&error),
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
            Err(error) => self.told(&error),
        }
        if self.rng.one_in(2) {
            // These keep handles of the streams that use them no longer, only blocks do.
            self.world.held.iter_mut().for_each(|held| held.streams.truncate(1));
        }
    }

    // ---- failures

    /// One of the next calls of some kind fails, with a lack of memory or with a driver's word.
    fn plan_failure(&mut self) {
        let call = self.rng.pick(&Call::ALL);
        let error = match self.rng.one_in(2) {
            true => BackendError::OutOfMemory { call: call.name(), requested: 1 },
            false => BackendError::Driver { call: call.name(), reason: "planned".into(), code: 700 },
        };
        self.world.sim.fail_at(call, self.rng.range(1, 4), error.clone());
        self.planned.push(error);
    }

    /// What is not out of memory is a failure that was planned.
    fn told(&self, error: &AllocError) {
        let planned = matches!(error, AllocError::Backend(error) if self.planned.contains(error));
        assert!(planned, "{error}");
    }

    /// The device works again, and nothing is left to be told of.
    fn heal(&mut self) {
        self.world.sim.fail_clear();
        if let Err(error) = self.world.allocator.trim(0) {
            self.told(&error);
        }
    }
}
