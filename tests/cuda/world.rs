//! An allocator over the stand-in, with work on every block, so that the stand-in can tell when bytes are used too early.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaStream, sys};
use larder::allocator::{AllocError, Allocator, Block, Request, Stream};
use larder::cuda::{self, Cuda, CudaConfig};
use larder::policy::Config;

use crate::driver::{Machine, Standin, Totals};

/// Pages of 64 KiB, which no device has and which cost little to fill.
pub const PAGE: u64 = 64 << 10;

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Pages of the device.
    pub pages: u64,
    pub plain: bool,
    /// In pages of the device.
    pub page: u64,
    pub stock: u64,
    pub config: Config,
    pub lanes: usize,
}

impl Default for Setup {
    fn default() -> Setup {
        let config =
            Config { segment_min: PAGE, poll_every: 4, wait_max: Duration::from_secs(30), ..Config::default() };
        Setup { pages: 32, plain: false, page: 1, stock: 4, config, lanes: 3 }
    }
}

/// A stream, as the allocator and as CUDA knows it.
#[derive(Clone)]
pub struct Lane {
    pub stream: Stream,
    pub raw: Arc<CudaStream>,
}

/// A block, the lanes that use it (the first is its own), and what its bytes are.
pub struct Held {
    pub block: Block<Cuda>,
    pub lanes: Vec<usize>,
    pub byte: u8,
}

pub struct World<'a> {
    pub held: Vec<Held>,
    pub lanes: Vec<Lane>,
    pub allocator: Allocator<Cuda>,
    pub context: Arc<CudaContext>,
    pub driver: &'a Standin,
    next_byte: u8,
}

