//! Typed buffers of device memory and page-locked memory under `cudarc`'s own calls, on the stand-in driver: what is read is what was
//! written before, on whichever streams, and the stand-in finds no two touches without an order.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(unsafe_code)]

mod common;
#[path = "common/driver.rs"]
mod driver;
#[path = "cudarc/fills.rs"]
mod fills;
#[path = "cudarc/graphs.rs"]
mod graphs;
#[path = "cudarc/pinned.rs"]
mod pinned;
#[path = "cudarc/program.rs"]
mod program;

use std::sync::Arc;

use cudarc::cublas::{Gemm, GemmConfig};
use cudarc::driver::{
    CudaContext, CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, HostSlice, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;
use driver::Standin;
use larder::backend::BackendError;
use larder::cuda::{self, Buffer, Cuda, CudaConfig, CudaUnavailable, Pinned, cudarc};
use larder::ids::StreamId;
use larder::native::ViewError;
use larder::units::MIB;
use larder::{AllocError, Allocator, Config, Stream};

/// A device with a context, an allocator, and two streams that it knows.
struct World {
    context: Arc<CudaContext>,
    gpu: Allocator<Cuda>,
    one: Arc<CudaStream>,
    two: Arc<CudaStream>,
    s: Stream,
    t: Stream,
}

impl World {
    fn new() -> World {
        let context = cuda::probe().unwrap().context(0).unwrap();
        let gpu = cuda::allocator(&context, Config::default()).unwrap();
        let (one, two) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let (s, t) = (gpu.stream_of(&one).unwrap(), gpu.stream_of(&two).unwrap());
        World { context, gpu, one, two, s, t }
    }

    fn pinned(&self) -> Allocator<Pinned> {
        cuda::pinned(&self.context, Config::default()).unwrap()
    }
}

/// Runs a story in a new world of the stand-in; afterwards nothing went wrong and nothing is left.
fn story(tell: impl FnOnce(&Standin)) {
    let Some(standin) = driver::standin() else { return };
    tell(&standin);
    standin.assert_clean();
    assert_eq!(standin.leaks(), [] as [&str; 0]);
}

fn numbers(from: u32, count: u32) -> Vec<u32> {
    (from..from + count).collect()
}

#[test]
fn a_buffer_goes_where_a_slice_of_cudarc_goes() {
    story(|_| {
        let World { gpu, one, s, .. } = World::new();
        let mut a = gpu.buffer_on::<u32>(&s, 1000).unwrap();
        let mut b = gpu.buffer_on::<u32>(&s, 1000).unwrap();
        one.memcpy_htod(&numbers(0, 1000), &mut a).unwrap();
        one.memcpy_dtod(&a, &mut b).unwrap();
        one.memset_zeros(&mut a).unwrap();
        assert_eq!(one.clone_dtoh(&b).unwrap(), numbers(0, 1000));
        assert_eq!(one.clone_dtoh(&a).unwrap(), vec![0; 1000]);
        assert_eq!((a.len(), DeviceSlice::<u32>::num_bytes(&a), DeviceSlice::stream(&a).clone()), (1000, 4000, one));
        assert_eq!((gpu.device(), a.block().device()), (0, Some(0)));
    });
}

#[test]
fn slices_are_parts_of_their_buffer() {
    story(|_| {
        let World { gpu, one, two, s, t: _t, .. } = World::new();
        let mut a = gpu.buffer_on::<u32>(&s, 100).unwrap();
        one.memcpy_htod(&numbers(0, 100), &mut a).unwrap();
        let mut middle = a.slice_mut(20..30).unwrap();
        two.memcpy_htod(&numbers(500, 10), &mut middle).unwrap();
        assert_eq!(one.clone_dtoh(&a.slice(19..=30).unwrap()).unwrap()[..2], [19, 500]);
        assert_eq!(one.clone_dtoh(&a.slice(25..).unwrap().slice(4..6).unwrap()).unwrap(), [509, 30]);
        let (mut front, mut back) = a.as_slice_mut().split_at(50).unwrap();
        one.memcpy_htod(&numbers(0, 50), &mut front).unwrap();
        two.memcpy_htod(&numbers(900, 50), &mut back).unwrap();
        assert_eq!(two.clone_dtoh(&a.slice(49..51).unwrap()).unwrap(), [49, 900]);
        assert!(a.slice(50..101).is_none() && a.slice(101..).is_none() && a.slice_mut(..=100).is_none());
        #[allow(clippy::reversed_empty_ranges)]
        let backwards = a.slice(60..50);
        assert!(backwards.is_none() && a.as_slice_mut().split_at(101).is_none());
    });
}

#[test]
fn every_use_follows_those_that_it_must() {
    story(|standin| {
        let World { gpu, one, two, s, t, .. } = World::new();
        let pinned = cuda::pinned(gpu.context(), Config::default()).unwrap();
        let (_p, _q) = (pinned.stream_of(&one).unwrap(), pinned.stream_of(&two).unwrap());
        let mut source = pinned.buffer::<u32>(64).unwrap();
        let mut target = pinned.buffer::<u32>(64).unwrap();
        let mut a = gpu.buffer_on::<u32>(&s, 64).unwrap();
        for round in 0..10 {
            source.as_mut_slice().unwrap().copy_from_slice(&numbers(round, 64));
            // Written on one stream, read on both, written on the other: nothing has run when the next is given.
            one.memcpy_htod(&source, &mut a).unwrap();
            let mut b = gpu.buffer_on::<u32>(&t, 64).unwrap();
            two.memcpy_dtod(&a, &mut b).unwrap();
            one.memcpy_dtoh(&a, &mut target).unwrap();
            two.memset_zeros(&mut a).unwrap();
            assert_eq!(target.as_slice().unwrap(), numbers(round, 64));
            one.memcpy_dtoh(&b, &mut target).unwrap();
            drop(b);
            assert_eq!(target.as_slice().unwrap(), numbers(round, 64));
            two.memcpy_dtoh(&a, &mut target).unwrap();
            assert_eq!(target.as_slice().unwrap(), [0; 64]);
            standin.assert_clean();
        }
    });
}

#[test]
fn one_stream_costs_no_events() {
    story(|standin| {
        let World { gpu, one, s, .. } = World::new();
        drop(gpu.buffer_on::<u32>(&s, 1000).unwrap());
        let before = standin.calls("cuEventRecord") + standin.calls("cuStreamWaitEvent");
        for _ in 0..20 {
            let mut a = gpu.buffer_on::<u32>(&s, 64).unwrap();
            one.memset_zeros(&mut a).unwrap();
            one.memset_zeros(&mut a).unwrap();
            let mut b = gpu.buffer_on::<u32>(&s, 64).unwrap();
            one.memcpy_dtod(&a, &mut b).unwrap();
        }
        assert_eq!(standin.calls("cuEventRecord") + standin.calls("cuStreamWaitEvent"), before);
    });
}

#[test]
fn a_buffer_keeps_its_stream_known() {
    story(|standin| {
        let World { gpu, context, .. } = World::new();
        let stream = context.new_stream().unwrap();
        let mut a = gpu.buffer_on::<u32>(&gpu.stream_of(&stream).unwrap(), 64).unwrap();
        let before = standin.calls("cuStreamSynchronize");
        for _ in 0..10 {
            stream.memset_zeros(&mut a).unwrap();
        }
        assert_eq!(standin.calls("cuStreamSynchronize"), before);
    });
}

#[test]
fn the_first_use_elsewhere_follows_the_work_of_whoever_had_the_memory() {
    story(|_| {
        let World { gpu, one, two, s, t: _t, .. } = World::new();
        for typed_by_hand in [false, true] {
            let mut a = gpu.buffer_on::<u32>(&s, 64).unwrap();
            let address = a.block().ptr();
            one.memset_zeros(&mut a).unwrap();
            drop(a);
            let mut b = match typed_by_hand {
                true => gpu.alloc_on(&s, 256).unwrap().typed::<u32>().unwrap(),
                false => gpu.buffer_on::<u32>(&s, 64).unwrap(),
            };
            assert_eq!(b.block().ptr(), address, "the same memory, at once");
            two.memcpy_htod(&numbers(7, 64), &mut b).unwrap();
            // As a block and back: nothing is known of its uses then, and all are taken to matter.
            let c = b.into_block().typed::<u32>().unwrap();
            assert_eq!(one.clone_dtoh(&c).unwrap(), numbers(7, 64));
        }
    });
}

#[test]
fn two_readers_on_two_streams_are_both_waited_for() {
    story(|_| {
        let World { gpu, one, two, s, t, context } = World::new();
        let third = context.new_stream().unwrap();
        let u = gpu.stream_of(&third).unwrap();
        let mut a = gpu.buffer_on::<u32>(&s, 64).unwrap();
        one.memcpy_htod(&numbers(3, 64), &mut a).unwrap();
        let (mut b, mut c) = (gpu.buffer_on::<u32>(&t, 64).unwrap(), gpu.buffer_on::<u32>(&u, 64).unwrap());
        two.memcpy_dtod(&a, &mut b).unwrap();
        third.memcpy_dtod(&a, &mut c).unwrap();
        let address = a.block().ptr();
        drop(a);
        // The whole of the memory, so that the same bytes are written again, by whoever gets them.
        let all: Vec<Buffer<u32>> = std::iter::repeat_with(|| gpu.buffer_on::<u32>(&s, 64).unwrap()).take(64).collect();
        for mut buffer in all {
            one.memset_zeros(&mut buffer).unwrap();
        }
        assert_eq!((two.clone_dtoh(&b).unwrap(), third.clone_dtoh(&c).unwrap()), (numbers(3, 64), numbers(3, 64)));
        assert_ne!(address, 0);
    });
}

#[test]
fn on_a_stream_that_is_not_known_everything_is_waited_for() {
    story(|standin| {
        let World { gpu, one, s, context, .. } = World::new();
        let stranger = context.new_stream().unwrap();
        let mut a = gpu.buffer_on::<u32>(&s, 64).unwrap();
        one.memcpy_htod(&numbers(1, 64), &mut a).unwrap();
        let mut b = gpu.buffer_on::<u32>(&s, 64).unwrap();
        stranger.memcpy_dtod(&a, &mut b).unwrap();
        assert_eq!(standin.step(stranger.cu_stream() as usize, 1), 0, "the copy has run, and what it followed");
        one.memset_zeros(&mut a).unwrap();
        assert_eq!(one.clone_dtoh(&b).unwrap(), numbers(1, 64));
        // The stream of each thread is as unknown: it is many.
        context.per_thread_stream().memcpy_dtod(&b, &mut a).unwrap();
        assert_eq!(one.clone_dtoh(&a).unwrap(), numbers(1, 64));
    });
}

#[test]
fn a_stream_is_the_same_as_long_as_somebody_keeps_it() {
    story(|_| {
        let World { gpu, one, s, context, .. } = World::new();
        assert_eq!(gpu.stream_of(&one).unwrap().id(), s.id());
        assert_eq!(gpu.stream_of(&context.default_stream()).unwrap().id(), StreamId(0));
        assert_eq!(gpu.cuda_stream(&s).unwrap(), one);
        assert_eq!(gpu.cuda_stream(&gpu.default_stream()).unwrap(), context.default_stream());
        let own = gpu.stream().unwrap();
        let own_stream = gpu.cuda_stream(&own).unwrap();
        assert_eq!(gpu.stream_of(&own_stream).unwrap().id(), own.id());
        let other = cuda::allocator(&context, Config::default()).unwrap();
        assert_eq!(other.cuda_stream(&s).unwrap_err(), AllocError::ForeignStream);
        let refused = gpu.stream_of(&context.per_thread_stream()).unwrap_err();
        assert!(refused.to_string().contains("each thread"), "{refused}");
    });
}

#[test]
fn a_stream_that_comes_back_while_it_is_retired_is_no_less_ordered() {
    story(|standin| {
        let World { gpu, one, two, s, t, .. } = World::new();
        for round in 0..20 {
            let again = gpu.stream_of(&one).unwrap();
            let mut a = gpu.buffer_on::<u32>(&again, 64).unwrap();
            one.memcpy_htod(&numbers(round, 64), &mut a).unwrap();
            drop(again);
            two.memcpy_htod(&numbers(round + 1, 64), &mut a).unwrap();
            assert_eq!(two.clone_dtoh(&a).unwrap(), numbers(round + 1, 64));
            drop(a);
            let _ = gpu.trim(0).unwrap();
        }
        drop(s);
        for round in 0..20 {
            // Now nobody keeps it between the rounds.
            let again = gpu.stream_of(&one).unwrap();
            let mut a = gpu.buffer_on::<u32>(&again, 64).unwrap();
            drop(again);
            one.memcpy_htod(&numbers(round, 64), &mut a).unwrap();
            assert_eq!(two.clone_dtoh(&a).unwrap(), numbers(round, 64));
            drop(a);
            gpu.purge().unwrap();
        }
        drop(t);
        gpu.purge().unwrap();
        gpu.check().unwrap();
        assert_eq!(standin.totals().handles, 0);
    });
}

#[test]
fn a_kernel_takes_a_buffer_for_the_stream_that_it_is_launched_on() {
    story(|_| {
        let World { gpu, one, two, s, t: _t, context } = World::new();
        let module = context.load_module(Ptx::from_src("")).unwrap();
        let (fill, copy) = (module.load_function("fill_u32").unwrap(), module.load_function("copy_u8").unwrap());
        let (mut a, mut b) = (gpu.buffer_on::<u32>(&s, 64).unwrap(), gpu.buffer_on::<u32>(&s, 64).unwrap());
        let launch = LaunchConfig::for_num_elems(64);
        {
            let target = a.write_on(&one).unwrap();
            let mut builder = one.launch_builder(&fill);
            builder.arg(&target).arg(&77_u32).arg(&64_u64);
            // SAFETY: the kernel takes an address, a value and a count, and writes so many elements.
            unsafe { builder.launch(launch) }.unwrap();
        }
        {
            let (target, source) = (b.write_on(&two).unwrap(), a.read_on(&two).unwrap());
            let mut builder = two.launch_builder(&copy);
            builder.arg(&target).arg(&source).arg(&256_u64);
            // SAFETY: the kernel takes two addresses and a count, and copies so many bytes.
            unsafe { builder.launch(launch) }.unwrap();
        }
        assert_eq!(one.clone_dtoh(&b).unwrap(), [77; 64]);
        // A half whose kernel is launched only when the other half has been written elsewhere.
        {
            let (front, mut back) = a.as_slice_mut().split_at(32).unwrap();
            let target = front.write_on(&one).unwrap();
            two.memset_zeros(&mut back).unwrap();
            let mut builder = one.launch_builder(&fill);
            builder.arg(&target).arg(&5_u32).arg(&32_u64);
            // SAFETY: as above.
            unsafe { builder.launch(launch) }.unwrap();
        }
        assert_eq!(two.clone_dtoh(&a).unwrap()[31..33], [5, 0]);
    });
}

#[test]
fn a_lent_view_frees_nothing() {
    story(|_| {
        let World { gpu, one, two, s, t: _t, .. } = World::new();
        let mut a = gpu.buffer_on::<u32>(&s, 64).unwrap();
        {
            let mut lent = a.lend_mut_on(&one).unwrap();
            one.memcpy_htod(&numbers(5, 64), &mut lent.view_mut()).unwrap();
            // On another stream `cudarc` orders by events of its own.
            assert_eq!(two.clone_dtoh(&lent.view()).unwrap(), numbers(5, 64));
        }
        one.memcpy_htod(&numbers(5, 64), &mut a).unwrap();
        assert_eq!(two.clone_dtoh(&a.lend_on(&one).unwrap().view()).unwrap(), numbers(5, 64));
        let lent = a.lend_on(&two).unwrap();
        assert_eq!(two.clone_dtoh(&lent.view().slice(60..)).unwrap(), numbers(65, 4));
        drop(lent);
        assert_eq!(one.clone_dtoh(&a).unwrap(), numbers(5, 64));
    });
}

#[test]
fn a_view_that_is_forgotten_frees_nothing_either() {
    let Some(standin) = driver::standin() else { return };
    let World { gpu, one, s, .. } = World::new();
    let a = gpu.buffer_on::<u32>(&s, 64).unwrap();
    std::mem::forget(a.lend_on(&one).unwrap());
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _lent = a.lend_on(&one).unwrap();
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(unwound.is_err());
    drop(a);
    assert_eq!(standin.calls("cuMemFreeAsync") + standin.calls("cuMemFree_v2"), 0);
    standin.assert_clean();
}

#[test]
fn a_driver_that_makes_no_events_lends_nothing() {
    story(|standin| {
        let World { gpu, one, s, context, .. } = World::new();
        let mut buffers = [64, 0].map(|len| gpu.buffer_on::<u32>(&s, len).unwrap());
        standin.fail_from("cuEventCreate", 1, 999);
        for buffer in &mut buffers {
            let refused = buffer.lend_mut_on(&one).map(drop).unwrap_err();
            assert!(matches!(refused, AllocError::Backend(BackendError::Driver { code: 999, .. })), "{refused}");
            assert!(context.check_err().is_ok(), "said once");
        }
        standin.heal();
        for buffer in &mut buffers {
            drop(buffer.lend_mut_on(&one).unwrap());
        }
    });
}

#[test]
fn what_cannot_be_ordered_is_said_by_the_next_call() {
    story(|standin| {
        let World { gpu, one, two, s, t: _t, context } = World::new();
        let mut a = gpu.buffer_on::<u32>(&s, 64).unwrap();
        one.memset_zeros(&mut a).unwrap();
        standin.fail("cuEventRecord", 1, 999);
        let _ = two.clone_dtoh(&a);
        assert!(context.check_err().is_err(), "left for the next call");
        one.synchronize().unwrap();
        two.synchronize().unwrap();
        standin.clear_violations();
        // What failed is not taken for done.
        let before = standin.calls("cuEventRecord");
        two.clone_dtoh(&a).unwrap();
        two.clone_dtoh(&a).unwrap();
        assert_eq!(standin.calls("cuEventRecord"), before + 1);
        one.memset_zeros(&mut a).unwrap();
        assert_eq!(two.clone_dtoh(&a).unwrap(), [0; 64]);
        standin.fail("cuEventRecord", 1, 999);
        let refused = a.write_on(&one).map(drop);
        assert!(matches!(refused, Err(AllocError::Backend(_))), "{refused:?}");
    });
}

#[test]
fn an_error_that_somebody_else_left_is_left_to_them() {
    story(|_| {
        let World { gpu, one, s, context, .. } = World::new();
        let mut a = gpu.buffer_on::<u32>(&s, 64).unwrap();
        context.record_err::<()>(Err(cudarc::driver::DriverError(
            cudarc::driver::sys::CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
        )));
        let b = gpu.alloc(4 * MIB).unwrap();
        let own = gpu.stream().unwrap();
        drop(a.lend_mut_on(&one).unwrap());
        assert!(context.check_err().is_err(), "still there");
        drop((b, own));
    });
}

#[test]
fn a_view_must_suit_its_bytes() {
    story(|_| {
        let World { gpu, s, .. } = World::new();
        assert_eq!(
            gpu.alloc(10).unwrap().typed::<u32>().unwrap_err(),
            ViewError::PartialElement { bytes: 10, element: 4 }
        );
        assert_eq!(gpu.alloc(0).unwrap().typed::<u32>().unwrap_err(), ViewError::Empty);
        assert!(matches!(gpu.buffer_on::<u64>(&s, usize::MAX), Err(AllocError::TooLarge { .. })));
        let empty = gpu.buffer_on::<u64>(&s, 0).unwrap();
        assert!(empty.is_empty() && empty.as_slice().slice(..).is_some());
    });
}

#[test]
fn a_lost_device_is_an_error_and_then_silence() {
    let Some(standin) = driver::standin() else { return };
    let world = World::new();
    let pinned = world.pinned();
    let _known = pinned.stream_of(&world.one).unwrap();
    let mut host = pinned.buffer::<u32>(64).unwrap();
    let mut device = world.gpu.buffer_on::<u32>(&world.s, 64).unwrap();
    world.one.memcpy_dtoh(&device, &mut host).unwrap();
    standin.lose(700);
    for _ in 0..2 {
        let lost = host.as_slice().unwrap_err();
        assert!(matches!(lost, AllocError::Backend(BackendError::Lost { .. })), "{lost}");
        assert!(world.two.memset_zeros(&mut device).is_err());
        assert!(world.gpu.fill(&world.one, &mut device, 1).is_err());
        assert!(world.gpu.alloc(64 * MIB).is_err() && world.gpu.stream().is_err());
    }
    drop((host, device, pinned, world));
    standin.assert_clean();
}

#[test]
fn pages_can_be_opened_to_peers_and_for_export() {
    let Some(standin) = driver::standin() else { return };
    standin.reset(driver::Machine { devices: 2, ..standin.machine() });
    let context = cuda::probe().unwrap().context(0).unwrap();
    let with = |config| cuda::allocator_with(&context, config, Config::default());
    let gpu = with(CudaConfig { peers: vec![1], exportable: true, ..CudaConfig::default() }).unwrap();
    let block = gpu.alloc(MIB).unwrap();
    for plain in [
        CudaConfig { plain: true, peers: vec![1], ..CudaConfig::default() },
        CudaConfig { plain: true, exportable: true, ..CudaConfig::default() },
        CudaConfig { peers: vec![5], ..CudaConfig::default() },
        CudaConfig { page: Some(4096), ..CudaConfig::default() },
    ] {
        assert!(matches!(with(plain.clone()), Err(AllocError::Backend(_))), "{plain:?}");
    }
    let large = with(CudaConfig { page: Some(16 * MIB), ..CudaConfig::default() }).unwrap();
    let other = large.alloc(MIB).unwrap();
    assert_eq!((large.stats().reserved.current, other.ptr() % (16 * MIB)), (16 * MIB, 0));
    drop((block, gpu, other, large));
    assert_eq!(standin.totals().handles, 0, "{:?}", standin.leaks());
    standin.assert_clean();
}

#[test]
fn each_thread_may_have_a_stream_and_all_one_allocator() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Buffer<f32>>();
    is_shared::<cuda::PinnedBuffer<f32>>();
    story(|_| {
        let World { gpu, context, .. } = World::new();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (gpu, context) = (&gpu, &context);
                scope.spawn(move || {
                    let stream = context.new_stream().unwrap();
                    let s = gpu.stream_of(&stream).unwrap();
                    for round in 0..15 {
                        let expected = numbers(thread * 1000 + round, 64);
                        let mut a = gpu.buffer_on::<u32>(&s, 64).unwrap();
                        stream.memcpy_htod(&expected, &mut a).unwrap();
                        let mut b = gpu.buffer_on::<u32>(&s, 64).unwrap();
                        stream.memcpy_dtod(&a, &mut b).unwrap();
                        drop(a);
                        assert_eq!(stream.clone_dtoh(&b).unwrap(), expected);
                    }
                });
            }
        });
        gpu.check().unwrap();
    });
}

