//! CUDA devices, over a context of the user's: memory by the page where the device has virtual memory, else in segments; and
//! page-locked memory of the host.
//!
//! | file | what |
//! |---|---|
//! | `library`, `driver`, `compiler` | the driver's functions, its calls for one context, NVRTC; and the only `unsafe` |
//! | `probe` | whether CUDA can be used here, and why not |
//! | `order` | streams and events |
//! | `vmm`, `plain` | device memory by the page; in segments |
//! | `pinned` | page-locked host memory |
//! | `fill` | patterns |
//!
//! The context that is current on a thread is the same after each call as before. Calls that a capture would forbid are made in the
//! relaxed capture mode, so that nobody's capture is ended by them; events are not recorded on a stream that is being captured.
//! A device that was lost is touched no more. Memory that is still held when its backend ends stays until the process ends, if work may
//! still run: somebody gave up waiting for it.

mod compiler;
mod driver;
mod fill;
mod library;
mod order;
mod pinned;
mod plain;
mod probe;
mod vmm;

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaStream};

use self::driver::{Device, Narrow};
use self::fill::Fills;
use self::library::{Access, Attribute, PageKind};
use self::order::Order;
use self::plain::Segments;
use self::vmm::Pages;
use crate::backend::{Backend, BackendError, Budget, Capabilities, Region, Span};
use crate::ids::{EventId, RegionId, StreamId};
use crate::units::{MIB, align_down, align_up};

pub use self::pinned::{PinnedConfig, PinnedHost};
pub use self::probe::{CudaUnavailable, DeviceInfo, Probe, probe};

/// A reservation has at most so many times the device's memory.
const ADDRESSES_PER_MEMORY: u64 = 8;
/// And never more than so many bytes, whatever the device: half of what a process can address.
const REGION_MAX: u64 = 1 << 46;

/// How memory of a CUDA device is to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaConfig {
    /// Segments of the driver's own allocator instead of pages, even where there is virtual memory.
    pub plain: bool,
    /// Bytes of a page: one handle of the driver. A power of two; `None`: 2 MiB, or what the device needs. Larger pages cost less to
    /// map and move, and waste more.
    pub page: Option<u64>,
    /// Other devices, by number, that read and write this memory too. Pages only.
    pub peers: Vec<usize>,
    /// Whether pages can be exported to other processes (Unix): by `cuMemRetainAllocationHandle` of an address within a block.
    pub exportable: bool,
    /// Whether network and storage devices may access the memory directly.
    pub rdma: bool,
    /// The most bytes of physical pages that are kept for the next growth when they are mapped nowhere. They count as
    /// [`Backend::beneath`], and are used before any are made.
    pub stock: u64,
}

impl Default for CudaConfig {
    fn default() -> Self {
        CudaConfig { plain: false, page: None, peers: Vec::new(), exportable: false, rdma: false, stock: 64 * MIB }
    }
}

/// The memory of one device.
pub struct CudaDevice {
    device: Arc<Device>,
    order: Order,
    memory: Memory,
    fills: Fills,
    capabilities: Capabilities,
    total: u64,
}

enum Memory {
    Pages(Pages),
    Segments(Segments),
}

/// What both kinds of memory have besides the trait: the user's streams under numbers.
pub(crate) trait Streams: Backend {
    /// The context that all of it belongs to.
    fn context(&self) -> &Arc<CudaContext>;
    /// Whether a number names this stream.
    fn is_stream(&self, id: StreamId, stream: &CudaStream) -> bool;
    /// Gives a stream a number, under which it is kept until it is closed.
    fn add_stream(&self, stream: Arc<CudaStream>) -> Result<StreamId, BackendError>;
    /// The stream of a number.
    fn stream(&self, id: StreamId) -> Result<Arc<CudaStream>, BackendError>;
    /// Whether what a stream, with a number or without, is given now is captured instead of run.
    fn captures(&self, stream: &CudaStream) -> Result<bool, BackendError>;
    /// Makes a stream without a number wait for an event.
    fn foreign_wait(&self, stream: &CudaStream, event: EventId) -> Result<(), BackendError>;
}

/// The driver, with a context that somebody has.
fn open(context: &Arc<CudaContext>) -> Result<Arc<Device>, BackendError> {
    Ok(Arc::new(Device::new(probe::driver()?, context.clone())))
}

