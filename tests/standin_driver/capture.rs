//! Captures: what is captured, what is refused meanwhile and ends them, and graphs that run.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode as Mode};

use crate::driver::{Standin, standin};
use crate::gpu::{Gpu, Outcome, code};

fn begin(stream: &CudaStream, mode: Mode) {
    // SAFETY: the stream is open.
    code(unsafe { sys::cuStreamBeginCapture_v2(stream.cu_stream(), mode) }).unwrap();
}

fn end(stream: &CudaStream) -> Outcome<sys::CUgraph> {
    let mut graph = std::ptr::null_mut();
    // SAFETY: the stream is open.
    code(unsafe { sys::cuStreamEndCapture(stream.cu_stream(), &mut graph) }).map(|()| graph)
}

fn launch(graph: sys::CUgraph, stream: &CudaStream) -> sys::CUgraphExec {
    let mut executable = std::ptr::null_mut();
    // SAFETY: the graph lives.
    unsafe {
        code(sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0)).unwrap();
        code(sys::cuGraphLaunch(executable, stream.cu_stream())).unwrap();
    }
    executable
}

fn query(event: &cudarc::driver::CudaEvent) -> Outcome<()> {
    // SAFETY: the event lives.
    code(unsafe { sys::cuEventQuery(event.cu_event()) })
}

fn exchange(mut mode: Mode) -> Mode {
    // SAFETY: a place with a mode.
    code(unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }).unwrap();
    mode
}

#[test]
fn a_graph_does_again_what_was_captured() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let (one, two) = (gpu.stream(), gpu.stream());
    let (a, b) = (gpu.alloc(64).unwrap(), gpu.alloc(64).unwrap());
    gpu.fill(b, 0, 64, &one);
    begin(&one, Mode::CU_STREAM_CAPTURE_MODE_GLOBAL);
    gpu.fill(a, 5, 64, &one);
    two.wait(&one.record_event(None).unwrap()).unwrap();
    gpu.copy(b, a, 64, &two);
    assert_eq!(two.capture_status().unwrap(), sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    one.wait(&two.record_event(None).unwrap()).unwrap();
    let graph = end(&one).unwrap();
    assert_eq!(two.capture_status().unwrap(), sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE);
    assert_eq!(gpu.read(b, 1, &one), [0], "captured, not run");
    let executable = launch(graph, &one);
    assert_eq!(gpu.read(b, 1, &one), [5]);
    gpu.fill(b, 0, 64, &one);
    // SAFETY: both live; the executable one keeps what it needs.
    unsafe {
        code(sys::cuGraphDestroy(graph)).unwrap();
        code(sys::cuGraphLaunch(executable, one.cu_stream())).unwrap();
        code(sys::cuGraphExecDestroy(executable)).unwrap();
    }
    assert_eq!(gpu.read(b, 64, &one), [5; 64]);
    gpu.context.synchronize().unwrap();
    driver.assert_clean();
    assert_eq!(driver.totals().graphs, 0);
}

#[test]
fn a_race_within_a_graph_is_found_when_it_runs() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let (one, two) = (gpu.stream(), gpu.stream());
    let at = gpu.alloc(64).unwrap();
    begin(&one, Mode::CU_STREAM_CAPTURE_MODE_RELAXED);
    two.wait(&one.record_event(None).unwrap()).unwrap();
    gpu.fill(at, 1, 64, &one);
    gpu.fill(at, 2, 64, &two);
    one.wait(&two.record_event(None).unwrap()).unwrap();
    let graph = end(&one).unwrap();
    driver.assert_clean();
    launch(graph, &one);
    gpu.context.synchronize().unwrap();
    assert_eq!(driver.violations().len(), 1, "{:?}", driver.violations());
}

#[test]
fn a_graph_touches_the_addresses_of_its_capture() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let stream = gpu.stream();
    let at = gpu.alloc(64).unwrap();
    begin(&stream, Mode::CU_STREAM_CAPTURE_MODE_GLOBAL);
    gpu.fill(at, 1, 64, &stream);
    let graph = end(&stream).unwrap();
    gpu.free(at).unwrap();
    driver.assert_clean();
    launch(graph, &stream);
    stream.synchronize().unwrap();
    assert!(driver.violations()[0].contains("it was freed"), "{:?}", driver.violations());
}

/// What a call answers during a capture of the given mode, and what becomes of the capture.
fn during(
    mode: Mode,
    thread: Mode,
    call: impl FnOnce(&Gpu, &Arc<CudaStream>) -> Outcome<()>,
) -> (Outcome<()>, Outcome<()>) {
    let _driver: Standin = standin().unwrap();
    let gpu = Gpu::new();
    let stream = gpu.stream();
    let before = exchange(thread);
    begin(&stream, mode);
    let answer = call(&gpu, &stream);
    let ended = end(&stream).map(drop);
    exchange(before);
    (answer, ended)
}

