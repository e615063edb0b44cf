//! Devices, plain, stream-ordered and pinned memory, kernels.

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;

use crate::driver::{Machine, standin};
use crate::gpu::Gpu;

const MIB: usize = 1 << 20;

#[test]
fn bytes_make_the_round_trip() {
    let Some(driver) = standin() else { return };
    let gpu = CudaContext::new(0).unwrap();
    let stream = gpu.default_stream();
    let numbers: Vec<f32> = (0..1000).map(|n| n as f32).collect();
    let there = stream.clone_htod(&numbers).unwrap();
    assert_eq!(stream.clone_dtoh(&there).unwrap(), numbers);
    let zeros = stream.alloc_zeros::<u32>(100).unwrap();
    assert_eq!(stream.clone_dtoh(&zeros).unwrap(), vec![0; 100]);
    drop((there, zeros));
    stream.synchronize().unwrap();
    driver.assert_clean();
    assert!(driver.totals().is_clean(), "{:?}", driver.leaks());
    drop((stream, gpu));
    assert_eq!(driver.leaks(), Vec::<String>::new());
}

#[test]
fn the_machine_is_as_it_was_asked_for() {
    let Some(driver) = standin() else { return };
    let usual = driver.machine();
    driver.reset(Machine { devices: 3, virtual_memory: false, capacity: 5 << 20, ..usual });
    assert_eq!(CudaContext::device_count().unwrap(), 3);
    let third = CudaContext::new(2).unwrap();
    assert_eq!(third.total_mem().unwrap(), 5 << 20);
    let attribute = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED;
    assert_eq!(third.attribute(attribute).unwrap(), 0);
    assert_eq!(Gpu { context: third }.reserve(2 * MIB), Err(sys::CUresult::CUDA_ERROR_NOT_SUPPORTED));
    for code in [100, 34, 803] {
        driver.reset(Machine { init: code, ..usual });
        assert_eq!(CudaContext::new(0).unwrap_err().0 as i32, code);
    }
    driver.reset(Machine { devices: 0, ..usual });
    assert_eq!(CudaContext::new(0).unwrap_err().0, sys::CUresult::CUDA_ERROR_INVALID_DEVICE);
}

#[test]
fn a_device_gives_what_it_has() {
    let Some(driver) = standin() else { return };
    driver.capacity(8 * MIB as u64);
    let gpu = Gpu::new();
    let blocks: Vec<u64> = (0..8).map(|_| gpu.alloc(MIB).unwrap()).collect();
    assert_eq!(gpu.alloc(1), Err(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    assert_eq!(gpu.free_bytes(), 0);
    blocks.into_iter().for_each(|at| gpu.free(at).unwrap());
    assert_eq!(gpu.free_bytes(), 8 * MIB);
    assert_eq!(gpu.alloc(0), Err(sys::CUresult::CUDA_ERROR_INVALID_VALUE));
}

#[test]
fn memory_freed_in_stream_order_is_charged_until_then_or_until_it_is_needed() {
    let Some(driver) = standin() else { return };
    driver.capacity(4 * MIB as u64);
    let gpu = Gpu::new();
    let stream = gpu.stream();
    let first = stream.alloc_zeros::<u8>(3 * MIB).unwrap();
    drop(first);
    assert_eq!(gpu.free_bytes(), MIB);
    let second = stream.alloc_zeros::<u8>(3 * MIB).unwrap();
    drop(second);
    stream.synchronize().unwrap();
    assert_eq!(gpu.free_bytes(), 4 * MIB);
    driver.assert_clean();
}

#[test]
fn fresh_memory_is_not_zero_and_a_fill_stays_in_its_bounds() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let stream = gpu.stream();
    let at = gpu.alloc(200 << 10).unwrap();
    assert!(gpu.read(at, 200 << 10, &stream).iter().all(|byte| *byte == 0xCD));
    gpu.fill(at + 65_530, 7, 12, &stream);
    let bytes = gpu.read(at, 200 << 10, &stream);
    assert!(bytes.iter().enumerate().all(|(at, byte)| (*byte == 7) == (65_530..65_542).contains(&at)));
    // SAFETY: the stand-in checks the addresses.
    unsafe { sys::cuMemsetD32Async(at + 4, 0x0102_0304, 2, stream.cu_stream()) }.result().unwrap();
    assert_eq!(gpu.read(at, 12, &stream), [0xCD, 0xCD, 0xCD, 0xCD, 4, 3, 2, 1, 4, 3, 2, 1]);
    gpu.free(at).unwrap();
    driver.assert_clean();
}

#[test]
fn kernels_run_by_name() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let stream = gpu.stream();
    let module = gpu.context.load_module(Ptx::from_src("add_f32, on this device")).unwrap();
    assert!(module.load_function("no_such_kernel").is_err());
    let add = module.load_function("add_f32").unwrap();
    let fill = module.load_function("fill_u32").unwrap();
    let (left, mut sum) = (stream.clone_htod(&[1.5_f32; 100]).unwrap(), stream.alloc_zeros::<f32>(100).unwrap());
    let (count, whole) = (100_u64, LaunchConfig::for_num_elems(100));
    // SAFETY: the arguments are the kernel's.
    unsafe { stream.launch_builder(&add).arg(&mut sum).arg(&left).arg(&left).arg(&count).launch(whole) }.unwrap();
    assert_eq!(stream.clone_dtoh(&sum).unwrap(), vec![3.0; 100]);
    let (bits, half) = (2.5_f32.to_bits(), 50_u64);
    // SAFETY: as above.
    unsafe { stream.launch_builder(&fill).arg(&mut sum).arg(&bits).arg(&half).launch(whole) }.unwrap();
    let found = stream.clone_dtoh(&sum).unwrap();
    assert_eq!((&found[..50], &found[50..]), (&[2.5; 50][..], &[3.0; 50][..]));
    driver.assert_clean();
    let beyond = 101_u64;
    // SAFETY: what is wrong here is what the stand-in must find.
    unsafe { stream.launch_builder(&fill).arg(&mut sum).arg(&bits).arg(&(beyond + 100)).launch(whole) }.unwrap();
    stream.synchronize().unwrap();
    assert!(driver.violations()[0].contains("illegal address: fill_u32"), "{:?}", driver.violations());
}

