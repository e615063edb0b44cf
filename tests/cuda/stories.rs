//! Stories of one rule each.

use larder::allocator::AllocError;
use larder::backend::BackendError;
use larder::policy::Config;

use crate::driver::standin;
use crate::world::{PAGE, Setup, World};

/// Plain segments, and pages with and without aliases.
fn setups() -> [Setup; 3] {
    let usual = Setup::default();
    let apart = Config { alias: false, ..usual.config.clone() };
    [usual.clone(), Setup { config: apart, ..usual.clone() }, Setup { plain: true, ..usual }]
}

#[test]
fn two_readers_before_a_free_are_both_waited_for() {
    let Some(driver) = standin() else { return };
    for late in [1, 2] {
        for setup in setups() {
            let story = format!("lane {late} is late, {setup:?}");
            let mut world = World::new(&driver, &setup);
            world.alloc(0, 8 * PAGE).unwrap();
            world.alloc(1, 8 * PAGE).unwrap();
            world.alloc(2, 8 * PAGE).unwrap();
            let block = world.held.remove(0);
            for lane in [1, 2] {
                world.order(lane, 0).unwrap();
                block.block.used_on(&world.lanes[lane].stream);
                world.read(&block, lane, world.held[lane - 1].block.address());
            }
            drop(block);
            // The other reader is through, and the allocator may know.
            driver.step(world.lanes[3 - late].raw.cu_stream() as usize, 100);
            driver.step(0, 100);
            driver.step(world.lanes[3 - late].raw.cu_stream() as usize, 100);
            for _ in 0..4 {
                world.alloc(0, 8 * PAGE).unwrap_or_else(|error| panic!("{story}: {error}"));
                let again = world.held.pop().unwrap();
                world.sound(&story);
                drop(again);
            }
            world.end(&story);
        }
    }
}

#[test]
fn memory_freed_on_one_stream_serves_another_without_waiting() {
    let Some(driver) = standin() else { return };
    for setup in setups() {
        let mut world = World::new(&driver, &setup);
        driver.patience(0);
        world.alloc(1, 30 * PAGE).unwrap();
        world.held.clear();
        world.alloc(2, 30 * PAGE).unwrap();
        assert!(driver.totals().queued > 0, "the host waited: {setup:?}");
        assert_eq!(world.allocator.stats().host_waits, 0);
        assert_eq!(world.ends(&world.held[0]), [world.held[0].byte; 2]);
        driver.patience(1);
        world.end(&format!("{setup:?}"));
    }
}

#[test]
fn holes_are_moved_together_under_work_in_flight() {
    let Some(driver) = standin() else { return };
    let mut world = World::new(&driver, &Setup::default());
    (0..30).for_each(|at| world.alloc(at % 3, PAGE).unwrap());
    let mut at = 0;
    world.held.retain(|_| {
        at += 1;
        at % 2 == 0
    });
    world.alloc(1, 14 * PAGE).unwrap();
    assert!(world.allocator.stats().moved > 0);
    for held in &world.held {
        assert_eq!(world.ends(held), [held.byte; 2]);
    }
    world.sound(&"moved");
    world.end(&"moved");
}

#[test]
fn zeroed_memory_is_zero_where_it_was_dirty() {
    let Some(driver) = standin() else { return };
    for setup in setups() {
        let mut world = World::new(&driver, &setup);
        world.alloc(1, 20 * PAGE).unwrap();
        world.held.clear();
        let block = world.allocator.request(20 * PAGE).on(&world.lanes[2].stream).zeroed().alloc().unwrap();
        let held = crate::world::Held { block, lanes: vec![2], byte: 0 };
        assert_eq!(world.ends(&held), [0, 0], "{setup:?}");
        drop(held);
        world.end(&format!("{setup:?}"));
    }
}

#[test]
fn out_of_memory_is_said_as_such_and_ends_with_room() {
    let Some(driver) = standin() else { return };
    for setup in setups() {
        let mut world = World::new(&driver, &setup);
        world.alloc(0, 16 * PAGE).unwrap();
        let error = world.alloc(1, 20 * PAGE).unwrap_err();
        assert!(matches!(error, AllocError::OutOfMemory(_)), "{setup:?}: {error}");
        world.held.clear();
        world.alloc(1, 20 * PAGE).unwrap_or_else(|error| panic!("{setup:?}: {error}"));
        world.end(&format!("{setup:?}"));
    }
}

#[test]
fn a_device_that_others_fill_is_out_of_memory_too() {
    let Some(driver) = standin() else { return };
    for setup in setups() {
        let mut world = World::new(&driver, &setup);
        world.alloc(0, 4 * PAGE).unwrap();
        driver.capacity(6 * PAGE);
        assert!(matches!(world.alloc(1, 8 * PAGE), Err(AllocError::OutOfMemory(_))), "{setup:?}");
        driver.capacity(32 * PAGE);
        world.alloc(1, 8 * PAGE).unwrap();
        world.end(&format!("{setup:?}"));
    }
}