impl<'a> World<'a> {
    pub fn new(driver: &'a Standin, setup: &Setup) -> World<'a> {
        World::try_new(driver, setup).unwrap()
    }

    pub fn try_new(driver: &'a Standin, setup: &Setup) -> Result<World<'a>, AllocError> {
        let page = PAGE * setup.page;
        driver.reset(Machine { capacity: setup.pages * PAGE, page: PAGE, ..driver.machine() });
        driver.patience(1);
        let context = CudaContext::new(0).unwrap();
        let cuda = CudaConfig { plain: setup.plain, stock: setup.stock * page, ..CudaConfig::default() };
        let config = Config { page: (!setup.plain).then_some(page), ..setup.config.clone() };
        let allocator = cuda::allocator_with(&context, cuda, config)?;
        let mut world = World { held: vec![], lanes: vec![], allocator, context, driver, next_byte: 0 };
        world.add_lane(world.allocator.default_stream())?;
        for _ in 1..setup.lanes {
            world.open_lane()?;
        }
        Ok(world)
    }

    pub fn open_lane(&mut self) -> Result<(), AllocError> {
        let stream = self.allocator.stream()?;
        self.add_lane(stream)
    }

    fn add_lane(&mut self, stream: Stream) -> Result<(), AllocError> {
        let raw = self.allocator.cuda_stream(&stream)?;
        self.lanes.push(Lane { stream, raw });
        Ok(())
    }

    /// A block, written from end to end on its lane at once.
    pub fn alloc(&mut self, lane: usize, bytes: u64) -> Result<(), AllocError> {
        self.serve(lane, bytes, |request| request)
    }

    /// As [`World::alloc`], with the request completed by the caller.
    pub fn serve(
        &mut self,
        lane: usize,
        bytes: u64,
        complete: impl for<'b> FnOnce(Request<'b, Cuda>) -> Request<'b, Cuda>,
    ) -> Result<(), AllocError> {
        let request = self.allocator.request(bytes).on(&self.lanes[lane].stream);
        let block = complete(request).alloc()?;
        self.next_byte = self.next_byte.wrapping_add(1);
        let held = Held { block, lanes: vec![lane], byte: self.next_byte };
        self.write(&held, lane);
        self.held.push(held);
        Ok(())
    }

    /// Writes a block on a lane. A driver that refuses the work is one that a test broke.
    pub fn write(&self, held: &Held, lane: usize) {
        self.current();
        let stream = self.lanes[lane].raw.cu_stream();
        // SAFETY: the block is alive; the stand-in checks every address.
        let _ = unsafe { sys::cuMemsetD8Async(held.block.address(), held.byte, held.block.len() as usize, stream) };
    }

    /// Reads a block on a lane, into the first byte of it from the last, which is the same.
    pub fn read(&self, held: &Held, lane: usize, into: u64) {
        self.current();
        let stream = self.lanes[lane].raw.cu_stream();
        // SAFETY: as above.
        let _ = unsafe { sys::cuMemcpyDtoDAsync_v2(into, held.block.address(), held.block.len() as usize, stream) };
    }

    /// The bytes of a block at both of its ends, when the last lane that uses it comes to it.
    pub fn ends(&self, held: &Held) -> [u8; 2] {
        self.current();
        let last = held.block.len() - 1;
        [0, last].map(|at| {
            let (mut byte, stream) = (0_u8, self.lanes[*held.lanes.last().expect("its own")].raw.cu_stream());
            // SAFETY: as above; the copy is waited for.
            let _ = unsafe { sys::cuMemcpyDtoHAsync_v2((&raw mut byte).cast(), held.block.address() + at, 1, stream) };
            byte
        })
    }

    /// A second lane, which its user orders behind the block's last, uses the block too.
    pub fn share(&mut self, at: usize, lane: usize) {
        let last = *self.held[at].lanes.last().expect("its own");
        if last == lane || self.order(lane, last).is_none() {
            return;
        }
        self.held[at].block.used_on(&self.lanes[lane].stream);
        self.held[at].lanes.push(lane);
        self.write(&self.held[at], lane);
    }

    /// The user makes a lane wait for what another has been given; `None` where the driver does not let them.
    pub fn order(&self, later: usize, earlier: usize) -> Option<()> {
        self.current();
        let mut event = std::ptr::null_mut();
        // SAFETY: the handles are open; the event may be destroyed at once.
        unsafe {
            sys::cuEventCreate(&mut event, 2).result().ok()?;
            let recorded = sys::cuEventRecord(event, self.lanes[earlier].raw.cu_stream()).result();
            let waits =
                recorded.and_then(|()| sys::cuStreamWaitEvent(self.lanes[later].raw.cu_stream(), event, 0).result());
            let _ = sys::cuEventDestroy_v2(event);
            waits.ok()
        }
    }

    fn current(&self) {
        // SAFETY: the context is held.
        let _ = unsafe { sys::cuCtxSetCurrent(self.context.cu_ctx()) };
    }

    /// The figures are exact and no rule was broken so far.
    #[track_caller]
    pub fn sound(&self, story: &dyn std::fmt::Display) {
        self.allocator.check().unwrap_or_else(|error| panic!("{story}: {error}"));
        let counted = self.allocator.total_stats().reserved.current + self.allocator.snapshot().beneath;
        assert_eq!(self.driver.totals().used_bytes, counted, "{story}: what the device has given is what is counted");
        let violations = self.driver.violations();
        assert!(violations.is_empty(), "{story}: rules broken:\n{}", violations.join("\n"));
    }

    /// All blocks go, then the memory, then the allocator: nothing is left but the context's reference.
    #[track_caller]
    pub fn end(self, story: &dyn std::fmt::Display) {
        let World { held, lanes, allocator, context, driver, .. } = self;
        drop(held);
        // Twice, for configs that never wait: the first purge records what the second finds complete.
        for _ in 0..2 {
            context.synchronize().unwrap();
            allocator.purge().unwrap_or_else(|error| panic!("{story}: {error}"));
        }
        let totals = driver.totals();
        assert_eq!((totals.mapped_bytes, totals.allocations), (0, 0), "{story}: after the purge: {:?}", driver.leaks());
        allocator.check().unwrap_or_else(|error| panic!("{story}: {error}"));
        drop((lanes, allocator));
        let violations = driver.violations();
        assert!(violations.is_empty(), "{story}: rules broken:\n{}", violations.join("\n"));
        // What the driver did not take back when it was given back, nobody gives it again.
        let struck = driver.struck();
        let kept = struck.iter().filter(|name| *name == "cuEventDestroy_v2").count() as u64;
        let totals = driver.totals();
        let clean = Totals { events: totals.events.saturating_sub(kept), ..totals }.is_clean();
        assert!(clean, "{story}, struck {struck:?}: left behind: {:?}", driver.leaks());
    }
}
