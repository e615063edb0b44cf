//! Planted failures, lost devices, and both names of the library.

use cudarc::driver::sys::CUresult;

use crate::driver::standin;
use crate::gpu::{Gpu, code};

#[test]
fn the_kth_call_fails_once_or_for_ever() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let oom = Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    driver.fail("cuMemAlloc_v2", 2, 2);
    let tries: Vec<_> = (0..3).map(|_| gpu.alloc(64).map(drop)).collect();
    assert_eq!(tries, [Ok(()), oom, Ok(())]);
    driver.fail_from("cuMemAlloc_v2", 2, 719);
    let launch = Err(CUresult::CUDA_ERROR_LAUNCH_FAILED);
    let tries: Vec<_> = (0..3).map(|_| gpu.alloc(64).map(drop)).collect();
    assert_eq!(tries, [Ok(()), launch, launch]);
    driver.heal();
    assert!(gpu.alloc(64).is_ok());
    let (all, some) = (driver.calls("*"), driver.calls("cuMemAlloc_v2"));
    driver.fail("*", 3, 2);
    // SAFETY: an address that is not there is refused.
    let tries = [gpu.reserve(2 << 20).map(drop), gpu.create(2 << 20).map(drop), gpu.alloc(64).map(drop)];
    assert_eq!(tries, [Ok(()), Ok(()), oom]);
    assert_eq!((driver.calls("*") - all, driver.calls("cuMemAlloc_v2") - some), (3, 1));
}

#[test]
fn a_lost_device_answers_every_call_with_its_loss() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let at = gpu.alloc(64).unwrap();
    driver.lose(719);
    assert_eq!(gpu.free(at), Err(CUresult::CUDA_ERROR_LAUNCH_FAILED));
    assert_eq!(gpu.context.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_LAUNCH_FAILED);
    driver.lose(4);
    assert_eq!(gpu.alloc(1), Err(CUresult::CUDA_ERROR_DEINITIALIZED));
    driver.heal();
    gpu.free(at).unwrap();
}

#[test]
fn a_call_needs_its_context_and_its_stream() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let other = std::thread::scope(|scope| scope.spawn(|| gpu.alloc(64)).join().unwrap());
    assert_eq!(other, Err(CUresult::CUDA_ERROR_INVALID_CONTEXT), "not current there");
    // SAFETY: a handle that was never given is refused.
    let refused = code(unsafe { cudarc::driver::sys::cuStreamSynchronize(0x10 as _) });
    assert_eq!(refused, Err(CUresult::CUDA_ERROR_INVALID_HANDLE));
    drop(gpu);
    let (at, result) = {
        let mut at = 0;
        // SAFETY: a place for the address.
        let result = code(unsafe { cudarc::driver::sys::cuMemAlloc_v2(&mut at, 64) });
        (at, result)
    };
    assert_eq!((at, result), (0, Err(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED)));
    driver.assert_clean();
}

#[test]
fn both_names_of_the_library_are_this_one() {
    let Some(driver) = standin() else { return };
    driver.reset(crate::driver::Machine { version: 7777, ..driver.machine() });
    for name in ["libcuda.so", "libcuda.so.1"] {
        let mut version = 0;
        // SAFETY: loaded already; the symbol is the driver's.
        unsafe {
            let library = libloading::Library::new(name).unwrap();
            let ask = library.get::<unsafe extern "C" fn(*mut i32) -> i32>(b"cuDriverGetVersion").unwrap();
            assert_eq!(ask(&mut version), 0);
        }
        assert_eq!(version, 7777, "{name}");
    }
}

#[test]
fn every_symbol_that_cudarc_looks_up_has_words_for_its_errors() {
    let Some(_driver) = standin() else { return };
    let error = cudarc::driver::DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    assert!(format!("{error}").contains("out of memory"), "{error}");
}
