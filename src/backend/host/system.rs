//! Segments from the allocator of the program (`std::alloc`). Runs wherever Rust does.
//!
//! Knows no pages: a segment is backed as a whole until it is released. Its memory is zero when it is granted; where the
//! system hands out zero pages, nothing is touched for that.
//!
//! Invariants, per segment: `start <= base`, `base + size <= start + layout.size()`, `base` is a multiple of
//! [`BASE_ALIGN`], and of [`HUGE_ALIGN`] from that size on.
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::ptr;
use std::time::Duration;

use super::limit;
use crate::backend::table::{Events, Table, pieces, range_within, segment_size};
use crate::backend::{Backend, BackendError, Budget, Capabilities, Region, Span};
use crate::ids::{EventId, RegionId, StreamId};
use crate::units::{MIB, TIB};

/// The alignment of every segment, and the unit of their sizes, in bytes.
const BASE_ALIGN: u64 = 4096;
/// The alignment of segments of at least this size, so that the system can put huge pages behind them. Not for smaller
/// ones: the padding would be larger than the segment, and memory that the allocator recycles is zeroed with its padding.
const HUGE_ALIGN: u64 = 2 * MIB;
/// What the allocator is asked for. Larger alignments are made here by padding, because `alloc_zeroed` touches every byte
/// when it is asked for more than the system's `calloc` gives.
const ASKED_ALIGN: usize = 8;
/// The largest segment in bytes: what a process can address at most (48 bits, half of it its own).
const SEGMENT_MAX: u64 = if usize::BITS >= 64 { 128 * TIB } else { 1 << 30 };
const NAME: &str = "host-system";

/// The system's allocator as a backend of segments.
#[derive(Debug)]
pub struct System {
    segments: Table<Segment>,
    events: Events,
}

impl System {
    /// A backend with no segments.
    pub fn new() -> System {
        System { segments: Table::new(), events: Events::new() }
    }
}

impl Default for System {
    fn default() -> Self {
        System::new()
    }
}

/// One allocation of the system, freed when this is dropped.
#[derive(Debug)]
struct Segment {
    start: usize,
    layout: Layout,
    base: u64,
    size: u64,
}

impl Segment {
    /// `size` is a multiple of `BASE_ALIGN`, not 0 and at most `SEGMENT_MAX`. `None` when the system has no memory.
    fn new(size: u64) -> Option<Segment> {
        let align = if size >= HUGE_ALIGN { HUGE_ALIGN } else { BASE_ALIGN };
        let padded = usize::try_from(size.checked_add(align)?).ok()?;
        let layout = Layout::from_size_align(padded, ASKED_ALIGN).ok()?;
        // SAFETY: the layout's size is not 0, because the padding is not.
        let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
        if pointer.is_null() {
            return None;
        }
        let start = pointer.expose_provenance();
        let base = (start as u64).next_multiple_of(align);
        Some(Segment { start, layout, base, size })
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this very layout, and this is the only place that frees it.
        unsafe { std::alloc::dealloc(ptr::with_exposed_provenance_mut(self.start), self.layout) }
    }
}

impl Backend for System {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: NAME,
            page: None,
            remap: false,
            alias: false,
            streams: false,
            captures: false,
            release_waits: false,
            host_ordered: true,
            base_align: BASE_ALIGN,
            quantum: 64,
            region_max: SEGMENT_MAX,
        }
    }

    fn grow_segment(&self, size: u64) -> Result<Region, BackendError> {
        let call = "grow_segment";
        let rounded = segment_size(size, BASE_ALIGN, SEGMENT_MAX)?;
        let segment = Segment::new(rounded).ok_or(BackendError::OutOfMemory { call, requested: size })?;
        let base = segment.base;
        Ok(Region { id: self.segments.add(call, segment)?, base, size: rounded })
    }

    fn release(&self, region: RegionId) -> Result<(), BackendError> {
        self.segments.end("release", region, |_| Ok(()))
    }

    fn record(&self, _stream: StreamId) -> Result<EventId, BackendError> {
        Ok(self.events.record())
    }

    fn done(&self, event: EventId) -> Result<bool, BackendError> {
        self.events.done("done", event)
    }

    fn stream_wait(&self, _stream: StreamId, event: EventId) -> Result<(), BackendError> {
        self.events.done("stream_wait", event).map(drop)
    }

    fn host_wait(&self, event: EventId, _timeout: Option<Duration>) -> Result<bool, BackendError> {
        self.events.done("host_wait", event)
    }

    fn forget(&self, _event: EventId) {}

    fn zero(&self, _stream: StreamId, span: Span) -> Result<(), BackendError> {
        self.segments.with("zero", span.region, |segment| range_within("zero", span, segment.size).map(|_| ()))?;
        pieces(span).try_for_each(|piece| {
            self.segments.with("zero", span.region, |segment| {
                let range = range_within("zero", piece, segment.size)?;
                let address = ptr::with_exposed_provenance_mut::<u8>((segment.base + range.start) as usize);
                // SAFETY: the range lies in the segment, which is allocated as long as its lock is held with it inside; its
                // addresses fit in a `usize`; any byte may be zero. That nobody uses these bytes now is the caller's promise 4.
                unsafe { ptr::write_bytes(address, 0, piece.size as usize) }
                Ok(())
            })
        })
    }

    fn shows_bytes(&self) -> bool {
        true
    }

    fn bytes(&self, span: Span, look: &mut dyn FnMut(&mut [u8])) -> Result<(), BackendError> {
        self.segments.with("bytes", span.region, |segment| {
            let range = range_within("bytes", span, segment.size)?;
            let address = ptr::with_exposed_provenance_mut::<u8>((segment.base + range.start) as usize);
            // SAFETY: the range lies in the segment, which is allocated and initialised, and stays so while its lock is held; its
            // addresses fit in a `usize`. That nobody else uses these bytes meanwhile is the caller's promise 4.
            look(unsafe { std::slice::from_raw_parts_mut(address, span.size as usize) });
            Ok(())
        })
    }

    fn budget(&self) -> Result<Option<Budget>, BackendError> {
        Ok(limit::budget())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_segments_are_aligned_for_huge_pages() {
        let system = System::new();
        for size in [1, 4096, 4097, HUGE_ALIGN - 1, HUGE_ALIGN, 3 * HUGE_ALIGN + 1] {
            let region = system.grow_segment(size).unwrap();
            let align = if region.size >= HUGE_ALIGN { HUGE_ALIGN } else { BASE_ALIGN };
            assert_eq!((region.base % align, region.size), (0, size.next_multiple_of(BASE_ALIGN)));
        }
    }

    #[test]
    fn a_segment_that_nobody_can_give_is_a_typed_error() {
        let system = System::new();
        for size in [u64::MAX, u64::MAX - 4096, SEGMENT_MAX + 1] {
            let error = BackendError::TooLarge { call: "grow_segment", requested: size, max: SEGMENT_MAX };
            assert_eq!(system.grow_segment(size), Err(error));
        }
        assert!(system.grow_segment(SEGMENT_MAX).unwrap_err().is_out_of_memory());
        assert!(system.grow_segment(1).is_ok());
    }
}