#[test]
fn growth_tries_whatever_the_driver_says_of_free_memory() {
    let Some(driver) = standin() else { return };
    for setup in setups() {
        let mut world = World::new(&driver, &Setup { stock: 0, ..setup.clone() });
        driver.fail_from("cuMemGetInfo_v2", 1, 999);
        world.alloc(0, 8 * PAGE).unwrap_or_else(|error| panic!("{setup:?}: {error}"));
        // What does not fit after all leaves nothing behind.
        let held = driver.totals();
        driver.capacity(held.used_bytes + 2 * PAGE);
        assert!(world.alloc(1, 8 * PAGE).is_err(), "{setup:?}");
        assert_eq!((driver.totals().handles, driver.totals().used_bytes), (held.handles, held.used_bytes), "{setup:?}");
        driver.heal();
        world.end(&format!("{setup:?}"));
    }
}

#[test]
fn addresses_are_had_in_smaller_pieces_where_many_are_refused() {
    let Some(driver) = standin() else { return };
    let setup = Setup::default();
    let mut world = World::new(&driver, &setup);
    driver.address_limit(64 * PAGE);
    world.alloc(0, 20 * PAGE).unwrap();
    world.alloc(1, 8 * PAGE).unwrap();
    assert!(driver.totals().reserved_bytes <= 64 * PAGE);
    world.end(&"few addresses");
}

#[test]
fn a_lost_device_is_an_error_for_ever_and_drops_are_safe() {
    let Some(driver) = standin() else { return };
    for setup in setups() {
        for code in [719, 700, 4] {
            let mut world = World::new(&driver, &setup);
            world.alloc(0, 4 * PAGE).unwrap();
            world.alloc(1, 4 * PAGE).unwrap();
            driver.lose(code);
            // What is there already is arithmetic; what needs the driver is an error.
            let error = world.alloc(2, 20 * PAGE).unwrap_err();
            assert!(matches!(error, AllocError::Backend(BackendError::Lost { .. })), "{code}, {setup:?}: {error}");
            world.allocator.check().unwrap();
            world.held.clear();
            let _ = (world.allocator.purge(), world.open_lane().map_err(|error| error.to_string()));
            let calls = driver.calls("cuMemUnmap") + driver.calls("cuMemFree_v2");
            let context = world.context.clone();
            drop(world);
            assert_eq!(driver.calls("cuMemUnmap") + driver.calls("cuMemFree_v2"), calls, "a lost device is let alone");
            driver.heal();
            drop(context);
        }
    }
}

#[test]
fn the_context_that_was_current_stays_so() {
    use cudarc::driver::{CudaContext, sys};
    let Some(driver) = standin() else { return };
    let current = || {
        let mut current = std::ptr::null_mut();
        // SAFETY: a place for the handle.
        unsafe { sys::cuCtxGetCurrent(&mut current) }.result().unwrap();
        current
    };
    let mut world = World::new(&driver, &Setup::default());
    let machine = driver.machine();
    drop(world);
    driver.reset(crate::driver::Machine { devices: 2, ..machine });
    let (first, second) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
    let allocator = larder::cuda::allocator(&first, Config::default()).unwrap();
    let stream = allocator.stream().unwrap();
    second.bind_to_thread().unwrap();
    for _ in 0..3 {
        let block = allocator.alloc_on(&stream, 5 << 20).unwrap();
        drop(block);
        allocator.purge().unwrap();
        assert_eq!(current(), second.cu_ctx());
    }
    drop((stream, allocator));
    assert_eq!(current(), second.cu_ctx());
    driver.assert_clean();
    world = World::new(&driver, &Setup::default());
    world.end(&"another world");
}

#[test]
fn a_device_that_was_lost_is_touched_no_more() {
    use larder::backend::Backend;
    use larder::backend::cuda::{CudaConfig, CudaDevice};
    use larder::ids::StreamId;

    let Some(driver) = standin() else { return };
    let context = cudarc::driver::CudaContext::new(0).unwrap();
    for plain in [false, true] {
        let device = CudaDevice::new(&context, &CudaConfig { plain, ..CudaConfig::default() }).unwrap();
        let event = device.record(StreamId(0)).unwrap();
        driver.lose(700);
        let lost = |result: Result<(), BackendError>| assert!(matches!(result, Err(BackendError::Lost { .. })));
        lost(device.budget().map(drop));
        driver.heal();
        // The driver would answer again; nobody asks it.
        let calls = driver.calls("*");
        lost(device.budget().map(drop));
        lost(device.done(event).map(drop));
        lost(device.record(StreamId(0)).map(drop));
        lost(if plain { device.grow_segment(4096) } else { device.reserve(64 << 20) }.map(drop));
        lost(device.open_stream().map(drop));
        drop(device);
        assert_eq!(driver.calls("*"), calls);
    }
    driver.assert_clean();
}