#[test]
fn unsafe_calls_are_refused_and_end_the_capture_unless_relaxed() {
    use Mode::*;
    if standin().is_none() {
        return;
    }
    let unsupported = Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let refused = (unsupported, Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED));
    let alloc = |gpu: &Gpu, _: &Arc<CudaStream>| gpu.alloc(64).map(drop);
    let (global, local, relaxed) =
        (CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, CU_STREAM_CAPTURE_MODE_RELAXED);
    assert_eq!(during(global, global, alloc), refused);
    assert_eq!(during(local, global, alloc), refused);
    assert_eq!(during(relaxed, global, alloc), (Ok(()), Ok(())));
    assert_eq!(during(global, relaxed, alloc), (Ok(()), Ok(())), "growth in relaxed mode");
    assert_eq!(during(global, local, alloc), refused, "its own thread");
    let elsewhere = |gpu: &Gpu, _: &Arc<CudaStream>| {
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                gpu.context.bind_to_thread().unwrap();
                gpu.alloc(64).map(drop)
            });
            there.join().unwrap()
        })
    };
    assert_eq!(during(global, global, elsewhere), refused, "another thread");
    assert_eq!(during(local, global, elsewhere), (Ok(()), Ok(())));
    let map = |gpu: &Gpu, _: &Arc<CudaStream>| gpu.create(2 << 20).map(drop);
    assert_eq!(during(global, global, map), refused);
    let wait = |_: &Gpu, stream: &Arc<CudaStream>| stream.synchronize().map_err(|error| error.0);
    assert_eq!(during(relaxed, relaxed, wait), refused, "the captured stream cannot be waited for in any mode");
    let all = |gpu: &Gpu, _: &Arc<CudaStream>| gpu.context.synchronize().map_err(|error| error.0);
    assert_eq!(during(relaxed, relaxed, all), refused);
}

#[test]
fn captured_events_cannot_be_asked() {
    if standin().is_none() {
        return;
    }
    let relaxed = Mode::CU_STREAM_CAPTURE_MODE_RELAXED;
    let ask = |_: &Gpu, stream: &Arc<CudaStream>| query(&stream.record_event(None).unwrap());
    let refused = (Err(CUresult::CUDA_ERROR_CAPTURED_EVENT), Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED));
    assert_eq!(during(relaxed, relaxed, ask), refused);
    let sync =
        |_: &Gpu, stream: &Arc<CudaStream>| stream.record_event(None).unwrap().synchronize().map_err(|error| error.0);
    assert_eq!(during(relaxed, relaxed, sync), refused);
    let global = Mode::CU_STREAM_CAPTURE_MODE_GLOBAL;
    let earlier = |gpu: &Gpu, _: &Arc<CudaStream>| query(&gpu.context.new_event(None).unwrap());
    let unsupported = Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert_eq!(during(global, global, earlier).0, unsupported, "no event, where the mode forbids it");
    assert_eq!(during(global, relaxed, earlier), (Ok(()), Ok(())));
}

#[test]
fn a_capture_stays_within_its_streams() {
    if standin().is_none() {
        return;
    }
    let global = Mode::CU_STREAM_CAPTURE_MODE_GLOBAL;
    let outside = |gpu: &Gpu, stream: &Arc<CudaStream>| {
        let event = gpu.stream().record_event(None).unwrap();
        stream.wait(&event).map_err(|error| error.0)
    };
    assert_eq!(during(global, global, outside).0, Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION));
    let unjoined = |gpu: &Gpu, stream: &Arc<CudaStream>| {
        let other = gpu.stream();
        other.wait(&stream.record_event(None).unwrap()).unwrap();
        assert_eq!(end(&other), Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED));
        std::mem::forget(other);
        Ok(())
    };
    assert_eq!(during(global, global, unjoined).1, Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED));
    let left_alone = |gpu: &Gpu, stream: &Arc<CudaStream>| {
        let other = gpu.stream();
        other.wait(&stream.record_event(None).unwrap()).unwrap();
        std::mem::forget(other);
        Ok(())
    };
    assert_eq!(during(global, global, left_alone).1, Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED));
    let pageable = |gpu: &Gpu, stream: &Arc<CudaStream>| {
        // SAFETY: refused before anything is copied.
        let copied = unsafe { cudarc::driver::result::memcpy_htod_async(1 << 44, &[0_u8; 8], stream.cu_stream()) };
        let _ = gpu;
        copied.map_err(|error| error.0)
    };
    assert_eq!(during(global, global, pageable).0, Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED));
}