impl CudaDevice {
    /// Over the user's context.
    ///
    /// # Errors
    /// A driver that cannot be used, a device that cannot do what the config asks for, a page that does not suit it.
    pub fn new(context: &Arc<CudaContext>, config: &CudaConfig) -> Result<CudaDevice, BackendError> {
        let device = open(context)?;
        let total = device.driver().device_memory(device.number())?;
        let has_pages = device.driver().attribute(device.number(), Attribute::VirtualMemory)? > 0;
        let (memory, page) = if has_pages && !config.plain {
            let (pages, page) = pages(&device, config, total)?;
            (Memory::Pages(pages), Some(page))
        } else {
            (Memory::Segments(segments(&device, config, total)?), None)
        };
        let capabilities = Capabilities {
            name: if page.is_some() { "cuda" } else { "cuda-plain" },
            page,
            remap: page.is_some(),
            alias: page.is_some(),
            streams: true,
            captures: true,
            release_waits: true,
            host_ordered: false,
            base_align: page.unwrap_or(plain::ALIGN),
            quantum: 512,
            region_max: page.map_or(align_down(total, plain::ALIGN), |page| addresses(total, page)),
        };
        let (order, fills) = (Order::new(device.clone()), Fills::new(device.clone()));
        Ok(CudaDevice { device, order, memory, fills, capabilities, total })
    }

    /// Bytes of the device's memory.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Repeats a pattern of 1, 2, 4, 8 or 16 bytes from an address on, in memory that the caller has, in the order of a stream.
    pub(crate) fn fill(
        &self,
        address: u64,
        pattern: &[u8],
        count: u64,
        stream: &CudaStream,
    ) -> Result<(), BackendError> {
        self.fills.fill(address, pattern, count, stream)
    }

    /// Copies bytes that do not overlap, in memory that the caller has, in the order of a stream.
    pub(crate) fn copy(&self, to: u64, from: u64, bytes: u64, stream: &CudaStream) -> Result<(), BackendError> {
        self.device.enter()?.copy(to, from, bytes, stream)
    }

    fn pages(&self, call: &'static str) -> Result<&Pages, BackendError> {
        match &self.memory {
            Memory::Pages(pages) => Ok(pages),
            Memory::Segments(_) => Err(self.unsupported(call)),
        }
    }
}

/// Bytes of addresses of the longest reservation.
fn addresses(total: u64, page: u64) -> u64 {
    let wanted = total.saturating_mul(ADDRESSES_PER_MEMORY).min(REGION_MAX);
    align_up(wanted, page).unwrap_or(page)
}

fn pages(device: &Arc<Device>, config: &CudaConfig, total: u64) -> Result<(Pages, u64), BackendError> {
    let (driver, number) = (device.driver(), device.number());
    let has = |attribute| driver.attribute(number, attribute).map(|value| value > 0);
    let unsupported = |call| Err(BackendError::Unsupported { call, backend: "cuda" });
    if config.exportable && !(cfg!(unix) && has(Attribute::PosixHandles)?) {
        return unsupported("exporting pages");
    }
    if config.rdma && !has(Attribute::DirectRdma)? {
        return unsupported("direct access by other devices (rdma)");
    }
    let mut access = vec![Access::of(number)];
    for peer in &config.peers {
        let peer = driver.device(*peer)?;
        if peer != number && !driver.can_access(peer, number)? {
            return unsupported("access by this peer");
        }
        if peer != number {
            access.push(Access::of(peer));
        }
    }
    let kind = PageKind::of(number, config.exportable, config.rdma);
    let granularity = device.enter()?.granularity(&kind)?;
    let page = config.page.unwrap_or(granularity.max(2 * MIB));
    if !page.is_power_of_two() || !page.is_multiple_of(granularity.max(1)) {
        return unsupported("a page that is not a power of two and a multiple of the device's granularity");
    }
    Ok((Pages::new(device.clone(), page, kind, access, (total, addresses(total, page), config.stock)), page))
}