/// Compiles, and is never run: there is no cuBLAS here.
#[allow(dead_code)]
fn cublas_takes_buffers(
    blas: &cudarc::cublas::CudaBlas,
    config: GemmConfig<f32>,
    a: &Buffer<f32>,
    b: &mut Buffer<f32>,
) {
    let (mut one, two) = b.as_slice_mut().split_at(16).expect("long enough");
    // SAFETY: never run.
    unsafe { blas.gemm(config, a, &a.slice(..16).expect("long enough"), &mut one) }.unwrap();
    fn takes<T>(_: impl DevicePtr<T> + DevicePtrMut<T>) {}
    takes::<f32>(two);
    fn host<T, H: HostSlice<T>>(_: H) {}
    let _ = host::<f32, cuda::PinnedBuffer<f32>>;
}

#[test]
fn why_there_is_no_cuda_is_a_typed_reason() {
    let Some(standin) = driver::standin() else { return };
    let machine = standin.machine();
    standin.reset(driver::Machine { init: 34, ..machine });
    let name = "CUDA_ERROR_STUB_LIBRARY".to_owned();
    assert_eq!(cuda::probe().unwrap_err(), CudaUnavailable::Init { code: 34, name });
    standin.reset(driver::Machine { init: 100, ..machine });
    assert_eq!(cuda::probe().unwrap_err(), CudaUnavailable::NoDevice);
    standin.reset(driver::Machine { devices: 0, ..machine });
    assert_eq!(cuda::probe().unwrap_err(), CudaUnavailable::NoDevice);
    standin.reset(driver::Machine { version: 10_020, ..machine });
    let error = cuda::probe().unwrap_err();
    assert_eq!(error, CudaUnavailable::DriverTooOld { version: 10_020, needed: 11_040 });
    assert_eq!(error.to_string(), "the CUDA driver is for CUDA 10.2, 11.4 is needed");
    standin.reset(machine);
    let probe = cuda::probe().unwrap();
    assert_eq!(probe.devices.len(), machine.devices as usize);
    let device = probe.devices[0].as_ref().unwrap();
    assert!(device.virtual_memory && device.memory == machine.capacity, "{probe:?}");
    assert!(matches!(probe.context(7), Err(CudaUnavailable::Device { device: 7, .. })));
}
