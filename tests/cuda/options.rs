//! What can be asked of memory: peers, export, direct access by other devices, large pages.

use cudarc::driver::{CudaContext, sys};
use larder::backend::cuda::CudaDevice;
use larder::backend::{Backend, BackendError, Span};
use larder::cuda::{self, CudaConfig};
use larder::policy::Config;
use larder::units::MIB;

use crate::driver::{Machine, standin};

#[test]
fn peers_reach_the_memory_and_others_do_not() {
    let Some(driver) = standin() else { return };
    for peers in [vec![], vec![1], vec![1, 2, 0]] {
        driver.reset(Machine { devices: 3, ..driver.machine() });
        let contexts: Vec<_> = (0..3).map(|number| CudaContext::new(number).unwrap()).collect();
        let config = CudaConfig { peers: peers.clone(), ..CudaConfig::default() };
        let gpu = cuda::allocator_with(&contexts[0], config, Config::default()).unwrap();
        let block = gpu.alloc(5 * MIB).unwrap();
        for (number, context) in contexts.iter().enumerate() {
            context.bind_to_thread().unwrap();
            // SAFETY: the block is alive; whether it may be reached from here is what is asked.
            unsafe { sys::cuMemsetD8Async(block.address(), 1, 5 << 20, std::ptr::null_mut()) }.result().unwrap();
            context.synchronize().unwrap();
            let reached = driver.violations().is_empty();
            assert_eq!(reached, number == 0 || peers.contains(&number), "device {number}, peers {peers:?}");
            driver.clear_violations();
        }
        drop(block);
        gpu.purge().unwrap();
        drop(gpu);
        assert!(driver.totals().is_clean(), "{:?}", driver.leaks());
    }
}

#[test]
fn what_a_device_cannot_do_is_a_typed_error() {
    let Some(driver) = standin() else { return };
    driver.reset(Machine { devices: 2, peers: false, ..driver.machine() });
    let context = CudaContext::new(0).unwrap();
    let usual = CudaConfig::default;
    let odd = |config: CudaConfig| cuda::allocator_with(&context, config, Config::default()).map(drop).unwrap_err();
    for config in [
        CudaConfig { peers: vec![1], ..usual() },
        CudaConfig { page: Some(3 * MIB), ..usual() },
        CudaConfig { page: Some(MIB), ..usual() },
        CudaConfig { plain: true, exportable: true, ..usual() },
        CudaConfig { plain: true, rdma: true, ..usual() },
    ] {
        let error = odd(config.clone());
        let expected = matches!(error, larder::AllocError::Backend(BackendError::Unsupported { .. }));
        assert!(expected, "{config:?}: {error}");
    }
    let nobody = odd(CudaConfig { peers: vec![7], ..usual() });
    assert!(nobody.to_string().contains("CUDA_ERROR_INVALID_DEVICE"), "{nobody}");
    drop(context);
    assert!(driver.totals().is_clean(), "{:?}", driver.leaks());
}

#[test]
fn pages_are_made_as_they_were_asked_for() {
    let Some(driver) = standin() else { return };
    for (exportable, rdma) in [(false, false), (true, false), (false, true)] {
        driver.reset(driver.machine());
        let context = CudaContext::new(0).unwrap();
        let config = CudaConfig { exportable, rdma, ..CudaConfig::default() };
        let gpu = cuda::allocator_with(&context, config, Config::default()).unwrap();
        let block = gpu.alloc(100).unwrap();
        let mut handle = 0;
        // SAFETY: zeros are a value of this plain structure; the address is the block's, the handle is given back.
        let found = unsafe {
            let mut found: sys::CUmemAllocationProp = std::mem::zeroed();
            sys::cuMemRetainAllocationHandle(&mut handle, block.address() as *mut _).result().unwrap();
            sys::cuMemGetAllocationPropertiesFromHandle(&mut found, handle).result().unwrap();
            sys::cuMemRelease(handle).result().unwrap();
            found
        };
        assert_eq!(found.requestedHandleTypes.0, u32::from(exportable));
        assert_eq!(found.allocFlags.gpuDirectRDMACapable, u8::from(rdma));
        drop(block);
        drop(gpu);
        driver.assert_clean();
        assert!(driver.totals().is_clean(), "{:?}", driver.leaks());
    }
}

#[test]
fn a_page_is_one_handle_whatever_its_size_and_a_purge_keeps_none() {
    let Some(driver) = standin() else { return };
    driver.patience(1);
    let context = CudaContext::new(0).unwrap();
    for (page, handles) in [(None, 10), (Some(4 * MIB), 5), (Some(32 * MIB), 1)] {
        let config = CudaConfig { page, stock: 64 * MIB, ..CudaConfig::default() };
        let gpu = cuda::allocator_with(&context, config, Config::default()).unwrap();
        let block = gpu.alloc(20 * MIB).unwrap();
        assert_eq!(driver.totals().handles, handles, "{page:?}");
        drop(block);
        gpu.purge().unwrap();
        assert_eq!(driver.totals().used_bytes, 0);
        drop(gpu);
        assert!(driver.totals().is_clean(), "{:?}", driver.leaks());
    }
    driver.assert_clean();
}

#[test]
fn the_stock_of_pages_has_a_bound_and_an_end() {
    let Some(driver) = standin() else { return };
    let context = CudaContext::new(0).unwrap();
    let device = CudaDevice::new(&context, &CudaConfig { stock: 6 * MIB, ..CudaConfig::default() }).unwrap();
    let region = device.reserve(64 * MIB).unwrap();
    let all = Span { region: region.id, offset: 0, size: 64 * MIB };
    for _ in 0..2 {
        device.back(all).unwrap();
        assert_eq!((device.beneath(), driver.totals().used_bytes), (0, 64 * MIB));
        device.unback(all).unwrap();
        assert_eq!((device.beneath(), driver.totals().used_bytes), (6 * MIB, 6 * MIB));
    }
    device.tidy();
    assert_eq!((device.beneath(), driver.totals().used_bytes), (0, 0));
    device.release(region.id).unwrap();
    drop((device, context));
    assert!(driver.totals().is_clean(), "{:?}", driver.leaks());
}
