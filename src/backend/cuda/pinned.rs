//! Page-locked memory of the host, which the device copies from and to by itself, in segments.
//!
//! The CPU touches it too, so it is used again after completion only. It is initialised once, when a segment is made.
//!
//! Invariants, per segment: its memory is initialised; `base` is a multiple of [`ALIGN`] and `base + size` within the memory.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaStream};

use super::driver::{Device, HostFlags, HostMemory};
use super::open;
use super::order::Order;
use crate::backend::table::{Table, contract, pieces, range_within, segment_size};
use crate::backend::{Backend, BackendError, Budget, Capabilities, Region, Span};
use crate::ids::{EventId, RegionId, StreamId};
use crate::units::TIB;

/// The alignment of segments, and of their sizes: a page of the host.
const ALIGN: u64 = 4096;
/// The largest segment in bytes.
const SEGMENT_MAX: u64 = 64 * TIB;
const NAME: &str = "cuda-pinned";

/// How page-locked memory is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinnedConfig {
    /// Whether the CPU writes past its caches: a little faster to send to the device, and very slow for the CPU to read.
    pub write_combined: bool,
}

/// Page-locked host memory as a backend of segments.
pub struct PinnedHost {
    device: Arc<Device>,
    order: Order,
    flags: HostFlags,
    segments: Table<Segment>,
}

struct Segment {
    device: Arc<Device>,
    /// `None` once the driver has it back.
    memory: Option<HostMemory>,
    /// Bytes from the memory's start to the segment's.
    skip: u64,
    size: u64,
}

impl PinnedHost {
    /// Over the user's context, whose streams will copy.
    ///
    /// # Errors
    /// A driver that cannot be used.
    pub fn new(context: &Arc<CudaContext>, config: PinnedConfig) -> Result<PinnedHost, BackendError> {
        let device = open(context)?;
        let flags = if config.write_combined { HostFlags::WriteCombined } else { HostFlags::Portable };
        Ok(PinnedHost { order: Order::new(device.clone()), device, flags, segments: Table::new() })
    }
}

impl super::Streams for PinnedHost {
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

impl Backend for PinnedHost {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: NAME,
            page: None,
            remap: false,
            alias: false,
            streams: true,
            captures: true,
            release_waits: true,
            host_ordered: true,
            base_align: ALIGN,
            quantum: 64,
            region_max: SEGMENT_MAX,
        }
    }

    fn grow_segment(&self, size: u64) -> Result<Region, BackendError> {
        let call = "grow_segment";
        let size = segment_size(size, ALIGN, SEGMENT_MAX)?;
        let segment = Segment::new(&self.device, size, self.flags)?;
        let base = segment.base();
        Ok(Region { id: self.segments.add(call, segment)?, base, size })
    }

    fn release(&self, region: RegionId) -> Result<(), BackendError> {
        self.segments.end("release", region, |segment| {
            let current = segment.device.enter()?;
            segment.memory.take().map_or(Ok(()), |memory| {
                current.free_host(memory).map_err(|(memory, error)| {
                    segment.memory = Some(memory);
                    error
                })
            })
        })
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

    /// By the CPU, at once: whoever is given such memory is given it after completion.
    fn zero(&self, _stream: StreamId, span: Span) -> Result<(), BackendError> {
        self.segments.with("zero", span.region, |segment| range_within("zero", span, segment.size).map(drop))?;
        pieces(span).try_for_each(|piece| {
            self.segments.with("zero", span.region, |segment| {
                let bytes = range_within("zero", piece, segment.size)?;
                let memory = segment.memory.as_mut().ok_or_else(|| contract("zero", "the segment was released"))?;
                memory.zero(segment.skip + bytes.start, piece.size);
                Ok(())
            })
        })
    }

    fn budget(&self) -> Result<Option<Budget>, BackendError> {
        Ok(crate::backend::host::limit::budget())
    }

    fn is_capturing(&self, stream: StreamId) -> Result<bool, BackendError> {
        self.order.is_capturing(stream)
    }
}

impl Segment {
    fn new(device: &Arc<Device>, size: u64, flags: HostFlags) -> Result<Segment, BackendError> {
        let current = device.enter()?;
        let mut memory = current.allocate_host(size, flags)?;
        if !memory.address().is_multiple_of(ALIGN) {
            current.free_host(memory).map_err(|(_, error)| error)?;
            memory = current.allocate_host(size + ALIGN, flags)?;
        }
        let skip = memory.address().next_multiple_of(ALIGN) - memory.address();
        memory.zero(skip, size);
        Ok(Segment { device: device.clone(), memory: Some(memory), skip, size })
    }

    fn base(&self) -> u64 {
        self.memory.as_ref().map_or(0, HostMemory::address) + self.skip
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        if let Some(current) = self.device.enter_to_free() {
            // Nobody can be told; the process's end frees it.
            let _ = current.free_host(memory);
        }
    }
}

impl Drop for PinnedHost {
    /// Whoever gave up waiting for work has left memory here that it may still touch: that stays.
    fn drop(&mut self) {
        if !matches!(self.order.is_idle(), Ok(true)) {
            self.device.leave_memory();
        }
    }
}
