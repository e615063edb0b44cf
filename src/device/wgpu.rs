//! wgpu as a device chosen at run time: the best adapter there is, and bytes through the backend's belts.

use super::{Device, Kind, TransferError, Unavailable};
use crate::allocator::{Any, Block};
use crate::native::wgpu::{Backing, OpenError, best};
use crate::policy::Config;

pub fn open(config: Config) -> Result<Device, Unavailable> {
    let allocator = best(config).map_err(|error| match error {
        OpenError::Alloc(error) => Unavailable::Refused(error),
        OpenError::NoAdapter { found, .. } if found.is_empty() => {
            Unavailable::NoDriver { reason: "no driver for Vulkan, Metal or DirectX 12 offers an adapter".into() }
        }
        error => Unavailable::NoDriver { reason: error.to_string() },
    })?;
    let info = allocator.device().adapter_info();
    let software = info.device_type == ::wgpu::DeviceType::Cpu;
    let name = format!("{} by {:?}", info.name, info.backend);
    Ok(Device { software, ..Device::new(Kind::Wgpu, name, allocator.erase()) })
}

pub fn upload(block: &mut Block<Any>, bytes: &[u8]) -> Option<Result<(), TransferError>> {
    let backing: &Backing = block.core()?.backend_as()?;
    Some(write(backing, block, bytes))
}

/// The backend writes whole words and fills the last one up with zeros; what is behind the bytes is to stay.
fn write(backing: &Backing, block: &Block<Any>, bytes: &[u8]) -> Result<(), TransferError> {
    let Some(span) = block.span() else { return Ok(()) };
    let (words, rest) = bytes.split_at(bytes.len() - bytes.len() % WORD);
    backing.upload(span.region, span.offset, words)?;
    if rest.is_empty() {
        return Ok(());
    }
    let mut word = [0; WORD];
    let at = span.offset + words.len() as u64;
    fetch(backing, block, at, &mut word)?;
    word[..rest.len()].copy_from_slice(rest);
    Ok(backing.upload(span.region, at, &word)?)
}

pub fn read(block: &Block<Any>) -> Option<Result<Vec<u8>, TransferError>> {
    let backing: &Backing = block.core()?.backend_as()?;
    let mut bytes = vec![0; usize::try_from(block.len()).ok()?];
    Some(fetch(backing, block, block.span()?.offset, &mut bytes).map(|()| bytes))
}

/// Bytes of the block's buffer.
fn fetch(backing: &Backing, block: &Block<Any>, offset: u64, bytes: &mut [u8]) -> Result<(), TransferError> {
    let (Some(core), Some(span)) = (block.core(), block.span()) else { return Ok(()) };
    let patience = core.config.read().wait_max;
    match backing.read(span.region, offset, bytes, patience)? {
        true => Ok(()),
        false => Err(TransferError::TimedOut),
    }
}

/// What wgpu moves at least, in bytes.
const WORD: usize = crate::backend::wgpu::WORD as usize;
