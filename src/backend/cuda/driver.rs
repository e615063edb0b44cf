//! The driver's calls for one context, as thin wrappers that answer [`BackendError`].
//!
//! Knows no regions, pages or streams of ours.
//!
//! Invariants: events, pages and the like come from the driver and are given back to it by value, once; while a [`Current`] lives the
//! context is current on its thread, and afterwards what was before.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use cudarc::driver::{CudaContext, CudaStream, DriverError};

use super::library::{Access, Driver, PageKind};
use crate::backend::{BackendError, Budget};

const NOT_READY: c_int = 600;
/// The default stream was asked about while another stream, which it would wait for, is being captured.
const CAPTURE_IMPLICIT: c_int = 906;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`: calls that a capture would forbid are allowed on this thread.
const RELAXED: c_int = 2;
const DISABLE_TIMING: c_uint = 2;

/// How page-locked memory is made.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(super) enum HostFlags {
    /// For all contexts.
    Portable = 1,
    /// And written by the CPU past its caches: fast to send, very slow to read.
    WriteCombined = 1 | 4,
}

/// What the driver itself can fill memory with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Narrow {
    One(u8),
    Two(u16),
    Four(u32),
}

/// Loaded code.
#[derive(Debug)]
pub(super) struct Module(usize);

/// A kernel of loaded code, valid as long as that is loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel(usize);

/// A page of physical memory. Whoever has it gives it back with [`Current::release_page`].
#[derive(Debug)]
pub(super) struct PhysicalPage(u64);

/// An event. Whoever has it gives it back with [`Current::destroy_event`].
#[derive(Debug)]
pub(super) struct Event(usize);

/// Page-locked memory of the host. Whoever has it gives it back with [`Current::free_host`].
#[derive(Debug)]
pub(super) struct HostMemory {
    address: usize,
    size: usize,
}

impl HostMemory {
    pub(super) fn address(&self) -> u64 {
        self.address as u64
    }

    /// Sets bytes from `offset` on to 0.
    ///
    /// # Panics
    /// When they do not lie in it.
    pub(super) fn zero(&mut self, offset: u64, size: u64) {
        assert!(offset.checked_add(size).is_some_and(|end| end <= self.size as u64), "within the memory");
        let start = std::ptr::with_exposed_provenance_mut::<u8>(self.address + offset as usize);
        // SAFETY: the driver gave `self.size` writable bytes at this address, which are freed only when this value is gone, and the
        // range lies within them; any byte may be zero. That nobody else uses them now is the promise of the backend's caller.
        unsafe { start.write_bytes(0, size as usize) }
    }
}

/// A context of the user's on a device, and the driver.
pub(super) struct Device {
    driver: Arc<Driver>,
    context: Arc<CudaContext>,
    /// Set when the device is lost, or must not be touched any more: every call fails from then on.
    lost: AtomicBool,
    /// Set when work may still touch memory that nobody will give back.
    leaves_memory: AtomicBool,
}

impl Device {
    pub(super) fn new(driver: Arc<Driver>, context: Arc<CudaContext>) -> Device {
        Device { driver, context, lost: AtomicBool::new(false), leaves_memory: AtomicBool::new(false) }
    }

    pub(super) fn driver(&self) -> &Driver {
        &self.driver
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Its number in the driver.
    pub(super) fn number(&self) -> i32 {
        self.context.cu_device()
    }

    /// No call reaches the device any more; what it holds stays until the process ends.
    pub(super) fn give_up(&self) {
        self.lost.store(true, Relaxed);
    }

    /// Memory that is held when its owner ends stays until the process ends.
    pub(super) fn leave_memory(&self) {
        self.leaves_memory.store(true, Relaxed);
    }

    /// As [`Device::enter`], for memory on its way out; `None` where it is to stay.
    pub(super) fn enter_to_free(&self) -> Option<Current<'_>> {
        if self.leaves_memory.load(Relaxed) { None } else { self.enter().ok() }
    }

    /// Makes the context current on this thread, and calls that a capture would forbid allowed, until the guard is dropped.
    pub(super) fn enter(&self) -> Result<Current<'_>, BackendError> {
        if self.lost.load(Relaxed) {
            return Err(BackendError::Lost { reason: "an earlier call found it lost".into() });
        }
        let mut current = Current { device: self, context: None, mode: None, on_this_thread: PhantomData };
        let ours = self.context.cu_ctx() as usize;
        let mut was = 0;
        // SAFETY: `was` may be written.
        current.check("cuCtxGetCurrent", 0, unsafe { (self.driver.cuCtxGetCurrent)(&mut was) })?;
        if was != ours {
            // SAFETY: the context lives as long as the `CudaContext` that is held here.
            current.check("cuCtxSetCurrent", 0, unsafe { (self.driver.cuCtxSetCurrent)(ours) })?;
            current.context = Some(was);
        }
        let mut mode = RELAXED;
        // SAFETY: the mode is read and the old one written.
        let code = unsafe { (self.driver.cuThreadExchangeStreamCaptureMode)(&mut mode) };
        current.check("cuThreadExchangeStreamCaptureMode", 0, code)?;
        current.mode = Some(mode);
        Ok(current)
    }

    /// A new stream of `cudarc`'s making, so that its own bookkeeping knows of it. The first one of a context waits for the context and
    /// so ends captures: what was done before it was not tracked, and no other way of making it (a fork, a borrowed stream) keeps the
    /// streams that the user makes afterwards behind that. An error that somebody else left with the context stays there for them.
    pub(super) fn open_stream(&self) -> Result<Arc<CudaStream>, BackendError> {
        let current = self.enter()?;
        let foreign = self.context.check_err();
        let opened = self.context.new_stream();
        self.context.record_err(foreign);
        opened.map_err(|error| current.error("cuStreamCreate", error))
    }
}

/// The time during which a device's context is current on this thread.
pub(super) struct Current<'a> {
    device: &'a Device,
    /// What was current before, when that was another.
    context: Option<usize>,
    /// The thread's capture mode before.
    mode: Option<c_int>,
    on_this_thread: PhantomData<*const ()>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        if let Some(mut mode) = self.mode {
            // SAFETY: the mode is what the driver said before. A driver that fails now fails at the next call too.
            let _ = unsafe { (self.device.driver.cuThreadExchangeStreamCaptureMode)(&mut mode) };
        }
        if let Some(context) = self.context {
            // SAFETY: this context was current on this thread when the guard was made.
            let _ = unsafe { (self.device.driver.cuCtxSetCurrent)(context) };
        }
    }
}

/// A stream's handle, valid as long as the stream is borrowed.
fn handle(stream: &CudaStream) -> usize {
    stream.cu_stream() as usize
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// The calls. Addresses are the caller's duty: only what the driver gave it, and only while it holds that.
impl Current<'_> {
    fn check(&self, call: &'static str, requested: u64, code: c_int) -> Result<(), BackendError> {
        self.device.driver.check(call, requested, code).inspect_err(|error| {
            if matches!(error, BackendError::Lost { .. }) {
                self.device.give_up();
            }
        })
    }

    /// What `cudarc` met.
    pub(super) fn error(&self, call: &'static str, error: DriverError) -> BackendError {
        let unknown = BackendError::Driver { call, reason: "nothing".into(), code: 0 };
        self.check(call, 0, error.0 as c_int).err().unwrap_or(unknown)
    }

    pub(super) fn budget(&self) -> Result<Budget, BackendError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both may be written.
        let code = unsafe { (self.device.driver.cuMemGetInfo_v2)(&mut free, &mut total) };
        self.check("cuMemGetInfo", 0, code).map(|()| Budget { total: total as u64, free: free as u64 })
    }

    pub(super) fn allocate(&self, bytes: u64) -> Result<u64, BackendError> {
        let mut address = 0;
        // SAFETY: `address` may be written.
        let code = unsafe { (self.device.driver.cuMemAlloc_v2)(&mut address, size(bytes)) };
        self.check("cuMemAlloc", bytes, code).map(|()| address)
    }

    pub(super) fn free(&self, address: u64) -> Result<(), BackendError> {
        // SAFETY: the address came from `allocate` and is freed once.
        self.check("cuMemFree", 0, unsafe { (self.device.driver.cuMemFree_v2)(address) })
    }

    pub(super) fn allocate_host(&self, bytes: u64, flags: HostFlags) -> Result<HostMemory, BackendError> {
        let mut pointer = null_mut();
        // SAFETY: `pointer` may be written.
        let code = unsafe { (self.device.driver.cuMemHostAlloc)(&mut pointer, size(bytes), flags as c_uint) };
        self.check("cuMemHostAlloc", bytes, code)?;
        Ok(HostMemory { address: pointer.expose_provenance(), size: size(bytes) })
    }

    /// Gives host memory back. Answers it where the driver does not take it.
    pub(super) fn free_host(&self, memory: HostMemory) -> Result<(), (HostMemory, BackendError)> {
        let pointer = std::ptr::with_exposed_provenance_mut(memory.address);
        // SAFETY: the memory came from `allocate_host` and is freed once.
        let freed = self.check("cuMemFreeHost", 0, unsafe { (self.device.driver.cuMemFreeHost)(pointer) });
        freed.map_err(|error| (memory, error))
    }

    /// What the size of a page must be a multiple of.
    pub(super) fn granularity(&self, kind: &PageKind) -> Result<u64, BackendError> {
        let mut bytes = 0;
        // SAFETY: `bytes` may be written, `kind` read; 0 asks for the least.
        let code = unsafe { (self.device.driver.cuMemGetAllocationGranularity)(&mut bytes, kind, 0) };
        self.check("cuMemGetAllocationGranularity", 0, code).map(|()| bytes as u64)
    }

    pub(super) fn reserve(&self, bytes: u64, align: u64) -> Result<u64, BackendError> {
        let mut address = 0;
        // SAFETY: `address` may be written.
        let code = unsafe { (self.device.driver.cuMemAddressReserve)(&mut address, size(bytes), size(align), 0, 0) };
        self.check("cuMemAddressReserve", bytes, code).map(|()| address)
    }

    pub(super) fn unreserve(&self, address: u64, bytes: u64) -> Result<(), BackendError> {
        // SAFETY: the range came from `reserve` as a whole and holds no mapping.
        self.check("cuMemAddressFree", bytes, unsafe { (self.device.driver.cuMemAddressFree)(address, size(bytes)) })
    }

    pub(super) fn create_page(&self, bytes: u64, kind: &PageKind) -> Result<PhysicalPage, BackendError> {
        let mut page = 0;
        // SAFETY: `page` may be written, `kind` read.
        let code = unsafe { (self.device.driver.cuMemCreate)(&mut page, size(bytes), kind, 0) };
        self.check("cuMemCreate", bytes, code).map(|()| PhysicalPage(page))
    }

    /// Gives a page back to the device. Answers the page where the driver does not take it.
    pub(super) fn release_page(&self, page: PhysicalPage) -> Result<(), PhysicalPage> {
        // SAFETY: the page came from `create_page` and is released once.
        self.check("cuMemRelease", 0, unsafe { (self.device.driver.cuMemRelease)(page.0) }).map_err(|_| page)
    }

    pub(super) fn map(&self, address: u64, bytes: u64, page: &PhysicalPage) -> Result<(), BackendError> {
        // SAFETY: the range is reserved and nothing is mapped there; the page is not released.
        let code = unsafe { (self.device.driver.cuMemMap)(address, size(bytes), 0, page.0, 0) };
        self.check("cuMemMap", bytes, code)
    }

    pub(super) fn unmap(&self, address: u64, bytes: u64) -> Result<(), BackendError> {
        // SAFETY: the range is one mapping, and no work touches it.
        self.check("cuMemUnmap", bytes, unsafe { (self.device.driver.cuMemUnmap)(address, size(bytes)) })
    }

    pub(super) fn set_access(&self, address: u64, bytes: u64, who: &[Access]) -> Result<(), BackendError> {
        // SAFETY: the whole range is mapped; so many descriptions are read.
        let code = unsafe { (self.device.driver.cuMemSetAccess)(address, size(bytes), who.as_ptr(), who.len()) };
        self.check("cuMemSetAccess", bytes, code)
    }

    /// Sets elements of one, two or four bytes.
    pub(super) fn set(&self, address: u64, value: Narrow, count: u64, stream: &CudaStream) -> Result<(), BackendError> {
        let (driver, stream, count) = (&self.device.driver, handle(stream), size(count));
        let code = match value {
            // SAFETY: so many bytes from the address on are the caller's, as for the two below.
            Narrow::One(value) => unsafe { (driver.cuMemsetD8Async)(address, value, count, stream) },
            // SAFETY: as above.
            Narrow::Two(value) => unsafe { (driver.cuMemsetD16Async)(address, value, count, stream) },
            // SAFETY: as above.
            Narrow::Four(value) => unsafe { (driver.cuMemsetD32Async)(address, value, count, stream) },
        };
        self.check("cuMemsetAsync", 0, code)
    }

    /// Copies bytes that do not overlap.
    pub(super) fn copy(&self, to: u64, from: u64, bytes: u64, stream: &CudaStream) -> Result<(), BackendError> {
        // SAFETY: both ranges are the caller's.
        let code = unsafe { (self.device.driver.cuMemcpyDtoDAsync_v2)(to, from, size(bytes), handle(stream)) };
        self.check("cuMemcpyDtoDAsync", 0, code)
    }

    pub(super) fn load_module(&self, code: &[u8]) -> Result<Module, BackendError> {
        let mut module = 0;
        // SAFETY: `module` may be written; the code is what the compiler made, and says itself how long it is.
        let loaded = unsafe { (self.device.driver.cuModuleLoadData)(&mut module, code.as_ptr().cast()) };
        self.check("cuModuleLoadData", 0, loaded).map(|()| Module(module))
    }

    pub(super) fn unload_module(&self, module: Module) -> Result<(), BackendError> {
        // SAFETY: the module came from `load_module` and is unloaded once.
        self.check("cuModuleUnload", 0, unsafe { (self.device.driver.cuModuleUnload)(module.0) })
    }

    pub(super) fn kernel(&self, module: &Module, name: &CStr) -> Result<Kernel, BackendError> {
        let mut kernel = 0;
        // SAFETY: `kernel` may be written; the module is loaded; the name ends with 0.
        let code = unsafe { (self.device.driver.cuModuleGetFunction)(&mut kernel, module.0, name.as_ptr()) };
        self.check("cuModuleGetFunction", 0, code).map(|()| Kernel(kernel))
    }

    /// Runs a kernel of arguments of 8 bytes in `blocks` times `threads` threads.
    pub(super) fn launch(
        &self,
        kernel: Kernel,
        (blocks, threads): (u32, u32),
        arguments: &mut [u64],
        stream: &CudaStream,
    ) -> Result<(), BackendError> {
        let mut pointers: Vec<*mut c_void> = arguments.iter_mut().map(|argument| (&raw mut *argument).cast()).collect();
        // SAFETY: the caller gives as many arguments as the kernel takes, all of 8 bytes; they are read before the call returns. What
        // the kernel does with them is the caller's duty.
        let code = unsafe {
            let launch = self.device.driver.cuLaunchKernel;
            launch(kernel.0, blocks, 1, 1, threads, 1, 1, 0, handle(stream), pointers.as_mut_ptr(), null_mut())
        };
        self.check("cuLaunchKernel", 0, code)
    }

    /// Whether what the stream is given now is captured instead of run, or may not be run because of another stream's capture.
    pub(super) fn is_capturing(&self, stream: &CudaStream) -> Result<bool, BackendError> {
        let mut status = 0;
        // SAFETY: `status` may be written; the stream lives.
        let code = unsafe { (self.device.driver.cuStreamIsCapturing)(handle(stream), &mut status) };
        if code == CAPTURE_IMPLICIT {
            return Ok(true);
        }
        self.check("cuStreamIsCapturing", 0, code).map(|()| status != 0)
    }

    /// Whether all that the stream was given is complete. Not to be asked during a capture.
    pub(super) fn is_idle(&self, stream: &CudaStream) -> Result<bool, BackendError> {
        // SAFETY: the stream lives.
        self.ready("cuStreamQuery", unsafe { (self.device.driver.cuStreamQuery)(handle(stream)) })
    }

    fn ready(&self, call: &'static str, code: c_int) -> Result<bool, BackendError> {
        if code == NOT_READY { Ok(false) } else { self.check(call, 0, code).map(|()| true) }
    }

    pub(super) fn create_event(&self) -> Result<Event, BackendError> {
        let mut event = 0;
        // SAFETY: `event` may be written.
        let code = unsafe { (self.device.driver.cuEventCreate)(&mut event, DISABLE_TIMING) };
        self.check("cuEventCreate", 0, code).map(|()| Event(event))
    }

    pub(super) fn destroy_event(&self, event: Event) -> Result<(), BackendError> {
        // SAFETY: the event came from `create_event` and is destroyed once.
        self.check("cuEventDestroy", 0, unsafe { (self.device.driver.cuEventDestroy_v2)(event.0) })
    }

    pub(super) fn record(&self, event: &Event, stream: &CudaStream) -> Result<(), BackendError> {
        // SAFETY: event and stream live.
        self.check("cuEventRecord", 0, unsafe { (self.device.driver.cuEventRecord)(event.0, handle(stream)) })
    }

    pub(super) fn wait(&self, stream: &CudaStream, event: &Event) -> Result<(), BackendError> {
        // SAFETY: event and stream live; 0 is the only flag.
        let code = unsafe { (self.device.driver.cuStreamWaitEvent)(handle(stream), event.0, 0) };
        self.check("cuStreamWaitEvent", 0, code)
    }

    pub(super) fn is_done(&self, event: &Event) -> Result<bool, BackendError> {
        // SAFETY: the event lives.
        self.ready("cuEventQuery", unsafe { (self.device.driver.cuEventQuery)(event.0) })
    }

    pub(super) fn synchronize(&self, event: &Event) -> Result<(), BackendError> {
        // SAFETY: the event lives.
        self.check("cuEventSynchronize", 0, unsafe { (self.device.driver.cuEventSynchronize)(event.0) })
    }
}
