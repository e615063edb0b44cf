//! CUDA as a device chosen at run time: found by the probe, opened by its primary context, bytes copied on the default stream.
#![allow(unsafe_code)]

use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, DriverError, SyncOnDrop};

use super::{Device, Kind, TransferError, Unavailable};
use crate::allocator::{Any, Block};
use crate::backend::BackendError;
use crate::backend::cuda::{CudaDevice, PinnedHost, Streams};
use crate::ids::StreamId;
use crate::native::cuda::{CudaUnavailable, allocator, probe};
use crate::native::{bytes, bytes_mut};
use crate::policy::Config;

impl From<CudaUnavailable> for Unavailable {
    fn from(error: CudaUnavailable) -> Self {
        let reason = match error {
            CudaUnavailable::NoLibrary { tried } => {
                // The name that drivers install, and the first that is tried; the others are versions of long ago.
                let name = tried.iter().find(|name| name.ends_with(".so.1")).or(tried.first());
                let (name, others) = (name.map_or("", String::as_str), tried.len().saturating_sub(1));
                format!("no CUDA driver library was found: neither {name} nor one of {others} other names of it")
            }
            error => error.to_string(),
        };
        Unavailable::NoDriver { reason }
    }
}

/// Those that the driver has; the first where it has none, so that somebody says why.
pub fn kinds() -> Vec<Kind> {
    let count = probe().map_or(0, |probe| probe.devices.len() as u32);
    (0..count.max(1)).map(Kind::Cuda).collect()
}

pub fn open(number: u32, config: Config) -> Result<Device, Unavailable> {
    let probe = probe()?;
    let count = probe.devices.len() as u32;
    let Some(info) = probe.devices.get(number as usize) else {
        return Err(Unavailable::NoSuchDevice { number, count });
    };
    let info = info.clone()?;
    let context = probe.context(info.ordinal)?;
    let allocator = allocator(&context, config)?;
    Ok(Device::new(Kind::Cuda(number), info.name, allocator.erase()))
}

/// The bytes at the start of a block, as cudarc's copies take them. Whoever has it has the block.
struct Part<'a> {
    block: &'a Block<Any>,
    bytes: usize,
    stream: &'a Arc<CudaStream>,
}

impl DeviceSlice<u8> for Part<'_> {
    fn len(&self) -> usize {
        self.bytes
    }

    fn stream(&self) -> &Arc<CudaStream> {
        self.stream
    }
}

impl DevicePtr<u8> for Part<'_> {
    fn device_ptr<'a>(&'a self, _stream: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
        (self.block.address(), SyncOnDrop::Sync(None))
    }
}

impl DevicePtrMut<u8> for Part<'_> {
    fn device_ptr_mut<'a>(&'a mut self, _stream: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
        (self.block.address(), SyncOnDrop::Sync(None))
    }
}

pub fn upload(block: &mut Block<Any>, bytes: &[u8]) -> Option<Result<(), TransferError>> {
    if block.core()?.backend_as::<PinnedHost>().is_some() {
        // SAFETY: page-locked memory of the host, initialised when its segment was made; the caller has waited for all work on it.
        let view = unsafe { bytes_mut(block) };
        view[..bytes.len()].copy_from_slice(bytes);
        return Some(Ok(()));
    }
    let device: &CudaDevice = block.core()?.backend_as()?;
    Some(copy(device, "upload", |stream| stream.memcpy_htod(bytes, &mut Part { block, bytes: bytes.len(), stream })))
}

pub fn read(block: &Block<Any>) -> Option<Result<Vec<u8>, TransferError>> {
    if block.core()?.backend_as::<PinnedHost>().is_some() {
        // SAFETY: as in `upload`.
        return Some(Ok(unsafe { bytes(block) }.to_vec()));
    }
    let device: &CudaDevice = block.core()?.backend_as()?;
    let mut target = vec![0; block.len() as usize];
    let copied =
        copy(device, "read", |stream| stream.memcpy_dtoh(&Part { block, bytes: target.len(), stream }, &mut target));
    Some(copied.map(|()| target))
}

/// Copies on the default stream and waits, whatever the copy says: the bytes at both ends are lent.
fn copy(
    device: &CudaDevice,
    call: &'static str,
    work: impl FnOnce(&Arc<CudaStream>) -> Result<(), DriverError>,
) -> Result<(), TransferError> {
    let stream = device.stream(StreamId(0))?;
    let copied = work(&stream);
    let complete = stream.synchronize();
    let failed = |error: DriverError| BackendError::Driver { call, reason: error.to_string(), code: error.0 as i64 };
    Ok(copied.and(complete).map_err(failed)?)
}
