//! A user of an allocator on a simulated device who does everything right: work only on streams that may touch a block, waits
//! where one stream hands over to another. So every rule that the device finds broken was broken by the allocator.
//!
//! Each block has a number of its own, which the device knows as the owner of its work.

use larder::backend::sim::{Call, Sim, SimConfig};
use larder::backend::{Backend, Span};
use larder::ids::PoolId;
use larder::{AllocError, Allocator, Block, Config, PoolConfig, Simulated, Stream};

/// A small generator of numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1));
        random.below(2);
        random
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// A stream of the user, by a number that is never given twice.
pub struct Lane {
    pub key: u64,
    pub stream: Stream,
}

/// A block of the user: whose work it is, and the lanes that may touch it, its own first.
pub struct Held {
    pub block: Block<Simulated>,
    pub owner: u64,
    pub users: Vec<u64>,
}

impl Held {
    fn span(&self) -> Span {
        self.block.span().expect("blocks of this world hold bytes")
    }
}

pub struct World {
    pub allocator: Allocator<Simulated>,
    pub sim: Sim,
    pub lanes: Vec<Lane>,
    pub live: Vec<Held>,
    pub pools: Vec<PoolId>,
    host_ordered: bool,
    next_owner: u64,
    next_lane: u64,
}

impl World {
    pub fn new(device: SimConfig, config: Config, lanes: u64) -> World {
        let (allocator, sim) = Allocator::simulated(device, config).expect("a sound config");
        let first = Lane { key: 0, stream: allocator.default_stream() };
        let mut world = World {
            pools: vec![allocator.pool_id()],
            allocator,
            sim,
            lanes: vec![first],
            live: Vec::new(),
            host_ordered: device.host_ordered,
            next_owner: 1,
            next_lane: 1,
        };
        (1..lanes).for_each(|_| world.open_lane());
        world
    }

    pub fn add_pool(&mut self) {
        let pool = self.allocator.pool("second", PoolConfig::default()).expect("a second pool");
        self.pools.push(pool.pool_id());
    }

    pub fn open_lane(&mut self) {
        let stream = self.allocator.stream().expect("a stream");
        self.lanes.push(Lane { key: self.next_lane, stream });
        self.next_lane += 1;
    }

    fn lane(&self, key: u64) -> Option<&Lane> {
        self.lanes.iter().find(|lane| lane.key == key)
    }

    /// A block for a lane; `None` when memory is out. Work that the lane does with it comes when `work` is called.
    pub fn alloc(&mut self, lane: usize, pool: PoolId, bytes: u64, align: u64) -> Option<Held> {
        let lane = &self.lanes[lane];
        match self.allocator.request(bytes).on(&lane.stream).pool(pool).align(align).alloc() {
            Ok(block) => {
                assert!(block.address().is_multiple_of(align));
                let held = Held { block, owner: self.next_owner, users: vec![lane.key] };
                self.next_owner += 1;
                if self.host_ordered {
                    // The CPU may write at once.
                    let _ = self.sim.host_touch(held.owner, held.span());
                }
                Some(held)
            }
            Err(AllocError::OutOfMemory(_)) => None,
            Err(error) => panic!("{error}; {:#?}", self.sim.violations()),
        }
    }

    /// A block of the first pool, with work of its lane on all of it.
    #[track_caller]
    pub fn used(&mut self, lane: usize, bytes: u64) -> Held {
        let held = self.alloc(lane, self.pools[0], bytes, 1).expect("there is room");
        self.work_whole(&held);
        held
    }

    /// Work on a part of a block by each of its users that `which` lets pass. Broken rules are in the device's list.
    pub fn work(&self, held: &Held, part: (u64, u64), mut which: impl FnMut(usize) -> bool) {
        let whole = held.span();
        let from = part.0.min(whole.size - 1);
        let span = Span { offset: whole.offset + from, size: part.1.clamp(from + 1, whole.size) - from, ..whole };
        for (index, key) in held.users.iter().enumerate() {
            if let Some(lane) = self.lane(*key).filter(|_| which(index)) {
                let _ = self.sim.work(lane.stream.id(), held.owner, span);
            }
        }
    }

    pub fn work_whole(&self, held: &Held) {
        self.work(held, (0, u64::MAX), |_| true);
    }

    /// Makes one lane wait on the device for another's work so far, without a word to the allocator.
    pub fn order(&self, later: &Stream, earlier: &Stream) {
        let event = self.sim.record(earlier.id()).expect("an event");
        self.sim.stream_wait(later.id(), event).expect("a wait");
        self.sim.forget(event);
    }

    /// Hands a block to a further lane, behind the work of all that use it.
    pub fn share(&self, held: &mut Held, lane: usize) {
        let lane = &self.lanes[lane];
        if held.users.contains(&lane.key) || self.lane(held.users[0]).is_none() {
            return;
        }
        held.users.iter().filter_map(|key| self.lane(*key)).for_each(|user| self.order(&lane.stream, &user.stream));
        held.block.used_on(&lane.stream);
        held.users.push(lane.key);
    }

    /// Orders one lane behind another, and says so.
    pub fn follow(&self, later: usize, earlier: usize) {
        let (later, earlier) = (&self.lanes[later].stream, &self.lanes[earlier].stream);
        self.order(later, earlier);
        later.follows(earlier);
    }

    pub fn close_lane(&mut self, lane: usize) {
        if self.lanes[lane].key != 0 {
            self.lanes.remove(lane);
        }
    }

    /// Calls of one kind that the device has served.
    pub fn calls(&self, call: Call) -> u64 {
        self.sim.counters().succeeded(call)
    }

    /// Lets the allocator look for completed work, and returns nothing.
    pub fn poll(&self) {
        self.allocator.trim(u64::MAX).expect("a poll");
    }

    /// Nothing was broken so far, and every figure is what a walk finds.
    #[track_caller]
    pub fn sound(&self, story: &dyn std::fmt::Display) {
        self.unbroken(story);
        self.sim.check().unwrap_or_else(|text| panic!("{story}: {text}"));
        self.allocator.check().unwrap_or_else(|text| panic!("{story}: {text}"));
    }

    #[track_caller]
    pub fn unbroken(&self, story: &dyn std::fmt::Display) {
        let broken = self.sim.counters().violations;
        let first = self.sim.violations();
        assert!(broken == 0, "{story}: {broken} rules broken, the first: {:?}", first.first());
    }

    /// Frees everything, ends the allocator, and finds all rules kept and, if the allocator may wait, the device empty.
    pub fn end(self, story: &dyn std::fmt::Display) {
        self.sound(story);
        let waits = !self.allocator.config().wait_max.is_zero();
        let World { allocator, sim, lanes, live, .. } = self;
        drop((live, lanes));
        drop(allocator);
        let counters = sim.counters();
        assert_eq!(sim.violations(), [], "{story}: at the end");
        if waits {
            assert_eq!((counters.used, counters.address_end), (0, 0), "{story}: memory stays behind");
        }
        sim.check().unwrap_or_else(|text| panic!("{story}: {text}"));
    }
}