#[test]
fn source_is_compiled_and_its_kernels_run() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let stream = gpu.stream();
    assert!(cudarc::nvrtc::compile_ptx("int nothing;").is_err());
    let module = gpu.context.load_module(cudarc::nvrtc::compile_ptx("__global__ void fill_u64() {}").unwrap()).unwrap();
    let fill = module.load_function("fill_u64").unwrap();
    let mut wide = stream.alloc_zeros::<u64>(10).unwrap();
    // SAFETY: the arguments are the kernel's.
    let launched = unsafe {
        stream.launch_builder(&fill).arg(&mut wide).arg(&7_u64).arg(&9_u64).launch(LaunchConfig::for_num_elems(9))
    };
    launched.unwrap();
    assert_eq!(stream.clone_dtoh(&wide).unwrap(), [7, 7, 7, 7, 7, 7, 7, 7, 7, 0]);
    driver.assert_clean();
}

#[test]
fn pinned_memory_is_copied_when_the_stream_comes_to_it() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let stream = gpu.stream();
    let device = stream.clone_htod(&[9_u8; 64]).unwrap();
    // SAFETY: bytes of any value are valid.
    let mut pinned = unsafe { gpu.context.alloc_pinned_with_flags::<u8>(64, 0) }.unwrap();
    let at = pinned.as_ptr().unwrap() as u64;
    stream.memcpy_dtoh(&device, &mut pinned).unwrap();
    driver.host_touch(at, 64, false);
    stream.synchronize().unwrap();
    assert!(driver.violations()[0].contains("race"), "read before the copy is known to be done");
    driver.clear_violations();
    driver.host_touch(at, 64, false);
    assert_eq!(pinned.as_slice().unwrap(), [9; 64]);
    driver.assert_clean();
    drop((pinned, device));
    assert_eq!(driver.totals().pinned, 0);
}

#[test]
fn what_was_freed_or_never_was_is_found() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let stream = gpu.stream();
    let at = gpu.alloc(4096).unwrap();
    gpu.fill(at, 1, 4097, &stream);
    stream.synchronize().unwrap();
    assert!(driver.violations()[0].contains("never led anywhere"), "{:?}", driver.violations());
    driver.clear_violations();
    gpu.free(at).unwrap();
    gpu.fill(at, 1, 1, &stream);
    stream.synchronize().unwrap();
    assert!(driver.violations()[0].contains("it was freed"), "{:?}", driver.violations());
    assert_eq!(gpu.free(at), Err(sys::CUresult::CUDA_ERROR_INVALID_VALUE), "twice");
}

#[test]
fn memory_is_not_freed_under_work_nor_before_the_host_knows_it_done() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let stream = gpu.stream();
    let at = gpu.alloc(4096).unwrap();
    gpu.fill(at, 1, 4096, &stream);
    gpu.free(at).unwrap();
    assert!(driver.violations()[0].contains("has yet to touch it"), "{:?}", driver.violations());
    driver.clear_violations();
    let at = gpu.alloc(4096).unwrap();
    gpu.fill(at, 1, 4096, &stream);
    assert_eq!(driver.step(stream.cu_stream() as usize, 1), 1);
    gpu.free(at).unwrap();
    assert!(driver.violations()[0].contains("does not know"), "{:?}", driver.violations());
    driver.clear_violations();
    let at = gpu.alloc(4096).unwrap();
    gpu.fill(at, 1, 4096, &stream);
    stream.synchronize().unwrap();
    gpu.free(at).unwrap();
    driver.assert_clean();
}

#[test]
fn devices_touch_each_other_only_as_peers() {
    let Some(driver) = standin() else { return };
    driver.reset(Machine { devices: 2, ..driver.machine() });
    let (first, second) = (Gpu::new(), Gpu { context: CudaContext::new(1).unwrap() });
    first.context.bind_to_thread().unwrap();
    let at = first.alloc(4096).unwrap();
    second.context.bind_to_thread().unwrap();
    let stream = second.context.default_stream();
    second.fill(at, 5, 4096, &stream);
    stream.synchronize().unwrap();
    assert!(driver.violations()[0].contains("device 1 has no access"), "{:?}", driver.violations());
    driver.clear_violations();
    // SAFETY: both contexts live.
    unsafe { sys::cuCtxEnablePeerAccess(first.context.cu_ctx(), 0) }.result().unwrap();
    second.fill(at, 5, 4096, &stream);
    stream.synchronize().unwrap();
    driver.assert_clean();
}
