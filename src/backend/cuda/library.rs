//! The library of the CUDA driver: its functions, the structures that they take, and what they answer.
//!
//! The functions are resolved here and not called through `cudarc`: a missing one is an error instead of a panic, a result code that
//! the bindings do not know is a number instead of an impossible value of an enum, and nothing depends on how `cudarc` finds the driver
//! or for which version of it it was built. Layouts of structures are the driver's, the same in all versions that are accepted.
//!
//! Knows no context: [`driver`](super::driver) calls what needs one. Invariant: the library stays loaded for ever.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;

use cudarc::driver::sys;
use libloading::Library;

use super::probe::CudaUnavailable;
use crate::backend::BackendError;

const SUCCESS: c_int = 0;
const OUT_OF_MEMORY: c_int = 2;
const NO_DEVICE: c_int = 100;
/// Results after which every later call fails too: the driver is closing down, the context is gone, or a kernel broke it.
const LOST: &[c_int] = &[3, 4, 46, 201, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911];
const DEVICE: c_int = 1;
const READ_WRITE: c_int = 3;
const PINNED: c_int = 1;
const POSIX_FILE_DESCRIPTOR: c_int = 1;
/// The oldest driver that has everything used here: 11.4, as the oldest bindings.
pub(super) const VERSION_NEEDED: i32 = 11_040;

/// Attributes of devices that are asked for.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(super) enum Attribute {
    CapabilityMajor = 75,
    CapabilityMinor = 76,
    VirtualMemory = 102,
    PosixHandles = 103,
    DirectRdma = 110,
    MemoryPools = 115,
}

/// Where memory lies: `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Location {
    kind: c_int,
    id: c_int,
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct PageKind {
    kind: c_int,
    handle_types: c_int,
    location: Location,
    windows_meta: usize,
    compression: u8,
    rdma: u8,
    usage: u16,
    reserved: [u8; 4],
}

/// `CUmemAccessDesc`: who may read and write.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Access {
    location: Location,
    flags: c_int,
}

const _: () = assert!(size_of::<PageKind>() == size_of::<sys::CUmemAllocationProp>());
const _: () = assert!(size_of::<Access>() == size_of::<sys::CUmemAccessDesc>());

impl Access {
    pub(super) fn of(device: i32) -> Access {
        Access { location: Location { kind: DEVICE, id: device }, flags: READ_WRITE }
    }
}

impl PageKind {
    /// Physical memory of a device.
    pub(super) fn of(device: i32, exportable: bool, rdma: bool) -> PageKind {
        PageKind {
            kind: PINNED,
            handle_types: if exportable { POSIX_FILE_DESCRIPTOR } else { 0 },
            location: Location { kind: DEVICE, id: device },
            windows_meta: 0,
            compression: 0,
            rdma: rdma.into(),
            usage: 0,
            reserved: [0; 4],
        }
    }
}

macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        /// The functions, by the names that the driver gives them.
        #[allow(non_snake_case)]
        pub(super) struct Driver {
            $(pub(super) $name: unsafe extern "system" fn($($argument),*) -> c_int,)*
        }

        impl Driver {
            #[allow(non_snake_case)]
            fn resolve(library: &Library) -> Result<Driver, CudaUnavailable> {
                $(
                    // SAFETY: the driver exports this name with this signature, in every version that is accepted; the pointer
                    // stays valid because the library is never unloaded.
                    let $name = *unsafe { library.get(stringify!($name).as_bytes()) }
                        .map_err(|_| CudaUnavailable::MissingSymbol { name: stringify!($name) })?;
                )*
                Ok(Driver { $($name),* })
            }
        }
    };
}

functions! {
    cuInit(c_uint);
    cuGetErrorName(c_int, *mut *const c_char);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut c_int, c_int);
    cuDeviceGetName(*mut c_char, c_int, c_int);
    cuDeviceTotalMem_v2(*mut usize, c_int);
    cuDeviceGetAttribute(*mut c_int, c_int, c_int);
    cuDeviceCanAccessPeer(*mut c_int, c_int, c_int);
    cuCtxGetCurrent(*mut usize);
    cuCtxSetCurrent(usize);
    cuThreadExchangeStreamCaptureMode(*mut c_int);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut u64, usize);
    cuMemFree_v2(u64);
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    cuMemFreeHost(*mut c_void);
    cuMemGetAllocationGranularity(*mut usize, *const PageKind, c_int);
    cuMemAddressReserve(*mut u64, usize, usize, u64, u64);
    cuMemAddressFree(u64, usize);
    cuMemCreate(*mut u64, usize, *const PageKind, u64);
    cuMemRelease(u64);
    cuMemMap(u64, usize, usize, u64, u64);
    cuMemUnmap(u64, usize);
    cuMemSetAccess(u64, usize, *const Access, usize);
    cuMemsetD8Async(u64, u8, usize, usize);
    cuMemsetD16Async(u64, u16, usize, usize);
    cuMemsetD32Async(u64, u32, usize, usize);
    cuMemcpyDtoDAsync_v2(u64, u64, usize, usize);
    cuModuleLoadData(*mut usize, *const c_void);
    cuModuleGetFunction(*mut usize, usize, *const c_char);
    cuModuleUnload(usize);
    cuLaunchKernel(usize, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, usize, *mut *mut c_void, *mut *mut c_void);
    cuStreamQuery(usize);
    cuStreamIsCapturing(usize, *mut c_int);
    cuStreamWaitEvent(usize, usize, c_uint);
    cuEventCreate(*mut usize, c_uint);
    cuEventDestroy_v2(usize);
    cuEventRecord(usize, usize);
    cuEventQuery(usize);
    cuEventSynchronize(usize);
}

