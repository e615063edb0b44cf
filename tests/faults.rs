//! Every call of the backend fails once, at every point of a scripted workload, and for ever from every point: nothing is lost,
//! the figures stay exact, the caller is told in a typed error at most once per failure, and the next allocation works.

mod common;

use std::time::Duration;

use common::world::World;
use common::{full, runs};
use larder::allocator::AllocError;
use larder::backend::BackendError;
use larder::backend::sim::{Call, Lag, SimConfig, SimMemory};
use larder::policy::{Config, PoolConfig};
use larder::units::KIB;

const PAGE: u64 = 64 * KIB;
const KINDS: [Kind; 5] = [
    Kind { memory: SimMemory::Alias, alias: true },
    Kind { memory: SimMemory::Alias, alias: false },
    Kind { memory: SimMemory::Remap, alias: true },
    Kind { memory: SimMemory::Paged, alias: true },
    Kind { memory: SimMemory::Segments, alias: true },
];
const LAGS: [Lag; 3] = [Lag::Events(12), Lag::Never, Lag::Events(0)];

/// What the device can do, and whether the config lets moved pages stay mapped at their old address.
#[derive(Clone, Copy, Debug)]
struct Kind {
    memory: SimMemory,
    alias: bool,
}

/// One step of the script.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// On a stream, so many bytes.
    Alloc(usize, u64),
    Zeroed(usize, u64),
    FromSecond(u64),
    /// Every n-th block goes.
    DropEvery(usize),
    UseOn(usize),
    Trim(u64),
    Purge,
    NewStream,
    Advance(u64),
}

/// Three streams, growth to near capacity, holes of single pages, moves into windows, trim, growth again, release.
fn script(kind: Kind) -> Vec<Step> {
    use Step::*;
    // Where pages cannot move, fragments need room.
    let full = if matches!(kind.memory, SimMemory::Alias | SimMemory::Remap) { 28 } else { 12 };
    let mut steps: Vec<Step> = (0..full).map(|at| Alloc(at % 3, PAGE)).collect();
    steps.extend([Zeroed(1, 3 * PAGE / 2), Alloc(0, 5000), UseOn(2), DropEvery(2), Advance(3)]);
    steps.extend([Alloc(1, 4 * PAGE), Alloc(2, 3 * PAGE), Advance(1), Alloc(0, 2 * PAGE + 700), UseOn(0)]);
    steps.extend([
        NewStream,
        DropEvery(3),
        Alloc(1, 5 * PAGE),
        FromSecond(2 * PAGE),
        Trim(4 * PAGE),
        Alloc(2, PAGE / 2),
    ]);
    steps.extend([Advance(5), Alloc(0, 3 * PAGE), DropEvery(2), Alloc(0, 6 * PAGE), Alloc(1, 4 * PAGE), Trim(0)]);
    steps.extend([Alloc(2, 3 * PAGE), DropEvery(2), FromSecond(PAGE), Purge, Alloc(1, 5 * PAGE), Alloc(0, 4 * PAGE)]);
    steps
}

fn world(kind: Kind, lag: Lag) -> World {
    let device = SimConfig { capacity: 32 * PAGE, memory: kind.memory, page: PAGE, lag, ..SimConfig::default() };
    let world =
        World::new(device, Config { segment_min: PAGE, poll_every: 4, alias: kind.alias, ..Config::default() }, 3);
    world.allocator.pool("second", PoolConfig::default()).unwrap();
    world
}

fn take(world: &mut World, step: Step) -> Result<(), AllocError> {
    world.sim.advance(1);
    match step {
        Step::Alloc(stream, bytes) => world.alloc(stream, bytes),
        Step::Zeroed(stream, bytes) => world.serve(stream, bytes, |request| request.zeroed()),
        Step::FromSecond(bytes) => world.serve(1, bytes, |request| request.pool(larder::ids::PoolId(1))),
        Step::DropEvery(nth) => {
            let mut at = 0;
            world.held.retain(|_| {
                at += 1;
                at % nth != 0
            });
            Ok(())
        }
        Step::UseOn(stream) => {
            // The blocks' users have streams of their own; that they cannot be ordered is not the allocator's failure.
            (0..world.held.len()).step_by(3).for_each(|at| world.use_on(at, stream));
            Ok(())
        }
        Step::Trim(keep) => world.allocator.trim(keep).map(drop),
        Step::Purge => world.allocator.purge().map(drop),
        Step::NewStream => world.allocator.stream().map(|stream| world.streams[2] = stream),
        Step::Advance(n) => {
            world.sim.advance(n);
            Ok(())
        }
    }
}

