//! The rows of CUDA: device memory by the page and in segments, and page-locked memory of the host.
//!
//! Over the stand-in driver, or with `LARDER_CUDA=real` over the machine's own. The rows share one driver, so none has a turn.

use std::sync::{Arc, LazyLock};

use cudarc::driver::{CudaContext, result};
use larder::backend::cuda::{CudaConfig, CudaDevice, PinnedConfig, PinnedHost};
use larder::backend::{Backend, Region};
use larder::units::MIB;

use crate::{Cpu, Fresh, Row, Touch, driver};

static CONTEXT: LazyLock<Arc<CudaContext>> = LazyLock::new(|| {
    driver::shared();
    CudaContext::new(0).unwrap()
});

/// Memory of the device, through copies that are waited for.
struct Device;

impl Touch for Device {
    fn write(&self, _backend: &dyn Backend, region: Region, offset: u64, size: u64, byte: u8) {
        CONTEXT.bind_to_thread().unwrap();
        // SAFETY: the suite writes only to spans that are backed and that it has to itself.
        unsafe { result::memset_d8_async(region.base + offset, byte, size as usize, std::ptr::null_mut()) }.unwrap();
        CONTEXT.default_stream().synchronize().unwrap();
    }

    fn read(&self, _backend: &dyn Backend, region: Region, offset: u64) -> Option<u8> {
        CONTEXT.bind_to_thread().unwrap();
        let mut byte = [0];
        // SAFETY: as above.
        unsafe { result::memcpy_dtoh_sync(&mut byte, region.base + offset) }.unwrap();
        Some(byte[0])
    }
}

pub fn rows() -> Vec<Row> {
    let device = |name, make| Row { name, make, touch: &Device, fresh: None };
    vec![
        device("cuda, pages", || cuda(CudaConfig::default())),
        device("cuda, large pages, none kept", || {
            cuda(CudaConfig { page: Some(4 * MIB), stock: 0, ..CudaConfig::default() })
        }),
        device("cuda, segments", || cuda(CudaConfig { plain: true, ..CudaConfig::default() })),
        Row { name: "cuda, page-locked", make: pinned, touch: &Cpu, fresh: Some(Fresh::Zero) },
    ]
}

fn cuda(config: CudaConfig) -> Box<dyn Backend> {
    Box::new(CudaDevice::new(&CONTEXT, &config).unwrap())
}

fn pinned() -> Box<dyn Backend> {
    Box::new(PinnedHost::new(&CONTEXT, PinnedConfig::default()).unwrap())
}