/// What `cudarc` calls for a context, a stream and its end: a library without them is of no use either.
const CALLED_BY_CUDARC: &[&str] = &[
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuGetErrorString",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
];

impl Driver {
    /// Loads the driver from the first of these names that is there, and makes it ready.
    pub(super) fn load(names: Vec<String>) -> Result<(Driver, i32), CudaUnavailable> {
        // SAFETY: running the initialisers of the system's CUDA driver is what loading it is for.
        let Some(library) = names.iter().find_map(|name| unsafe { Library::new(name) }.ok()) else {
            return Err(CudaUnavailable::NoLibrary { tried: names });
        };
        // Function pointers and threads of the driver live on, so the library does.
        let library = ManuallyDrop::new(library);
        let version = version_of(&library)?;
        if version < VERSION_NEEDED {
            return Err(CudaUnavailable::DriverTooOld { version, needed: VERSION_NEEDED });
        }
        let driver = Driver::resolve(&library)?;
        for name in CALLED_BY_CUDARC {
            // SAFETY: the pointer is only looked for, never called.
            let found = unsafe { library.get::<unsafe extern "system" fn()>(name.as_bytes()) };
            found.map_err(|_| CudaUnavailable::MissingSymbol { name })?;
        }
        // SAFETY: any thread may initialise the driver at any time; 0 is the only flag.
        match unsafe { (driver.cuInit)(0) } {
            SUCCESS => Ok((driver, version)),
            NO_DEVICE => Err(CudaUnavailable::NoDevice),
            code => Err(CudaUnavailable::Init { code, name: driver.name(code) }),
        }
    }

    /// The driver's name for a result.
    pub(super) fn name(&self, code: c_int) -> String {
        let mut name = std::ptr::null();
        // SAFETY: `name` may be written.
        let found = unsafe { (self.cuGetErrorName)(code, &mut name) };
        if found == SUCCESS && !name.is_null() {
            // SAFETY: the driver answers a string that ends with 0 and lives as long as it does.
            return unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        }
        // What a driver that never came up cannot name itself.
        match code {
            34 => "CUDA_ERROR_STUB_LIBRARY".into(),
            803 => "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH".into(),
            999 => "CUDA_ERROR_UNKNOWN".into(),
            code => format!("CUDA error {code}"),
        }
    }

    pub(super) fn check(&self, call: &'static str, requested: u64, code: c_int) -> Result<(), BackendError> {
        match code {
            SUCCESS => Ok(()),
            OUT_OF_MEMORY => Err(BackendError::OutOfMemory { call, requested }),
            code if LOST.contains(&code) => {
                Err(BackendError::Lost { reason: format!("{call} answered {} ({code})", self.name(code)) })
            }
            code => Err(BackendError::Driver { call, reason: self.name(code), code: code.into() }),
        }
    }

    pub(super) fn device_count(&self) -> Result<i32, BackendError> {
        let mut count = 0;
        // SAFETY: `count` may be written.
        let code = unsafe { (self.cuDeviceGetCount)(&mut count) };
        self.check("cuDeviceGetCount", 0, code).map(|()| count)
    }

    pub(super) fn device(&self, ordinal: usize) -> Result<i32, BackendError> {
        let mut device = 0;
        let ordinal = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        // SAFETY: `device` may be written.
        let code = unsafe { (self.cuDeviceGet)(&mut device, ordinal) };
        self.check("cuDeviceGet", 0, code).map(|()| device)
    }

    pub(super) fn device_name(&self, device: i32) -> Result<String, BackendError> {
        let mut name = [0_u8; 256];
        // SAFETY: one byte less than the buffer has may be written, so that it ends with 0.
        let code = unsafe { (self.cuDeviceGetName)(name.as_mut_ptr().cast(), name.len() as c_int - 1, device) };
        self.check("cuDeviceGetName", 0, code)?;
        Ok(CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned())
    }

    pub(super) fn device_memory(&self, device: i32) -> Result<u64, BackendError> {
        let mut bytes = 0;
        // SAFETY: `bytes` may be written.
        let code = unsafe { (self.cuDeviceTotalMem_v2)(&mut bytes, device) };
        self.check("cuDeviceTotalMem", 0, code).map(|()| bytes as u64)
    }

    pub(super) fn attribute(&self, device: i32, attribute: Attribute) -> Result<i32, BackendError> {
        let mut value = 0;
        // SAFETY: `value` may be written.
        let code = unsafe { (self.cuDeviceGetAttribute)(&mut value, attribute as c_int, device) };
        self.check("cuDeviceGetAttribute", 0, code).map(|()| value)
    }

    /// Whether `device` can be given access to the memory of `owner`.
    pub(super) fn can_access(&self, device: i32, owner: i32) -> Result<bool, BackendError> {
        let mut can = 0;
        // SAFETY: `can` may be written.
        let code = unsafe { (self.cuDeviceCanAccessPeer)(&mut can, device, owner) };
        self.check("cuDeviceCanAccessPeer", 0, code).map(|()| can != 0)
    }
}

fn version_of(library: &Library) -> Result<i32, CudaUnavailable> {
    let name = "cuDriverGetVersion";
    // SAFETY: the driver exports this name with this signature.
    let function = unsafe { library.get::<unsafe extern "system" fn(*mut c_int) -> c_int>(name.as_bytes()) };
    let function = function.map_err(|_| CudaUnavailable::MissingSymbol { name })?;
    let mut version = 0;
    // SAFETY: it may be called before the driver is initialised, and `version` may be written.
    match unsafe { function(&mut version) } {
        SUCCESS => Ok(version),
        code => Err(CudaUnavailable::Init { code, name: name.into() }),
    }
}
