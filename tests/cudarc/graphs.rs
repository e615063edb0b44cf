//! Buffers in captures: what a graph does again at each launch, and what no graph is given.

use cudarc::driver::sys::{CUgraphInstantiate_flags_enum as Flags, CUstreamCaptureMode_enum as Mode};
use larder::AllocError;
use larder::backend::BackendError;
use larder::cuda::cudarc;
use larder::units::MIB;

use crate::{World, numbers, story};

#[test]
fn buffers_in_a_graph() {
    story(|standin| {
        let World { gpu, one, two, s, t, context } = World::new();
        let mut input = gpu.buffer_on::<u32>(&t, 64).unwrap();
        let mut output = gpu.buffer_on::<u32>(&s, 64).unwrap();
        two.memcpy_htod(&numbers(40, 64), &mut input).unwrap();
        let capture = gpu.capture(&s).unwrap();
        one.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
        // More than there is: it grows. What another stream wrote is waited for, since a graph cannot follow it.
        let mut scratch = gpu.buffer_on::<u32>(&s, MIB as usize).unwrap();
        one.memcpy_dtod(&input, &mut scratch).unwrap();
        one.memcpy_dtod(&scratch.slice(..64).unwrap(), &mut output).unwrap();
        drop(scratch);
        let graph = one.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).unwrap().unwrap();
        let memory = capture.end();
        assert!(context.check_err().is_ok() && memory.reserved() >= 4 * MIB);
        one.memset_zeros(&mut output).unwrap();
        gpu.purge().unwrap();
        graph.launch().unwrap();
        assert_eq!(one.clone_dtoh(&output).unwrap(), numbers(40, 64));
        standin.assert_clean();
        drop((graph, memory));
        gpu.purge().unwrap();
        gpu.check().unwrap();
    });
}

#[test]
fn each_use_follows_the_launches_so_far() {
    story(|standin| {
        let World { gpu, one, two, s, t: _t, .. } = World::new();
        let mut a = gpu.buffer_on::<u32>(&s, 64).unwrap();
        let capture = gpu.capture(&s).unwrap();
        one.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
        one.memset_zeros(&mut a).unwrap();
        let graph = one.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).unwrap().unwrap();
        let memory = capture.end();
        for _ in 0..3 {
            graph.launch().unwrap();
            assert_eq!(two.clone_dtoh(&a).unwrap(), [0; 64]);
            one.join(&two).unwrap();
            standin.assert_clean();
        }
        // What another stream writes does not make the launches forgotten.
        two.memcpy_htod(&numbers(1, 64), &mut a).unwrap();
        one.join(&two).unwrap();
        graph.launch().unwrap();
        assert_eq!(two.clone_dtoh(&a).unwrap(), [0; 64]);
        standin.assert_clean();
        drop((graph, memory));
    });
}

#[test]
fn copies_of_pinned_memory_are_captured_only_where_that_is_promised_to_be_safe() {
    story(|standin| {
        let world = World::new();
        let (World { gpu, context, one, s, .. }, pinned) = (&world, world.pinned());
        let known = pinned.stream_of(one).unwrap();
        let stranger = context.new_stream().unwrap();
        let flags = Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let mut device = gpu.buffer_on::<u32>(s, 64).unwrap();
        let mut host = pinned.buffer_on::<u32>(&known, 64).unwrap();
        host.as_mut_slice().unwrap().fill(7);
        for stream in [one, &stranger] {
            one.memset_zeros(&mut device).unwrap();
            one.synchronize().unwrap();
            stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
            let _ = stream.memcpy_dtoh(&device, &mut host);
            assert!(context.check_err().is_err(), "it was refused, and that is said");
            let _ = stream.memcpy_htod(&host, &mut device);
            assert!(context.check_err().is_err());
            let graph = stream.end_capture(flags).unwrap().unwrap();
            let view = host.as_slice().unwrap();
            graph.launch().unwrap();
            stream.synchronize().unwrap();
            assert_eq!(
                (view, one.clone_dtoh(&device).unwrap()),
                (&[7; 64][..], vec![0; 64]),
                "the launch touched nothing"
            );
        }
        // SAFETY: no view lives at a launch, and the graph goes before the buffer.
        unsafe { host.allow_captures() };
        one.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
        one.memcpy_dtoh(&device, &mut host).unwrap();
        assert!(matches!(host.as_slice(), Err(AllocError::Backend(BackendError::Recording { .. }))));
        let graph = one.end_capture(flags).unwrap().unwrap();
        for round in 0..3 {
            one.memcpy_htod(&numbers(round, 64), &mut device).unwrap();
            graph.launch().unwrap();
            assert!(standin.totals().queued > 0, "the launch has not run");
            assert_eq!(host.as_slice().unwrap(), numbers(round, 64), "a view waits for the launches so far");
        }
        drop(graph);
    });
}

#[test]
fn a_capture_of_a_stream_that_is_not_known_is_not_ended_by_us() {
    story(|_| {
        let World { gpu, one, s, context, .. } = World::new();
        let stranger = context.new_stream().unwrap();
        let mut a = gpu.buffer_on::<u32>(&s, 64).unwrap();
        one.memset_zeros(&mut a).unwrap();
        stranger.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
        stranger.memset_zeros(&mut a).unwrap();
        assert!(context.check_err().is_err(), "it could not be ordered, and that is said");
        let refused = a.write_on(&stranger).map(drop).unwrap_err();
        assert!(matches!(refused, AllocError::Backend(BackendError::Unsupported { .. })), "{refused}");
        let flags = Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        assert!(stranger.end_capture(flags).unwrap().is_some());
    });
}
