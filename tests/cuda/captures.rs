//! Captures: nothing that the allocator does ends one, and a graph's memory stays where it is.

use cudarc::driver::sys::{self, CUstreamCaptureMode as Mode};

use crate::driver::standin;
use crate::world::{PAGE, Setup, World};

pub const MODES: [Mode; 3] = [
    Mode::CU_STREAM_CAPTURE_MODE_GLOBAL,
    Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
    Mode::CU_STREAM_CAPTURE_MODE_RELAXED,
];

pub fn begin(world: &World<'_>, lane: usize, mode: Mode) {
    // SAFETY: the stream is open.
    unsafe { sys::cuStreamBeginCapture_v2(world.lanes[lane].raw.cu_stream(), mode) }.result().unwrap();
}

/// The executable graph of the capture.
pub fn end(world: &World<'_>, lane: usize) -> sys::CUgraphExec {
    let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the stream is open, the graph lives until its executable is made.
    unsafe {
        sys::cuStreamEndCapture(world.lanes[lane].raw.cu_stream(), &mut graph).result().expect("the capture is whole");
        sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0).result().unwrap();
        sys::cuGraphDestroy(graph).result().unwrap();
    }
    executable
}

pub fn launch(world: &World<'_>, executable: sys::CUgraphExec, lane: usize) {
    // SAFETY: both live.
    unsafe { sys::cuGraphLaunch(executable, world.lanes[lane].raw.cu_stream()) }.result().unwrap();
}

pub fn destroy(executable: sys::CUgraphExec) {
    // SAFETY: it is destroyed once.
    unsafe { sys::cuGraphExecDestroy(executable) }.result().unwrap();
}

fn setups() -> [Setup; 2] {
    [Setup::default(), Setup { plain: true, ..Setup::default() }]
}

#[test]
fn allocation_during_a_capture_does_not_end_it_and_the_graph_keeps_its_pages() {
    let Some(driver) = standin() else { return };
    for setup in setups() {
        for mode in MODES {
            let story = format!("{mode:?}, {setup:?}");
            let mut world = World::new(&driver, &setup);
            world.alloc(0, 2 * PAGE).unwrap();
            world.alloc(2, 2 * PAGE).unwrap();
            let capture = world.allocator.capture(&world.lanes[1].stream).unwrap();
            begin(&world, 1, mode);
            for _ in 0..3 {
                world.alloc(1, 3 * PAGE).unwrap_or_else(|error| panic!("{story}: {error}"));
                let scratch = world.held.pop().unwrap();
                world.alloc(1, PAGE / 2).unwrap();
                drop((scratch, world.held.pop()));
            }
            // Others go on meanwhile.
            world.alloc(2, 4 * PAGE).unwrap_or_else(|error| panic!("{story}: {error}"));
            world.held.pop();
            world.held.pop();
            world.alloc(0, PAGE).unwrap_or_else(|error| panic!("{story}: {error}"));
            let executable = end(&world, 1);
            let memory = capture.end();
            assert!(memory.reserved() > 0);
            for _ in 0..3 {
                launch(&world, executable, 1);
                world.alloc(0, 6 * PAGE).unwrap_or_else(|error| panic!("{story}: {error}"));
                world.held.pop();
                world.allocator.purge().unwrap();
            }
            world.context.synchronize().unwrap();
            world.sound(&story);
            destroy(executable);
            drop(memory);
            world.end(&story);
        }
    }
}

#[test]
fn a_graphs_memory_is_used_again_only_behind_its_launches() {
    let Some(driver) = standin() else { return };
    for setup in setups() {
        let story = format!("{setup:?}");
        let mut world = World::new(&driver, &setup);
        let capture = world.allocator.capture(&world.lanes[1].stream).unwrap();
        begin(&world, 1, Mode::CU_STREAM_CAPTURE_MODE_GLOBAL);
        world.alloc(1, 20 * PAGE).unwrap();
        world.held.pop();
        let executable = end(&world, 1);
        let memory = capture.end();
        launch(&world, executable, 2);
        destroy(executable);
        drop(memory);
        // Only with the graph's pages is there room, and its launch has not run.
        world.alloc(0, 24 * PAGE).unwrap_or_else(|error| panic!("{story}: {error}"));
        world.sound(&story);
        world.end(&story);
    }
}