/// Plays the script; `on_error` sees every error, and the step is tried again after it. Answers the number of errors.
fn play(world: &mut World, script: &[Step], tries: usize, on_error: impl Fn(&AllocError)) -> usize {
    let (mut errors, mut failures, mut look) = (0, 0, 0);
    for step in script {
        for left in (0..tries).rev() {
            let result = take(world, *step);
            // What no failure touched is looked at in the long runs only.
            let seen: u64 = world.sim.counters().failures.iter().sum();
            look = if seen > failures { 3 } else { look - i32::from(look > 0) };
            failures = seen;
            if look > 0 || full() {
                world.check();
            }
            match result {
                Ok(()) => break,
                Err(error) => {
                    on_error(&error);
                    errors += 1;
                    assert!(left > 0 || tries == 1, "{step:?} fails again and again: {error}");
                }
            }
        }
    }
    errors
}

fn out_of_memory(call: Call) -> BackendError {
    BackendError::OutOfMemory { call: call.name(), requested: 1 }
}

fn driver(call: Call) -> BackendError {
    BackendError::Driver { call: call.name(), reason: "planted".into(), code: 700 }
}

fn lost() -> BackendError {
    BackendError::Lost { reason: "planted".into() }
}

/// How many calls of each kind the script makes when nothing fails.
fn calls(kind: Kind, lag: Lag) -> Vec<(Call, u64)> {
    let mut world = world(kind, lag);
    let before = world.sim.counters();
    play(&mut world, &script(kind), 1, |error| panic!("the script is to pass on {kind:?}, {lag:?}: {error}"));
    let counters = world.sim.counters();
    let count = |call: Call| counters.succeeded(call) + counters.failed(call) - before.succeeded(call);
    let calls = Call::ALL.iter().map(|call| (*call, count(*call))).filter(|(_, count)| *count > 0).collect();
    world.end();
    calls
}

/// Calls `each` for every kind of memory, every kind of call and every `stride`-th call of that kind (in the long runs: every one).
fn at_every_call(stride: u64, each: impl Fn(Kind, Lag, Call, u64)) {
    let stride = runs(stride, 1) as usize;
    for kind in KINDS {
        for lag in &LAGS[..runs(1, 3) as usize] {
            let lag = *lag;
            for (call, count) in calls(kind, lag) {
                (1..=count).step_by(stride).for_each(|k| each(kind, lag, call, k));
            }
        }
    }
}

