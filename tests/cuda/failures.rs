//! Every driver call fails once, at every point of a scripted workload, and for ever from every point: the figures stay exact, the
//! next allocation works, nothing is used too early, and all that the driver would take back it has back.

use larder::allocator::AllocError;

use crate::driver::{Standin, standin};
use crate::world::{PAGE, Setup, World};

#[derive(Clone, Copy, Debug)]
enum Step {
    /// On a lane, so many bytes.
    Alloc(usize, u64),
    Zeroed(usize, u64),
    /// Every n-th block goes.
    DropEvery(usize),
    Share(usize),
    Trim(u64),
    Purge,
    NewLane,
    /// Operations of any stream run.
    Run(u64),
}

/// Three streams, growth to near capacity, holes of single pages, moves, trim, growth again, release.
fn script(setup: &Setup) -> Vec<Step> {
    use Step::*;
    let full = if setup.plain { 10 } else { 24 };
    let mut steps: Vec<Step> = (0..full).map(|at| Alloc(at % 3, PAGE)).collect();
    steps.extend([Zeroed(1, 3 * PAGE / 2), Share(2), DropEvery(2), Run(9), Alloc(1, 4 * PAGE), Alloc(2, 3 * PAGE)]);
    steps.extend([
        Run(3),
        Alloc(0, 2 * PAGE + 700),
        Share(0),
        NewLane,
        DropEvery(3),
        Alloc(1, 5 * PAGE),
        Trim(4 * PAGE),
    ]);
    steps.extend([Alloc(2, PAGE / 2), Run(20), Alloc(0, 3 * PAGE), DropEvery(2), Alloc(1, 6 * PAGE), Purge]);
    steps.extend([Alloc(1, 5 * PAGE), Alloc(0, 4 * PAGE)]);
    steps
}

fn take(world: &mut World<'_>, step: Step) -> Result<(), AllocError> {
    match step {
        Step::Alloc(lane, bytes) => return world.alloc(lane, bytes),
        Step::Zeroed(lane, bytes) => return world.serve(lane, bytes, |request| request.zeroed()),
        Step::DropEvery(n) => {
            let mut at = 0;
            world.held.retain(|_| {
                at += 1;
                at % n != 0
            });
        }
        Step::Share(lane) if !world.held.is_empty() => world.share(world.held.len() / 2, lane),
        Step::Share(_) => {}
        Step::Trim(keep) => return world.allocator.trim(keep).map(drop),
        Step::Purge => return world.allocator.purge().map(drop),
        Step::NewLane => return world.open_lane(),
        Step::Run(count) => (0..count).for_each(|pick| _ = world.driver.step_any(pick)),
    }
    Ok(())
}

fn setups() -> Vec<Setup> {
    let usual = Setup::default();
    let apart = larder::Config { alias: false, ..usual.config.clone() };
    vec![
        usual.clone(),
        Setup { stock: 0, config: apart, ..usual.clone() },
        Setup { page: 2, pages: 64, ..usual.clone() },
        Setup { plain: true, ..usual },
    ]
}

/// Plays the script; answers how many of its steps failed.
fn play(world: &mut World<'_>, setup: &Setup, story: &str) -> usize {
    let mut failed = 0;
    for step in script(setup) {
        failed += usize::from(take(world, step).is_err());
        world.sound(&format!("{story}, after {step:?}"));
    }
    failed
}

/// The driver calls of the script when nothing fails.
fn calls(driver: &Standin, setup: &Setup) -> u64 {
    let mut world = World::new(driver, setup);
    let before = driver.calls("*");
    let failed = play(&mut world, setup, "nothing fails");
    assert_eq!(failed, 0, "{setup:?}: the script fits the device");
    let calls = driver.calls("*") - before;
    world.end(&"nothing fails");
    calls
}

/// The driver is well again: the next allocation works, and everything goes back.
fn recover(mut world: World<'_>, story: &str) {
    world.driver.heal();
    world.held.truncate(2);
    // One error may still be waiting to be told.
    if world.alloc(0, PAGE).is_err() {
        world.alloc(0, PAGE).unwrap_or_else(|error| panic!("{story}: the next allocation: {error}"));
    }
    world.end(&story);
}

#[test]
fn every_call_fails_once() {
    let Some(driver) = standin() else { return };
    for setup in setups() {
        let calls = calls(&driver, &setup);
        assert!(calls > 300, "{calls}");
        let every = if crate::common::full() { 1 } else { 7 };
        for (code, start) in [(2, 1), (999, 4)] {
            for k in (start..=calls).step_by(every) {
                let story = format!("call {k} of {calls} answers {code}, {setup:?}");
                let mut world = World::new(&driver, &setup);
                driver.fail("*", k, code);
                play(&mut world, &setup, &story);
                recover(world, &story);
            }
        }
    }
}

#[test]
fn every_kind_of_call_fails_for_a_while() {
    let Some(driver) = standin() else { return };
    let names = [
        "cuMemCreate",
        "cuMemMap",
        "cuMemSetAccess",
        "cuMemUnmap",
        "cuMemRelease",
        "cuMemAddressReserve",
        "cuMemGetInfo_v2",
        "cuMemAlloc_v2",
        "cuMemFree_v2",
        "cuEventCreate",
        "cuEventRecord",
        "cuEventQuery",
        "cuEventSynchronize",
        "cuStreamWaitEvent",
        "cuStreamIsCapturing",
        "cuMemsetD8Async",
        "cuStreamCreate",
    ];
    for setup in setups() {
        for name in names {
            for (after, code) in [(1, 2), (3, 999), (9, 2)] {
                let story = format!("{name} answers {code} from the {after}th on, {setup:?}");
                let mut world = World::new(&driver, &setup);
                driver.fail_from(name, after, code);
                play(&mut world, &setup, &story);
                recover(world, &story);
            }
        }
    }
}

#[test]
fn a_device_that_is_lost_anywhere_neither_panics_nor_hangs() {
    let Some(driver) = standin() else { return };
    for setup in setups() {
        let calls = calls(&driver, &setup);
        for k in (1..=calls).step_by(7) {
            let story = format!("lost at call {k}, {setup:?}");
            let mut world = World::new(&driver, &setup);
            driver.fail_from("*", k, 719);
            for step in script(&setup) {
                let _ = take(&mut world, step);
                world.allocator.check().unwrap_or_else(|error| panic!("{story}, after {step:?}: {error}"));
            }
            drop(world);
            driver.heal();
        }
    }
}

#[test]
fn making_an_allocator_fails_in_a_typed_error() {
    let Some(driver) = standin() else { return };
    let setup = Setup::default();
    for name in ["cuDeviceTotalMem_v2", "cuDeviceGetAttribute", "cuMemGetAllocationGranularity", "cuCtxGetCurrent"] {
        driver.reset(driver.machine());
        let context = cudarc::driver::CudaContext::new(0).unwrap();
        driver.fail(name, 1, 999);
        let made = larder::cuda::allocator(&context, setup.config.clone());
        assert!(made.is_err_and(|error| error.to_string().contains("CUDA_ERROR_UNKNOWN")), "{name}");
        driver.heal();
        drop(context);
        assert!(driver.totals().is_clean(), "{name}: {:?}", driver.leaks());
    }
}
