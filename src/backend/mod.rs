//! Where memory comes from: the trait that every kind of memory implements, and its contract.
//!
//! A backend hands out *regions* of addresses and puts physical memory behind them. It knows nothing of blocks, bins,
//! limits or statistics. There are two kinds:
//!
//! * **paged**: [`Backend::reserve`] gives a region with nothing behind it; [`Backend::back`] and [`Backend::unback`]
//!   put memory behind whole pages of it and take it away; [`Backend::remap`] moves pages.
//! * **segments**: [`Backend::grow_segment`] gives a region that is backed as a whole until [`Backend::release`].
//!
//! # Contract
//!
//! What the caller promises (the simulated device checks every word of it):
//! 1. Spans lie in their region and are not empty; except for `zero` and `bytes`, their offsets and sizes are multiples of the page. So is the size
//!    of a reservation, which is not 0.
//! 2. `back` is called only on pages with nothing behind them, `unback` and the source of `remap` only on pages with
//!    something behind them, the target of `remap` only on pages with nothing behind them.
//! 3. No page is unbacked, no region released, and without [`Capabilities::alias`] no page remapped, while device work
//!    that may touch it *through that address* is unfinished.
//! 4. Bytes are used again only in the order of streams and events: by the same stream, behind a `stream_wait`, or after
//!    completion. Memory that the CPU touches ([`Capabilities::host_ordered`]) only after completion.
//! 5. Calls of `back`, `unback`, `remap` and `release` for one region come from one thread at a time; everything else may come at once.
//! 6. A reservation is released with nothing behind it; a stream is closed when its work is complete, the default stream never.
//!
//! What the backend promises:
//! 1. A call that fails changes nothing: `back` of many pages is all or nothing.
//! 2. Physical memory lives as long as some address maps it. With `alias`, `remap` leaves the pages mapped at the old address
//!    too, until `unback` there; without, the old address is unbacked by the call, and what the bytes at the new one hold is
//!    unspecified (on hosts: initialised).
//! 3. Contents of fresh memory are unspecified on devices and initialised (any value) on hosts.
//! 4. A [`RegionId`] is never given twice, an [`EventId`] and a [`StreamId`] not while they live. No call panics, whatever the driver
//!    answers. Without [`Capabilities::streams`], `open_stream` is unsupported and every event is done at once; a device with a single queue has
//!    events, and answers `open_stream` with `Unsupported`.
//! 5. Events of one stream complete in the order of their records.

use std::any::Any;
use std::time::Duration;

use crate::ids::{EventId, RegionId, StreamId};
use crate::units::Bytes;

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod host;
pub mod sim;
mod table;
#[cfg(feature = "wgpu")]
pub mod wgpu;

/// A region of addresses, as its backend describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its name.
    pub id: RegionId,
    /// The address of offset 0: a pointer on hosts and CUDA, 0 where there are no addresses.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}

/// A stretch of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The region.
    pub region: RegionId,
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// What a backend can do; constant over its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Short name for people: `sim`, `host-mmap`, ...
    pub name: &'static str,
    /// Bytes of a page where regions are paged; `None` where memory comes in segments. A power of two.
    pub page: Option<u64>,
    /// Whether the bytes behind a page can be had at another address without new memory (`remap`).
    pub remap: bool,
    /// Whether `remap` leaves the old address mapped, so that it needs no completed work.
    pub alias: bool,
    /// Whether work runs on streams. Without, every use is complete when the block is dropped.
    pub streams: bool,
    /// Whether work given to a stream may be captured instead of run ([`Backend::is_capturing`]).
    pub captures: bool,
    /// Whether giving a segment back waits for the device anyway, so that to wait for its work first costs nothing more.
    pub release_waits: bool,
    /// Whether the CPU touches the memory directly, so that only completion orders its reuse.
    pub host_ordered: bool,
    /// The alignment of `Region::base`, and so the largest that a request may ask for. A power of two.
    pub base_align: u64,
    /// The quantum that suits this memory (sizes and offsets of blocks are multiples of it). A power of two.
    pub quantum: u64,
    /// Bytes of addresses to reserve for a pool (paged), or the largest segment.
    pub region_max: u64,
}

/// What a device says about its memory now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Budget {
    /// Bytes in all.
    pub total: u64,
    /// Bytes not in use by anybody.
    pub free: u64,
}

/// Why a backend did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The device or the system has no memory left for this.
    #[error("{call} of {}: out of memory", Bytes(*.requested))]
    OutOfMemory {
        /// The call that was refused.
        call: &'static str,
        /// Bytes asked for.
        requested: u64,
    },
    /// More than this backend can ever give in one piece.
    #[error("{call} of {}: the most is {}", Bytes(*.requested), Bytes(*.max))]
    TooLarge {
        /// The call that was refused.
        call: &'static str,
        /// Bytes asked for.
        requested: u64,
        /// The most in one piece.
        max: u64,
    },
    /// This backend has no such operation.
    #[error("{call} is not supported by {backend}")]
    Unsupported {
        /// The call.
        call: &'static str,
        /// The backend's name.
        backend: &'static str,
    },
    /// The driver or the system failed in another way.
    #[error("{call} failed: {reason} (code {code})")]
    Driver {
        /// The call that failed.
        call: &'static str,
        /// What the driver or system said.
        reason: String,
        /// Its number for it.
        code: i64,
    },
    /// Work on the stream is being written down instead of run (a capture, an open recording): nothing can be ordered behind it now.
    #[error("work on {stream} is being recorded: nothing can be ordered behind it before it is submitted")]
    Recording {
        /// The stream.
        stream: StreamId,
    },
    /// The device is gone; every later call fails in this way too.
    #[error("the device is lost: {reason}")]
    Lost {
        /// What is known about it.
        reason: String,
    },
    /// The caller broke the contract of this trait: a defect of this crate.
    #[error("{call} breaks the backend contract: {rule}")]
    Contract {
        /// The call.
        call: &'static str,
        /// What was broken.
        rule: String,
    },
}