fn segments(device: &Arc<Device>, config: &CudaConfig, total: u64) -> Result<Segments, BackendError> {
    let unsupported = |call| Err(BackendError::Unsupported { call, backend: "cuda-plain" });
    match config {
        CudaConfig { exportable: true, .. } => unsupported("exporting segments"),
        CudaConfig { rdma: true, .. } => unsupported("direct access by other devices (rdma)"),
        CudaConfig { peers, .. } if !peers.is_empty() => unsupported("access by peers"),
        _ => Ok(Segments::new(device.clone(), align_down(total, plain::ALIGN))),
    }
}

impl Streams for CudaDevice {
    fn context(&self) -> &Arc<CudaContext> {
        self.device.context()
    }

    fn is_stream(&self, id: StreamId, stream: &CudaStream) -> bool {
        self.order.is(id, stream)
    }

    fn add_stream(&self, stream: Arc<CudaStream>) -> Result<StreamId, BackendError> {
        self.order.add(stream)
    }

    fn stream(&self, id: StreamId) -> Result<Arc<CudaStream>, BackendError> {
        self.order.stream("stream", id)
    }

    fn captures(&self, stream: &CudaStream) -> Result<bool, BackendError> {
        self.order.captures(stream)
    }

    fn foreign_wait(&self, stream: &CudaStream, event: EventId) -> Result<(), BackendError> {
        self.order.foreign_wait(stream, event)
    }
}

impl Backend for CudaDevice {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn reserve(&self, size: u64) -> Result<Region, BackendError> {
        self.pages("reserve")?.reserve(size)
    }

    fn back(&self, span: Span) -> Result<(), BackendError> {
        self.pages("back")?.back(span)
    }

    fn unback(&self, span: Span) -> Result<(), BackendError> {
        self.pages("unback")?.unback(span)
    }

    fn remap(&self, from: Span, to: Span) -> Result<(), BackendError> {
        self.pages("remap")?.remap(from, to)
    }

    fn grow_segment(&self, size: u64) -> Result<Region, BackendError> {
        match &self.memory {
            Memory::Pages(_) => Err(self.unsupported("grow_segment")),
            Memory::Segments(segments) => segments.grow(size),
        }
    }

    fn release(&self, region: RegionId) -> Result<(), BackendError> {
        match &self.memory {
            Memory::Pages(pages) => pages.release(region),
            Memory::Segments(segments) => segments.release(region),
        }
    }

    fn open_stream(&self) -> Result<StreamId, BackendError> {
        self.order.open()
    }

    fn close_stream(&self, stream: StreamId) {
        self.order.close(stream);
    }

    fn record(&self, stream: StreamId) -> Result<EventId, BackendError> {
        self.order.record(stream)
    }

    fn done(&self, event: EventId) -> Result<bool, BackendError> {
        self.order.done(event)
    }

    fn stream_wait(&self, stream: StreamId, event: EventId) -> Result<(), BackendError> {
        self.order.stream_wait(stream, event)
    }

    fn host_wait(&self, event: EventId, timeout: Option<Duration>) -> Result<bool, BackendError> {
        self.order.host_wait(event, timeout)
    }

    fn forget(&self, event: EventId) {
        self.order.forget(event);
    }

    fn zero(&self, stream: StreamId, span: Span) -> Result<(), BackendError> {
        let address = match &self.memory {
            Memory::Pages(pages) => pages.address("zero", span)?,
            Memory::Segments(segments) => segments.address("zero", span)?,
        };
        let stream = self.order.stream("zero", stream)?;
        self.device.enter()?.set(address, Narrow::One(0), span.size, &stream)
    }

    fn budget(&self) -> Result<Option<Budget>, BackendError> {
        self.device.enter()?.budget().map(Some)
    }

    fn is_capturing(&self, stream: StreamId) -> Result<bool, BackendError> {
        self.order.is_capturing(stream)
    }

    fn beneath(&self) -> u64 {
        match &self.memory {
            Memory::Pages(pages) => pages.stocked(),
            Memory::Segments(_) => 0,
        }
    }

    fn tidy(&self) {
        if let Memory::Pages(pages) = &self.memory {
            pages.empty_stock();
        }
    }
}

impl Drop for CudaDevice {
    /// Whoever gave up waiting for work has left memory here that it may still touch: that stays.
    fn drop(&mut self) {
        if !matches!(self.order.is_idle(), Ok(true)) {
            self.device.leave_memory();
        }
    }
}
