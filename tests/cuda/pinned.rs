//! Page-locked memory of the host, which the CPU touches by itself: used again only when the copies of its last owner are known to be
//! done.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, sys};
use larder::allocator::{AllocError, Allocator, Block, Stream};
use larder::cuda::{self, Pinned};
use larder::policy::Config;

use crate::common::Rng;
use crate::driver::{Standin, standin};

const MOST: u64 = 256 << 10;

struct World<'a> {
    held: Vec<Block<Pinned>>,
    lanes: Vec<(Stream, Arc<CudaStream>)>,
    pinned: Allocator<Pinned>,
    /// Memory of the device to copy to, some for each lane.
    device: u64,
    context: Arc<CudaContext>,
    driver: &'a Standin,
}

impl<'a> World<'a> {
    fn new(driver: &'a Standin) -> World<'a> {
        driver.reset(driver.machine());
        driver.patience(1);
        let context = CudaContext::new(0).unwrap();
        let config = Config { segment_min: MOST, poll_every: 3, ..Config::default() }.limit(8 * MOST);
        let pinned = cuda::pinned(&context, config).unwrap();
        let raw = [context.default_stream(), context.new_stream().unwrap(), context.new_stream().unwrap()];
        let lanes = raw.map(|raw| (pinned.stream_of(&raw).unwrap(), raw)).into();
        // SAFETY: freed in `end`.
        let device = unsafe { cudarc::driver::result::malloc_sync(3 * MOST as usize) }.unwrap();
        World { held: vec![], lanes, pinned, device, context, driver }
    }

    /// A block that the CPU writes and a lane then copies.
    fn send(&mut self, lane: usize, bytes: u64) -> Result<(), AllocError> {
        let block = self.pinned.alloc_on(&self.lanes[lane].0, bytes)?;
        self.driver.host_touch(block.address(), bytes, true);
        self.copy(&block, lane);
        self.held.push(block);
        Ok(())
    }

    fn copy(&self, block: &Block<Pinned>, lane: usize) {
        let (to, stream) = (self.device + lane as u64 * MOST, self.lanes[lane].1.cu_stream());
        let from = std::ptr::with_exposed_provenance(block.address() as usize);
        // SAFETY: both are alive; the stand-in checks the order. A driver that refuses is one that a test broke.
        unsafe {
            let _ = sys::cuCtxSetCurrent(self.context.cu_ctx());
            let _ = sys::cuMemcpyHtoDAsync_v2(to, from, block.len() as usize, stream);
        }
    }

    fn step(&mut self, random: &mut Rng) -> Result<(), AllocError> {
        let (lane, at) = (random.below(3) as usize, random.below(self.held.len().max(1) as u64) as usize);
        match random.below(20) {
            0..=7 => {
                let most = MOST / (1 + random.below(8));
                return self.send(lane, 1 + random.below(most));
            }
            8..=10 if !self.held.is_empty() => {
                let block = &self.held[at];
                block.used_on(&self.lanes[lane].0);
                self.copy(block, lane);
            }
            11..=16 if !self.held.is_empty() => drop(self.held.swap_remove(at)),
            17 => return self.pinned.trim(random.below(MOST)).map(drop),
            _ => (0..random.below(6)).for_each(|_| _ = self.driver.step_any(random.next())),
        }
        Ok(())
    }

    fn sound(&self, story: &str) {
        self.pinned.check().unwrap_or_else(|error| panic!("{story}: {error}"));
        let violations = self.driver.violations();
        assert!(violations.is_empty(), "{story}: rules broken:\n{}", violations.join("\n"));
    }

    fn end(self, story: &str) {
        let World { held, lanes, pinned, device, context, driver } = self;
        drop(held);
        for _ in 0..2 {
            context.synchronize().unwrap();
            pinned.purge().unwrap();
        }
        assert_eq!(driver.totals().pinned, 0, "{story}");
        drop((lanes, pinned));
        // SAFETY: allocated in `new`.
        unsafe { cudarc::driver::result::free_sync(device) }.unwrap();
        driver.assert_clean();
        let struck = driver.struck();
        let kept = struck.iter().filter(|name| *name == "cuEventDestroy_v2" || *name == "cuStreamDestroy_v2").count();
        assert!(driver.totals().is_clean() || kept > 0, "{story}, struck {struck:?}: {:?}", driver.leaks());
    }
}

#[test]
fn random_programs_break_no_rule() {
    let Some(driver) = standin() else { return };
    for seed in 0..if crate::common::full() { 500 } else { 40 } {
        let story = format!("seed {seed}");
        let (mut world, mut random) = (World::new(&driver), Rng::new(seed));
        for _ in 0..150 {
            if world.step(&mut random).is_err() {
                world.held.truncate(1);
            }
            world.sound(&story);
        }
        world.end(&story);
    }
}

#[test]
fn every_call_fails_once() {
    let Some(driver) = standin() else { return };
    let play = |world: &mut World<'_>, story: &str| {
        let mut random = Rng::new(7);
        for _ in 0..120 {
            if world.step(&mut random).is_err() {
                world.held.truncate(2);
            }
            world.sound(story);
        }
    };
    let mut world = World::new(&driver);
    let before = driver.calls("*");
    play(&mut world, "nothing fails");
    let calls = driver.calls("*") - before;
    world.end("nothing fails");
    assert!(calls > 200, "{calls}");
    for code in [2, 999] {
        for k in (1..=calls).step_by(if crate::common::full() { 1 } else { 9 }) {
            let story = format!("call {k} of {calls} answers {code}");
            let mut world = World::new(&driver);
            driver.fail("*", k, code);
            play(&mut world, &story);
            driver.heal();
            world.held.clear();
            if world.send(0, 100).is_err() {
                world.send(0, 100).unwrap_or_else(|error| panic!("{story}: the next allocation: {error}"));
            }
            world.end(&story);
        }
    }
}
