//! Whether CUDA can be used here, found out without a panic, a line of output or a thread left behind; and if not, why not.
//!
//! Knows the driver's file names and its devices, no memory.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::sync::Arc;

use cudarc::driver::CudaContext;

use super::library::{Attribute, Driver};
use crate::backend::BackendError;

/// Why CUDA cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaUnavailable {
    /// There is no driver, or it is not where libraries are looked for.
    #[error("no CUDA driver library was found; tried {}", .tried.join(", "))]
    NoLibrary {
        /// The names that were tried.
        tried: Vec<String>,
    },
    /// The library is not a whole driver: a stub, or too old.
    #[error("the CUDA driver library has no {name}")]
    MissingSymbol {
        /// The function that it lacks.
        name: &'static str,
    },
    /// The driver is older than what is used here.
    #[error("the CUDA driver is for CUDA {}, {} is needed", Version(*.version), Version(*.needed))]
    DriverTooOld {
        /// 1000 times the major version, and 10 times the minor.
        version: i32,
        /// The least.
        needed: i32,
    },
    /// The driver did not come up.
    #[error("the CUDA driver did not come up: {name} ({code})")]
    Init {
        /// What `cuInit` answered.
        code: i32,
        /// The driver's name for it.
        name: String,
    },
    /// The driver has no device to offer.
    #[error("the CUDA driver has no device")]
    NoDevice,
    /// A device did not say what it is, or gave no context.
    #[error("CUDA device {device}: {error}")]
    Device {
        /// Its number.
        device: usize,
        /// What the driver said.
        error: BackendError,
    },
}

impl From<CudaUnavailable> for BackendError {
    fn from(unavailable: CudaUnavailable) -> BackendError {
        match unavailable {
            CudaUnavailable::Device { error, .. } => error,
            other => BackendError::Driver { call: "looking for CUDA", reason: other.to_string(), code: 0 },
        }
    }
}

struct Version(i32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

/// A device as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its number.
    pub ordinal: usize,
    /// What it is called.
    pub name: String,
    /// Bytes of its memory.
    pub memory: u64,
    /// Its compute capability: major and minor.
    pub capability: (i32, i32),
    /// Whether physical pages can be mapped where one wants, which is what moving free pages together needs.
    pub virtual_memory: bool,
    /// Whether the driver itself has pools of memory.
    pub memory_pools: bool,
}

/// A driver that works.
#[derive(Clone)]
pub struct Probe {
    /// What the driver is for: 1000 times the major version of CUDA, and 10 times the minor.
    pub version: i32,
    /// At least one, by number: what the driver says of it, or why it says nothing.
    pub devices: Vec<Result<DeviceInfo, CudaUnavailable>>,
    driver: Arc<Driver>,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").field("version", &self.version).field("devices", &self.devices).finish_non_exhaustive()
    }
}

impl Probe {
    /// The primary context of a device, which others in this process may share.
    ///
    /// # Errors
    /// [`CudaUnavailable::Device`]: there is no such device, or the driver refuses.
    pub fn context(&self, ordinal: usize) -> Result<Arc<CudaContext>, CudaUnavailable> {
        let unavailable = |error| CudaUnavailable::Device { device: ordinal, error };
        self.driver.device(ordinal).map_err(unavailable)?;
        CudaContext::new(ordinal).map_err(|error| {
            let (call, code) = ("cuDevicePrimaryCtxRetain", error.0 as i32);
            unavailable(BackendError::Driver { call, reason: self.driver.name(code), code: code.into() })
        })
    }
}

/// Looks for the CUDA driver and its devices.
///
/// The library is looked for under the names under which `cudarc` looks for it, in the same order, and stays loaded. Every function
/// that will be called is looked up before any but the version is called.
///
/// # Errors
/// Why CUDA cannot be used here. A device that does not describe itself is an error in its own place.
pub fn probe() -> Result<Probe, CudaUnavailable> {
    let (driver, version) = Driver::load(library_names())?;
    let unavailable = |device| move |error| CudaUnavailable::Device { device, error };
    let count = driver.device_count().map_err(unavailable(0))?;
    if count < 1 {
        return Err(CudaUnavailable::NoDevice);
    }
    let describe = |ordinal| describe(&driver, ordinal).map_err(unavailable(ordinal));
    let devices = (0..count as usize).map(describe).collect();
    Ok(Probe { version, devices, driver: Arc::new(driver) })
}

/// The driver alone, for somebody who has a context already.
pub(super) fn driver() -> Result<Arc<Driver>, CudaUnavailable> {
    Driver::load(library_names()).map(|(driver, _)| Arc::new(driver))
}

fn describe(driver: &Driver, ordinal: usize) -> Result<DeviceInfo, BackendError> {
    let device = driver.device(ordinal)?;
    let attribute = |attribute| driver.attribute(device, attribute);
    Ok(DeviceInfo {
        ordinal,
        name: driver.device_name(device)?,
        memory: driver.device_memory(device)?,
        capability: (attribute(Attribute::CapabilityMajor)?, attribute(Attribute::CapabilityMinor)?),
        virtual_memory: attribute(Attribute::VirtualMemory)? > 0,
        memory_pools: attribute(Attribute::MemoryPools)? > 0,
    })
}

/// The driver's file names that exist anywhere, in the order in which `cudarc` tries them: `libcuda.so`, ..., `libcuda.so.1`;
/// `nvcuda.dll`.
fn library_names() -> Vec<String> {
    let endings = ["", "64"].map(|width| format!("{width}{DLL_SUFFIX}"));
    let numbered = ["12", "11", "10", "9", "1"].map(|major| format!("{DLL_SUFFIX}.{major}"));
    let endings: Vec<String> = endings.into_iter().chain(numbered).collect();
    let named = |name| endings.iter().map(move |ending| format!("{DLL_PREFIX}{name}{ending}"));
    named("cuda").chain(named("nvcuda")).collect()
}
