//! What no stand-in can show: cuBLAS and kernels of a real device on this crate's buffers, and memory pressed until pages move under
//! work in flight. Runs with `LARDER_CUDA=real` in the environment; says so otherwise. `.ci/gpu run` sets it.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(unsafe_code)]

use std::sync::Arc;

use cudarc::cublas::{CudaBlas, Gemm, GemmConfig, sys::cublasOperation_t::CUBLAS_OP_N};
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::compile_ptx;
use larder::cuda::{self, cudarc};
use larder::units::MIB;
use larder::{Allocator, Config};

const SCALE: &str = r#"
extern "C" __global__ void scale(float *values, float by, unsigned long long count) {
    unsigned long long at = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x;
    if (at < count) values[at] *= by;
}
extern "C" __global__ void slowly_fill(unsigned int *values, unsigned int value, unsigned long long count, unsigned int turns) {
    unsigned int noise = value;
    for (unsigned int turn = 0; turn < turns; turn++) noise = noise * 1664525u + 1013904223u;
    unsigned long long at = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x;
    if (at < count) values[at] = noise == 1u ? value + 1u : value;
}
"#;

fn device() -> Option<Arc<CudaContext>> {
    if std::env::var("LARDER_CUDA").as_deref() != Ok("real") {
        println!("not run: needs a real GPU, and LARDER_CUDA=real");
        return None;
    }
    Some(cuda::probe().expect("LARDER_CUDA=real promises a driver").context(0).expect("a device"))
}

#[test]
fn a_matrix_product_and_a_kernel_on_two_streams() {
    const N: usize = 256;
    let Some(context) = device() else { return };
    let gpu = cuda::allocator(&context, Config::default()).unwrap();
    let (one, two) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let (s, t) = (gpu.stream_of(&one).unwrap(), gpu.stream_of(&two).unwrap());
    let scale = context.load_module(compile_ptx(SCALE).unwrap()).unwrap().load_function("scale").unwrap();
    let blas = CudaBlas::new(two.clone()).unwrap();
    let values = |seed: usize| -> Vec<f32> { (0..N * N).map(|at| ((at * seed) % 17) as f32 - 8.0).collect() };
    let (left, right) = (values(5), values(11));
    for _ in 0..20 {
        let (mut a, mut b) = (gpu.buffer_on::<f32>(&s, N * N).unwrap(), gpu.buffer_on::<f32>(&s, N * N).unwrap());
        let mut c = gpu.buffer_on::<f32>(&t, N * N).unwrap();
        one.memcpy_htod(&left, &mut a).unwrap();
        one.memcpy_htod(&right, &mut b).unwrap();
        let n = N as i32;
        let config = GemmConfig {
            transa: CUBLAS_OP_N,
            transb: CUBLAS_OP_N,
            m: n,
            n,
            k: n,
            alpha: 1.0,
            lda: n,
            ldb: n,
            beta: 0.0,
            ldc: n,
        };
        // SAFETY: three square matrices of N columns and rows.
        unsafe { blas.gemm(config, &a, &b, &mut c) }.unwrap();
        {
            let target = c.write_on(&one).unwrap();
            let mut launch = one.launch_builder(&scale);
            launch.arg(&target).arg(&2.0_f32).arg(&65_536_u64);
            // SAFETY: the kernel takes an address, a factor and a count, and touches so many elements.
            unsafe { launch.launch(LaunchConfig::for_num_elems((N * N) as u32)) }.unwrap();
        }
        drop((a, b));
        let found = two.clone_dtoh(&c).unwrap();
        for (row, column) in [(0, 0), (3, 200), (255, 17), (128, 128)] {
            // Column by column, as cuBLAS counts.
            let sum: f32 = (0..N).map(|k| left[k * N + row] * right[column * N + k]).sum();
            assert_eq!(found[column * N + row], 2.0 * sum, "row {row}, column {column}");
        }
    }
    assert!(gpu.check().is_ok());
}

/// Blocks of all sizes under a limit that leaves little: pages move while kernels still write through their old addresses.
#[test]
fn pages_that_move_under_work_in_flight_hold_what_was_written() {
    let Some(context) = device() else { return };
    for alias in [true, false] {
        let config = Config { alias, slack: 1.0, ..Config::default().limit(768 * MIB) };
        let gpu: Allocator<cuda::Cuda> = cuda::allocator(&context, config).unwrap();
        let cuda_streams: Vec<_> = (0..3).map(|_| context.new_stream().unwrap()).collect();
        let streams: Vec<_> = cuda_streams.iter().map(|stream| gpu.stream_of(stream).unwrap()).collect();
        let module = context.load_module(compile_ptx(SCALE).unwrap()).unwrap();
        let fill = module.load_function("slowly_fill").unwrap();
        let mut held: Vec<(cuda::Buffer<u32>, u32)> = Vec::new();
        let mut state = 7_u64;
        let mut random = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        for value in 1..1500_u32 {
            let at = random(3) as usize;
            let count = (1 << (8 + random(17))) as usize;
            while gpu.stats().live.current + count as u64 * 4 > 700 * MIB {
                let (buffer, value) = held.swap_remove(random(held.len() as u64) as usize);
                if random(4) == 0 {
                    let found = cuda_streams[random(3) as usize].clone_dtoh(&buffer).unwrap();
                    assert!(found.iter().all(|word| *word == value), "alias {alias}: another's bytes");
                }
            }
            let Ok(mut buffer) = gpu.buffer_on::<u32>(&streams[at], count) else {
                // Free bytes may lie in pages that are partly live.
                held.truncate(held.len() / 2);
                continue;
            };
            {
                let words = count as u64;
                let target = buffer.write_on(&cuda_streams[at]).unwrap();
                let mut launch = cuda_streams[at].launch_builder(&fill);
                launch.arg(&target).arg(&value).arg(&words).arg(&2000_u32);
                // SAFETY: the kernel takes an address, a value, a count and a number of turns, and writes so many elements.
                unsafe { launch.launch(LaunchConfig::for_num_elems(count as u32)) }.unwrap();
            }
            held.push((buffer, value));
        }
        for (buffer, value) in held {
            let found = cuda_streams[0].clone_dtoh(&buffer).unwrap();
            assert!(found.iter().all(|word| *word == value), "alias {alias}: another's bytes at the end");
        }
        let stats = gpu.stats();
        println!(
            "alias {alias}: moved {} bytes, {} waits of streams, {} of the host",
            stats.moved, stats.stream_waits, stats.host_waits
        );
        assert!(stats.moved > 0, "nothing moved: the test shows nothing");
        gpu.check().unwrap();
    }
}
