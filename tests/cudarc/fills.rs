//! Fills and copies within a buffer, and the kernels that fills are compiled to.

use larder::AllocError;
use larder::backend::BackendError;

use crate::{World, driver, numbers, story};

#[test]
fn fills_and_copies_within() {
    story(|standin| {
        let World { gpu, one, two, s, t: _t, context } = World::new();
        let mut a = gpu.buffer_on::<u32>(&s, 100).unwrap();
        gpu.fill(&one, &mut a, 0xDEAD_BEEF).unwrap();
        gpu.fill(&two, &mut a.slice_mut(10..20).unwrap(), 0x0101_0101).unwrap();
        assert_eq!(one.clone_dtoh(&a.slice(9..11).unwrap()).unwrap(), [0xDEAD_BEEF, 0x0101_0101]);
        let mut of_cudarc = one.alloc_zeros::<u16>(8).unwrap();
        gpu.fill(&one, &mut of_cudarc, 513).unwrap();
        assert_eq!(one.clone_dtoh(&of_cudarc).unwrap(), [513; 8]);
        one.memcpy_htod(&numbers(0, 100), &mut a).unwrap();
        let copies = standin.calls("cuMemcpyDtoDAsync_v2");
        gpu.copy_within(&two, &mut a, 0..40, 50).unwrap();
        assert_eq!(standin.calls("cuMemcpyDtoDAsync_v2"), copies + 1);
        gpu.copy_within(&two, &mut a, 0..40, 3).unwrap();
        gpu.copy_within(&one, &mut a, 52..90, 51).unwrap();
        assert_eq!(standin.calls("cuMemcpyDtoDAsync_v2"), copies + 5, "by way of other memory where they overlap");
        let mut shadow = numbers(0, 100);
        shadow.copy_within(0..40, 50);
        shadow.copy_within(0..40, 3);
        shadow.copy_within(52..90, 51);
        assert_eq!(one.clone_dtoh(&a).unwrap(), shadow);
        for (from, to) in [(90..101, 0), (0..10, 91), (0..1, usize::MAX)] {
            let breach = gpu.copy_within(&one, &mut a, from, to);
            assert!(matches!(breach, Err(AllocError::Backend(BackendError::Contract { .. }))), "{breach:?}");
        }
        // What repeats needs no kernel; what does not needs NVRTC.
        let mut wide = gpu.buffer_on::<u64>(&s, 10).unwrap();
        gpu.fill(&one, &mut wide, 0x0102_0304_0102_0304).unwrap();
        assert_eq!(one.clone_dtoh(&wide).unwrap(), [0x0102_0304_0102_0304; 10]);
        match gpu.fill(&one, &mut wide, 1) {
            Ok(()) => {
                let mut wider = gpu.buffer_on::<u128>(&s, 10).unwrap();
                gpu.fill(&one, &mut wider, 1 << 64 | 2).unwrap();
                assert_eq!(one.clone_dtoh(&wide).unwrap(), [1; 10]);
                assert_eq!(one.clone_dtoh(&wider).unwrap(), [1 << 64 | 2; 10]);
            }
            Err(AllocError::Backend(error @ BackendError::Unsupported { .. })) => println!("not run: {error}"),
            Err(error) => panic!("{error}"),
        }
        gpu.fill(&one, &mut gpu.buffer_on::<[u64; 0]>(&s, 10).unwrap(), []).unwrap();
        gpu.fill(&one, &mut gpu.buffer_on::<u64>(&s, 0).unwrap(), 1).unwrap();
        let odd = gpu.fill(&one, &mut gpu.buffer_on::<[u8; 3]>(&s, 10).unwrap(), [1, 2, 3]).unwrap_err();
        assert!(matches!(odd, AllocError::Backend(BackendError::Unsupported { .. })), "{odd}");
        drop((of_cudarc, context));
    });
}

#[test]
fn a_fill_may_run_when_its_allocator_is_gone() {
    story(|standin| {
        let World { gpu, context, .. } = World::new();
        let stranger = context.new_stream().unwrap();
        let mut of_cudarc = stranger.alloc_zeros::<u64>(8).unwrap();
        gpu.fill(&stranger, &mut of_cudarc, 1 << 40 | 3).unwrap();
        drop(gpu);
        assert!(standin.totals().queued > 0, "the kernel has not run");
        assert_eq!(standin.calls("cuModuleUnload"), 0);
        assert_eq!(stranger.clone_dtoh(&of_cudarc).unwrap(), [1 << 40 | 3; 8]);
        drop(of_cudarc);
        stranger.synchronize().unwrap();
    });
}

#[test]
fn a_compiler_that_does_not_know_the_device_leaves_the_rest_to_the_driver() {
    story(|standin| {
        let World { gpu, one, s, .. } = World::new();
        let mut wide = gpu.buffer_on::<u64>(&s, 10).unwrap();
        standin.compiler(driver::Compiler::KnowsNoArchitecture);
        gpu.fill(&one, &mut wide, 1).unwrap();
        assert_eq!(one.clone_dtoh(&wide).unwrap(), [1; 10]);
    });
}

#[test]
fn what_does_not_compile_is_compiled_once() {
    story(|standin| {
        let World { gpu, one, s, .. } = World::new();
        let mut wide = gpu.buffer_on::<u64>(&s, 10).unwrap();
        let before = standin.compiler(driver::Compiler::Broken);
        let errors = [1, 2, 3].map(|value| gpu.fill(&one, &mut wide, value).unwrap_err());
        assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
        assert_eq!(standin.compiler(driver::Compiler::Usual), before + 1);
    });
}