#[test]
fn a_capture_that_nobody_announced_is_left_alone() {
    let Some(driver) = standin() else { return };
    for setup in setups() {
        let story = format!("{setup:?}");
        let mut world = World::new(&driver, &setup);
        world.alloc(1, 4 * PAGE).unwrap();
        world.alloc(2, 4 * PAGE).unwrap();
        begin(&world, 1, Mode::CU_STREAM_CAPTURE_MODE_GLOBAL);
        world.write(&world.held[0], 1);
        for lane in [2, 0, 2] {
            world.alloc(lane, 6 * PAGE).unwrap_or_else(|error| panic!("{story}: {error}"));
            world.held.pop();
        }
        world.allocator.trim(0).unwrap_or_else(|error| panic!("{story}: {error}"));
        let executable = end(&world, 1);
        launch(&world, executable, 1);
        world.context.synchronize().unwrap();
        destroy(executable);
        world.sound(&story);
        world.end(&story);
    }
}

#[test]
fn what_goes_back_during_a_capture_goes_back_whole() {
    let Some(driver) = standin() else { return };
    let mut world = World::new(&driver, &Setup::default());
    (0..30).for_each(|_| world.alloc(0, PAGE).unwrap());
    let mut at = 0;
    world.held.retain(|_| {
        at += 1;
        at % 2 == 0
    });
    world.alloc(0, 14 * PAGE).unwrap();
    assert!(world.allocator.stats().moved > 0);
    let capture = world.allocator.capture(&world.lanes[1].stream).unwrap();
    world.held.clear();
    world.context.synchronize().unwrap();
    for _ in 0..2 {
        world.allocator.trim(0).unwrap();
        world.context.synchronize().unwrap();
        world.sound(&"trimmed during a capture");
    }
    assert_eq!(world.allocator.total_stats().reserved.current, 0);
    drop(capture);
    world.end(&"trimmed during a capture");
}

#[test]
fn nothing_is_recorded_where_it_would_join_a_capture() {
    use larder::backend::cuda::{CudaConfig, CudaDevice};
    use larder::backend::{Backend, BackendError};
    use larder::ids::StreamId;

    let Some(driver) = standin() else { return };
    let context = cudarc::driver::CudaContext::new(0).unwrap();
    let device = CudaDevice::new(&context, &CudaConfig::default()).unwrap();
    let before = device.record(StreamId(0)).unwrap();
    let (mut blocking, mut graph) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: places for the handles; the stream is open until the end.
    unsafe {
        sys::cuStreamCreate(&mut blocking, 0).result().unwrap();
        sys::cuStreamBeginCapture_v2(blocking, MODES[0]).result().unwrap();
    }
    // The default stream would wait for the captured one.
    assert!(device.is_capturing(StreamId(0)).unwrap());
    assert!(matches!(device.record(StreamId(0)), Err(BackendError::Recording { stream: StreamId(0) })));
    assert!(matches!(device.stream_wait(StreamId(0), before), Err(BackendError::Recording { .. })));
    assert!(device.host_wait(before, None).unwrap() && device.done(before).unwrap());
    device.forget(before);
    // SAFETY: as above.
    unsafe {
        sys::cuStreamEndCapture(blocking, &mut graph).result().expect("the capture is whole");
        sys::cuGraphDestroy(graph).result().unwrap();
        sys::cuStreamDestroy_v2(blocking).result().unwrap();
    }
    drop(device);
    driver.assert_clean();
    assert!(driver.totals().is_clean(), "{:?}", driver.leaks());
}
