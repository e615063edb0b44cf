//! What stands in for the kinds of device whose feature is off: nothing, with the reason.
#![allow(dead_code, reason = "each half stands in only while its feature is off")]

use super::{Device, Kind, TransferError, Unavailable};
use crate::allocator::{Any, Block};
use crate::policy::Config;

pub fn no_upload(_block: &mut Block<Any>, _bytes: &[u8]) -> Option<Result<(), TransferError>> {
    None
}

pub fn no_read(_block: &Block<Any>) -> Option<Result<Vec<u8>, TransferError>> {
    None
}

pub mod cuda {
    use super::{Config, Device, Kind, Unavailable};
    pub use super::{no_read as read, no_upload as upload};

    pub fn kinds() -> Vec<Kind> {
        vec![Kind::Cuda(0)]
    }

    pub fn open(_number: u32, _config: Config) -> Result<Device, Unavailable> {
        Err(Unavailable::NotBuilt { feature: "cuda" })
    }
}

pub mod wgpu {
    use super::{Config, Device, Unavailable};
    pub use super::{no_read as read, no_upload as upload};

    pub fn open(_config: Config) -> Result<Device, Unavailable> {
        Err(Unavailable::NotBuilt { feature: "wgpu" })
    }
}
