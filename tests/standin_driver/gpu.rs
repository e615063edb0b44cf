//! A context of cudarc's, with the driver's calls that the tests make by hand.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, CudaStream, result};

pub type Outcome<T> = Result<T, CUresult>;

pub fn code(result: CUresult) -> Outcome<()> {
    result.result().map_err(|error| error.0)
}

pub struct Gpu {
    pub context: Arc<CudaContext>,
}

impl Gpu {
    pub fn new() -> Gpu {
        let context = CudaContext::new(0).unwrap();
        // SAFETY: no slice of this context is used on two streams by cudarc's own means.
        unsafe { context.disable_event_tracking() };
        Gpu { context }
    }

    /// A non-blocking stream.
    pub fn stream(&self) -> Arc<CudaStream> {
        self.context.new_stream().unwrap()
    }

    pub fn alloc(&self, size: usize) -> Outcome<u64> {
        // SAFETY: plain calls of the driver; here and below, the stand-in checks every address.
        unsafe { result::malloc_sync(size) }.map_err(|error| error.0)
    }

    pub fn free(&self, at: u64) -> Outcome<()> {
        // SAFETY: as above.
        unsafe { result::free_sync(at) }.map_err(|error| error.0)
    }

    pub fn fill(&self, at: u64, byte: u8, size: usize, stream: &CudaStream) {
        // SAFETY: as above.
        unsafe { result::memset_d8_async(at, byte, size, stream.cu_stream()) }.unwrap();
    }

    pub fn copy(&self, to: u64, from: u64, size: usize, stream: &CudaStream) {
        // SAFETY: as above.
        unsafe { result::memcpy_dtod_async(to, from, size, stream.cu_stream()) }.unwrap();
    }

    /// The bytes at an address, when the stream comes to it.
    pub fn read(&self, at: u64, size: usize, stream: &CudaStream) -> Vec<u8> {
        let mut bytes = vec![0; size];
        // SAFETY: as above.
        unsafe { result::memcpy_dtoh_async(&mut bytes, at, stream.cu_stream()) }.unwrap();
        bytes
    }

    pub fn free_bytes(&self) -> usize {
        self.context.mem_get_info().unwrap().0
    }

    // ---- virtual memory

    pub fn reserve(&self, size: usize) -> Outcome<u64> {
        let mut at = 0;
        // SAFETY: as above.
        code(unsafe { sys::cuMemAddressReserve(&mut at, size, 0, 0, 0) }).map(|()| at)
    }

    pub fn unreserve(&self, at: u64, size: usize) -> Outcome<()> {
        // SAFETY: as above.
        code(unsafe { sys::cuMemAddressFree(at, size) })
    }

    pub fn create(&self, size: usize) -> Outcome<u64> {
        let mut handle = 0;
        // SAFETY: zeros are a value of these plain structures; `location` is 8 bytes, kind then device, in every version.
        let result = unsafe {
            let mut properties: sys::CUmemAllocationProp = std::mem::zeroed();
            properties.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
            properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
            sys::cuMemCreate(&mut handle, size, &properties, 0)
        };
        code(result).map(|()| handle)
    }

    pub fn release(&self, handle: u64) -> Outcome<()> {
        // SAFETY: as above.
        code(unsafe { sys::cuMemRelease(handle) })
    }

    pub fn map(&self, at: u64, size: usize, offset: usize, handle: u64) -> Outcome<()> {
        // SAFETY: as above.
        code(unsafe { sys::cuMemMap(at, size, offset, handle, 0) })
    }

    pub fn unmap(&self, at: u64, size: usize) -> Outcome<()> {
        // SAFETY: as above.
        code(unsafe { sys::cuMemUnmap(at, size) })
    }

    pub fn allow(&self, at: u64, size: usize) -> Outcome<()> {
        // SAFETY: as for `create`.
        code(unsafe {
            let mut access: sys::CUmemAccessDesc = std::mem::zeroed();
            access.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
            access.flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
            sys::cuMemSetAccess(at, size, &access, 1)
        })
    }
}