#[test]
fn the_script_makes_every_kind_of_call() {
    let made = |kind| -> Vec<Call> {
        let mut all: Vec<Call> = LAGS.iter().flat_map(|lag| calls(kind, *lag)).map(|(call, _)| call).collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    let streams = [Call::OpenStream, Call::Record, Call::Done, Call::StreamWait, Call::HostWait, Call::Zero];
    for kind in KINDS {
        let mut wanted = match kind.memory {
            SimMemory::Alias | SimMemory::Remap => vec![Call::Reserve, Call::Back, Call::Unback, Call::Remap],
            SimMemory::Paged => vec![Call::Reserve, Call::Back, Call::Unback],
            SimMemory::Segments => vec![Call::GrowSegment, Call::Release],
        };
        wanted.extend(streams);
        let made = made(kind);
        assert!(wanted.iter().all(|call| made.contains(call)), "{kind:?} makes {made:?}");
    }
}

#[test]
fn one_failure_at_any_call_is_told_at_most_once_and_nothing_is_lost() {
    for error in [out_of_memory, driver] {
        at_every_call(1, |kind, lag, call, k| {
            let mut world = world(kind, lag);
            world.sim.fail_at(call, k, error(call));
            let errors = play(&mut world, &script(kind), 2, |told| {
                let typed = match told {
                    AllocError::OutOfMemory(report) => error(call).is_out_of_memory() && !report.trail.is_empty(),
                    AllocError::Backend(told) => *told == error(call),
                    _ => false,
                };
                assert!(typed, "{kind:?} {lag:?} {call:?} {k}: {told}");
            });
            assert!(errors <= 1, "{kind:?} {lag:?} {call:?} {k}: one failure is told {errors} times");
            world.sim.fail_clear();
            world.alloc(0, PAGE / 4).unwrap();
            world.end();
        });
    }
}

#[test]
fn a_call_that_fails_for_ever_loses_nothing() {
    for error in [out_of_memory, driver] {
        at_every_call(5, |kind, lag, call, k| {
            let mut world = world(kind, lag);
            world.sim.fail_from(call, k, error(call));
            play(&mut world, &script(kind), 1, |told| {
                assert!(matches!(told, AllocError::OutOfMemory(_) | AllocError::Backend(_)), "{told}");
            });
            world.sim.fail_clear();
            // One error may still be waiting to be told.
            if world.alloc(0, PAGE / 4).is_err() {
                world.alloc(0, PAGE / 4).unwrap();
            }
            world.check();
            world.end();
        });
    }
}

/// The old address of a page that moved keeps its memory with the device, so it must be unmapped before the page counts as returned.
#[test]
fn pages_whose_old_addresses_could_not_be_unmapped_are_not_returned() {
    let mut world = world(KINDS[0], Lag::Manual);
    (0..32).for_each(|_| world.alloc(0, PAGE).unwrap());
    world.held.retain(|held| (held.block.address() / PAGE).is_multiple_of(2));
    world.alloc(0, 4 * PAGE).unwrap();
    assert!(world.allocator.stats().moved > 0, "pages were to move into a window");
    world.held.clear();
    // Events are recorded, and done; the work is found complete, but the driver does not unmap.
    world.allocator.trim(u64::MAX).unwrap();
    world.sim.complete_all();
    world.sim.fail_from(Call::Unback, 1, driver(Call::Unback));
    world.allocator.trim(u64::MAX).unwrap_err();
    world.sim.fail_clear();
    world.allocator.set_config(Config { decay: Some(Duration::ZERO), ..world.allocator.config() }).unwrap();
    let returned = (0..2).map(|second| world.allocator.tick(Duration::from_secs(second)).unwrap()).sum::<u64>();
    assert_eq!(returned, 32 * PAGE);
    world.check();
    world.end();
}

#[test]
fn a_failure_for_ever_does_not_hold_up_the_end() {
    at_every_call(7, |kind, lag, call, k| {
        let mut world = world(kind, lag);
        world.sim.fail_from(call, k, driver(call));
        play(&mut world, &script(kind), 1, |_| {});
        let sim = world.sim.clone();
        drop(world);
        assert_eq!((sim.check(), sim.violations()), (Ok(()), vec![]));
    });
}

#[test]
fn a_device_lost_at_any_call_is_told_and_dropped_safely() {
    at_every_call(2, |kind, lag, call, k| {
        let mut world = world(kind, lag);
        world.sim.fail_at(call, k, lost());
        let sim = world.sim.clone();
        for step in script(kind) {
            if let Err(told) = take(&mut world, step) {
                assert_eq!(told, AllocError::Backend(lost_as(&told)), "{kind:?} {lag:?} {call:?} {k}");
            }
            world.allocator.check().unwrap();
            let counters = sim.counters();
            assert_eq!(counters.used, world.allocator.total_stats().reserved.current);
        }
        let big = world.alloc(0, 30 * PAGE);
        assert!(matches!(big, Err(AllocError::Backend(BackendError::Lost { .. }))), "{big:?}");
        drop(world);
        assert_eq!((sim.check(), sim.violations()), (Ok(()), vec![]));
    });
}

/// The same error if it says that the device is lost; else what should have been said.
fn lost_as(told: &AllocError) -> BackendError {
    match told {
        AllocError::Backend(error @ BackendError::Lost { .. }) => error.clone(),
        _ => lost(),
    }
}

#[test]
fn a_device_lost_between_two_steps_is_told_and_dropped_safely() {
    for kind in KINDS {
        for at in 0..script(kind).len() {
            let mut world = world(kind, Lag::Events(12));
            let script = script(kind);
            play(&mut world, &script[..at], 1, |error| panic!("{error}"));
            world.sim.lose("pulled out");
            for step in &script[at..] {
                if let Err(told) = take(&mut world, *step) {
                    assert_eq!(told, AllocError::Backend(lost_as(&told)));
                }
                world.allocator.check().unwrap();
            }
            let sim = world.sim.clone();
            drop(world);
            assert_eq!((sim.check(), sim.violations()), (Ok(()), vec![]));
        }
    }
}