impl BackendError {
    /// Whether the same call may succeed once memory has been given back.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, BackendError::OutOfMemory { .. })
    }

    /// Whether another remedy may do what this call would not: memory is short, or work cannot be ordered just now.
    pub fn is_refusal(&self) -> bool {
        matches!(self, BackendError::OutOfMemory { .. } | BackendError::Recording { .. })
    }
}

/// A source of memory. The module's documentation states the contract.
pub trait Backend: Any + Send + Sync {
    /// What this backend can do. The calls that it has not are answered by [`Backend::unsupported`], unless it says otherwise.
    fn capabilities(&self) -> Capabilities;
    /// The answer to a call that this backend has not.
    fn unsupported(&self, call: &'static str) -> BackendError {
        BackendError::Unsupported { call, backend: self.capabilities().name }
    }

    /// Reserves `size` bytes of addresses with nothing behind them. Paged backends only.
    fn reserve(&self, size: u64) -> Result<Region, BackendError> {
        let _ = size;
        Err(self.unsupported("reserve"))
    }
    /// Puts memory behind a span.
    fn back(&self, span: Span) -> Result<(), BackendError> {
        let _ = span;
        Err(self.unsupported("back"))
    }
    /// Unmaps a span; its memory goes back to the system unless another address still maps it.
    fn unback(&self, span: Span) -> Result<(), BackendError> {
        let _ = span;
        Err(self.unsupported("unback"))
    }
    /// Maps the memory behind `from` at `to` (same size), at once and without copying.
    fn remap(&self, from: Span, to: Span) -> Result<(), BackendError> {
        let _ = (from, to);
        Err(self.unsupported("remap"))
    }
    /// A new segment of at least `size` bytes, backed as a whole. Segment backends only.
    fn grow_segment(&self, size: u64) -> Result<Region, BackendError> {
        let _ = size;
        Err(self.unsupported("grow_segment"))
    }
    /// Ends a region: a segment with its memory, a reservation with nothing left behind it.
    fn release(&self, region: RegionId) -> Result<(), BackendError>;

    /// A new stream of the backend's own making.
    fn open_stream(&self) -> Result<StreamId, BackendError> {
        Err(self.unsupported("open_stream"))
    }
    /// Forgets a stream whose work is complete; its number may be given again.
    fn close_stream(&self, stream: StreamId) {
        let _ = stream;
    }
    /// An event that is done when all work now on `stream` is.
    fn record(&self, stream: StreamId) -> Result<EventId, BackendError>;
    /// Whether an event is done; does not wait.
    fn done(&self, event: EventId) -> Result<bool, BackendError>;
    /// Makes later work on `stream` wait for an event; does not wait itself.
    fn stream_wait(&self, stream: StreamId, event: EventId) -> Result<(), BackendError>;
    /// Waits until an event is done (`true`) or the time is over (`false`).
    fn host_wait(&self, event: EventId, timeout: Option<Duration>) -> Result<bool, BackendError>;
    /// Gives an event back to be used again.
    fn forget(&self, event: EventId);

    /// Fills a span with zeros, in the order of `stream`. The span need not be a multiple of the page.
    fn zero(&self, stream: StreamId, span: Span) -> Result<(), BackendError>;
    /// Whether [`Backend::bytes`] shows bytes: of memory that the CPU alone reads and writes.
    fn shows_bytes(&self) -> bool {
        false
    }
    /// Shows the bytes of a span to `look`, in parts, in order, to read and to change. The span need not be a multiple of the page; nobody else uses
    /// these bytes meanwhile (promise 4).
    fn bytes(&self, span: Span, look: &mut dyn FnMut(&mut [u8])) -> Result<(), BackendError> {
        let _ = (span, look);
        Err(self.unsupported("bytes"))
    }
    /// What the device says about its memory; `None` where nobody knows.
    fn budget(&self) -> Result<Option<Budget>, BackendError>;

    /// Whether what is given to `stream` now is captured instead of run. `record` and `stream_wait` then answer
    /// [`BackendError::Recording`]; growth stays possible.
    fn is_capturing(&self, stream: StreamId) -> Result<bool, BackendError> {
        let _ = stream;
        Ok(false)
    }
    /// Bytes that this backend, or an allocator below it, holds from the device besides what its regions hold.
    fn beneath(&self) -> u64 {
        0
    }
    /// Gives back what can be given back of [`Backend::beneath`].
    fn tidy(&self) {}
}
