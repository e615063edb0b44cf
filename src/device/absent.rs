//! What stands in for the kinds of device whose feature is off: nothing, with the reason.
#![allow(dead_code, reason = "each half stands in only while its feature is off")]

use super::{Device, Kind, TransferError, Unavailable};
use crate::allocator::{Any, Block};
use crate::policy::Config;

pub mod cuda {
    use super::{Any, Block, Config, Device, Kind, TransferError, Unavailable};

    pub fn kinds() -> Vec<Kind> {
        vec![Kind::Cuda(0)]
    }

    pub fn open(_number: u32, _config: Config) -> Result<Device, Unavailable> {
        Err(Unavailable::NotBuilt { feature: "cuda" })
    }

    pub fn upload(_block: &mut Block<Any>, _bytes: &[u8]) -> Option<Result<(), TransferError>> {
        None
    }

    pub fn read(_block: &Block<Any>) -> Option<Result<Vec<u8>, TransferError>> {
        None
    }
}

pub mod wgpu {
    use super::{Any, Block, Config, Device, TransferError, Unavailable};

    pub fn open(_config: Config) -> Result<Device, Unavailable> {
        Err(Unavailable::NotBuilt { feature: "wgpu" })
    }

    pub fn upload(_block: &mut Block<Any>, _bytes: &[u8]) -> Option<Result<(), TransferError>> {
        None
    }

    pub fn read(_block: &Block<Any>) -> Option<Result<Vec<u8>, TransferError>> {
        None
    }
}
