//! An allocator over a simulated device, with everything that uses it: streams, blocks, and device work on every block, so that the
//! device can tell when bytes are used again too early.
#![allow(dead_code)]

use larder::allocator::{AllocError, Allocator, Block, Request, Simulated, Stream};
use larder::backend::Backend;
use larder::backend::sim::{Sim, SimConfig};
use larder::policy::Config;

/// A block, its owner's number on the device, and the streams that use it (the first is its own).
pub struct Held {
    pub block: Block<Simulated>,
    pub owner: u64,
    pub streams: Vec<Stream>,
}

pub struct World {
    pub allocator: Allocator<Simulated>,
    pub sim: Sim,
    pub host_ordered: bool,
    pub streams: Vec<Stream>,
    pub held: Vec<Held>,
    owners: u64,
}

impl World {
    pub fn new(device: SimConfig, config: Config, streams: usize) -> World {
        let (allocator, sim) = Allocator::simulated(device, config).unwrap();
        let mut all = vec![allocator.default_stream()];
        all.extend((1..streams).map(|_| allocator.stream().unwrap()));
        World { allocator, sim, host_ordered: device.host_ordered, streams: all, held: Vec::new(), owners: 0 }
    }

    /// A block for a stream, used there at once.
    pub fn alloc(&mut self, stream: usize, bytes: u64) -> Result<(), AllocError> {
        self.serve(stream, bytes, |request| request)
    }

    /// As [`World::alloc`], with the request completed by the caller.
    pub fn serve(
        &mut self,
        stream: usize,
        bytes: u64,
        complete: impl for<'a> FnOnce(Request<'a, Simulated>) -> Request<'a, Simulated>,
    ) -> Result<(), AllocError> {
        let allocator = self.allocator.clone();
        self.serve_from(&allocator, stream, bytes, complete)
    }

    pub fn serve_from(
        &mut self,
        allocator: &Allocator<Simulated>,
        stream: usize,
        bytes: u64,
        complete: impl for<'a> FnOnce(Request<'a, Simulated>) -> Request<'a, Simulated>,
    ) -> Result<(), AllocError> {
        let stream = self.streams[stream].clone();
        let block = complete(allocator.request(bytes).on(&stream)).alloc()?;
        self.owners += 1;
        self.held.push(Held { block, owner: self.owners, streams: vec![stream] });
        self.work(self.held.len() - 1, 0);
        Ok(())
    }

    /// Work on a block, on one of the streams that use it.
    pub fn work(&self, at: usize, stream: usize) {
        let held = &self.held[at];
        let Some(span) = held.block.span() else { return };
        // What is wrong is among the violations; a lost device does no work.
        let _ = self.sim.work(held.streams[stream].id(), held.owner, span);
        if self.host_ordered {
            let _ = self.sim.host_touch(held.owner, span);
        }
    }

    /// The block is used on a second stream, which its user has ordered behind the block's own.
    pub fn use_on(&mut self, at: usize, stream: usize) {
        let other = self.streams[stream].clone();
        let held = &mut self.held[at];
        // Without the order there is no use.
        let Ok(event) = self.sim.record(held.streams[0].id()) else { return };
        let waits = self.sim.stream_wait(other.id(), event);
        self.sim.forget(event);
        if waits.is_err() {
            return;
        }
        held.block.used_on(&other);
        held.streams.push(other);
        self.work(at, self.held[at].streams.len() - 1);
    }

    pub fn drop_at(&mut self, at: usize) {
        drop(self.held.swap_remove(at));
    }

    /// Allocator and device agree with themselves and with each other.
    pub fn check_device(&self) {
        self.allocator.check().unwrap();
        self.sim.check().unwrap();
        assert_eq!(self.sim.violations(), []);
        let (used, reserved) = (self.sim.counters().used, self.allocator.total_stats().reserved.current);
        assert_eq!(used, reserved, "physical bytes of the device, reserved bytes");
    }

    /// Everything that must hold between two calls, when all blocks are held here.
    pub fn check(&self) {
        self.check_device();
        let stats = self.allocator.total_stats();
        let blocks = self.held.iter().filter(|held| held.block.id().is_some());
        let figures =
            blocks.fold((0, 0, 0), |sum, held| (sum.0 + 1, sum.1 + held.block.len(), sum.2 + held.block.size()));
        assert_eq!((stats.blocks.current, stats.requested.current, stats.live.current), figures);
        for gauge in [stats.requested, stats.live, stats.pending, stats.active, stats.reserved, stats.blocks] {
            assert!(gauge.current == gauge.allocated - gauge.freed && gauge.current <= gauge.peak, "{gauge:?}");
        }
    }

    /// Everything is dropped and returned; then the allocator goes, and nothing is left on the device.
    pub fn end(mut self) {
        self.held.clear();
        self.check();
        self.allocator.purge().unwrap();
        self.check();
        let stats = self.allocator.total_stats();
        assert_eq!((stats.reserved.current, stats.pending.current), (0, 0));
        // Streams without handles are closed by those who look: behind an event, once it is done.
        for _ in 0..2 {
            self.allocator.trim(0).unwrap();
            self.sim.complete_all();
        }
        self.allocator.trim(0).unwrap();
        let open = self.sim.counters().streams;
        assert!(open <= self.streams.len() as u64, "{open} streams are open, {} have handles", self.streams.len());
        let World { allocator, sim, streams, .. } = self;
        drop((allocator, streams));
        let counters = sim.counters();
        assert_eq!((counters.used, counters.live_events), (0, 0), "bytes and events that are left");
        assert_eq!((sim.check(), sim.violations()), (Ok(()), vec![]));
    }
}
