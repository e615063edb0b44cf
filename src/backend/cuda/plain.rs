//! Device memory in segments of the driver's own allocator, for devices without virtual memory and for those who want it so.
//!
//! Invariants, per segment: `start <= base`, `base` is a multiple of [`ALIGN`], and `base + size` is within what was allocated.

use std::sync::Arc;

use super::driver::{Current, Device};
use crate::backend::table::{Table, range_within, segment_size};
use crate::backend::{BackendError, Region, Span};
use crate::ids::RegionId;

/// The alignment of segments, and of their sizes. The driver promises less and gives more.
pub(super) const ALIGN: u64 = 512;

pub(super) struct Segments {
    device: Arc<Device>,
    largest: u64,
    table: Table<Segment>,
}

struct Segment {
    device: Arc<Device>,
    /// What the driver gave; 0 once it has it back.
    start: u64,
    base: u64,
    size: u64,
}

impl Segments {
    pub(super) fn new(device: Arc<Device>, largest: u64) -> Segments {
        Segments { device, largest, table: Table::new() }
    }

    pub(super) fn grow(&self, size: u64) -> Result<Region, BackendError> {
        let call = "grow_segment";
        let size = segment_size(size, ALIGN, self.largest)?;
        let (start, base) = allocate_aligned(&self.device.enter()?, size)?;
        let id = self.table.add(call, Segment { device: self.device.clone(), start, base, size })?;
        Ok(Region { id, base, size })
    }

    pub(super) fn release(&self, region: RegionId) -> Result<(), BackendError> {
        self.table.end("release", region, |segment| {
            segment.device.enter()?.free(segment.start)?;
            segment.start = 0;
            Ok(())
        })
    }

    /// The address of a span.
    pub(super) fn address(&self, call: &'static str, span: Span) -> Result<u64, BackendError> {
        self.table.with(call, span.region, |segment| {
            range_within(call, span, segment.size).map(|bytes| segment.base + bytes.start)
        })
    }
}

/// So many bytes from a multiple of [`ALIGN`] on, and where they begin for the driver.
fn allocate_aligned(current: &Current<'_>, size: u64) -> Result<(u64, u64), BackendError> {
    let start = current.allocate(size)?;
    if start.is_multiple_of(ALIGN) {
        return Ok((start, start));
    }
    current.free(start)?;
    let start = current.allocate(size + ALIGN)?;
    Ok((start, start.next_multiple_of(ALIGN)))
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.start == 0 {
            return;
        }
        if let Some(current) = self.device.enter_to_free() {
            // Nobody can be told; the context's end frees it.
            let _ = current.free(self.start);
        }
    }
}
