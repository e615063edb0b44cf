//! What backends in this process's own hands keep: their regions by id, each behind its own lock, and events that are done at once.
//! Knows nothing of memory.
//!
//! Invariants: an id is given once; a region that has ended is `None` in its cell, so that a call that found it before
//! it ended and locked it after finds nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::backend::{BackendError, Span};
use crate::ids::{EventId, RegionId};
use crate::units::align_up;

/// The error for a caller's mistake.
pub(super) fn contract(call: &'static str, rule: impl Into<String>) -> BackendError {
    BackendError::Contract { call, rule: rule.into() }
}

/// The size of a segment for `size` bytes, a multiple of `align` of at most `max`.
pub(super) fn segment_size(size: u64, align: u64, max: u64) -> Result<u64, BackendError> {
    let call = "grow_segment";
    match align_up(size, align) {
        _ if size == 0 => Err(contract(call, "a segment of 0 bytes")),
        Some(rounded) if rounded <= max => Ok(rounded),
        _ => Err(BackendError::TooLarge { call, requested: size, max }),
    }
}

/// Refuses a span that is empty or leaves its region of `size` bytes; gives its range of offsets otherwise.
pub(super) fn range_within(call: &'static str, span: Span, size: u64) -> Result<std::ops::Range<u64>, BackendError> {
    if span.size == 0 {
        return Err(contract(call, format!("the span at {} of {} is empty", span.offset, span.region)));
    }
    match span.offset.checked_add(span.size) {
        Some(end) if end <= size => Ok(span.offset..end),
        _ => Err(contract(
            call,
            format!("{} bytes at {} leave {}, which has {size} bytes", span.size, span.offset, span.region),
        )),
    }
}

/// A span cut into parts short enough that nobody waits long for the lock of its region while one is written.
pub(super) fn pieces(span: Span) -> impl Iterator<Item = Span> {
    const PIECE: u64 = 4 << 20;
    (0..span.size.div_ceil(PIECE)).map(move |at| {
        let skip = at * PIECE;
        Span { offset: span.offset + skip, size: PIECE.min(span.size - skip), ..span }
    })
}

type Cell<T> = Arc<Mutex<Option<T>>>;

/// Regions by id.
#[derive(Debug)]
pub(super) struct Table<T> {
    next: AtomicU32,
    cells: RwLock<BTreeMap<RegionId, Cell<T>>>,
}

impl<T> Table<T> {
    pub(super) fn new() -> Self {
        Table { next: AtomicU32::new(0), cells: RwLock::new(BTreeMap::new()) }
    }

    /// Keeps a region and names it. Drops it when the names are used up.
    pub(super) fn add(&self, call: &'static str, region: T) -> Result<RegionId, BackendError> {
        let id = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| next.checked_add(1)).map_err(
            |given| BackendError::Driver { call, reason: "every region id has been given".into(), code: given.into() },
        )?;
        self.cells.write().insert(RegionId(id), Arc::new(Mutex::new(Some(region))));
        Ok(RegionId(id))
    }

    /// Does `work` on a region under its lock.
    pub(super) fn with<R>(
        &self,
        call: &'static str,
        id: RegionId,
        work: impl FnOnce(&mut T) -> Result<R, BackendError>,
    ) -> Result<R, BackendError> {
        let cell = self.cell(call, id)?;
        let mut guard = cell.lock();
        work(guard.as_mut().ok_or_else(|| unknown(call, id))?)
    }

    /// Does `work` on the one or two regions under their locks, taken in the order of their ids.
    #[cfg(any(unix, feature = "cuda"))]
    pub(super) fn with_pair<R>(
        &self,
        call: &'static str,
        from: RegionId,
        to: RegionId,
        work: impl FnOnce(Pair<'_, T>) -> Result<R, BackendError>,
    ) -> Result<R, BackendError> {
        if from == to {
            return self.with(call, from, |region| work(Pair::One(region)));
        }
        let (from_cell, to_cell) = (self.cell(call, from)?, self.cell(call, to)?);
        let (mut from_guard, mut to_guard);
        if from < to {
            from_guard = from_cell.lock();
            to_guard = to_cell.lock();
        } else {
            to_guard = to_cell.lock();
            from_guard = from_cell.lock();
        }
        let source = from_guard.as_mut().ok_or_else(|| unknown(call, from))?;
        let target = to_guard.as_mut().ok_or_else(|| unknown(call, to))?;
        work(Pair::Two(source, target))
    }

    /// Ends a region unless `work` refuses.
    pub(super) fn end(
        &self,
        call: &'static str,
        id: RegionId,
        work: impl FnOnce(&mut T) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let cell = self.cell(call, id)?;
        let mut guard = cell.lock();
        work(guard.as_mut().ok_or_else(|| unknown(call, id))?)?;
        *guard = None;
        drop(guard);
        self.cells.write().remove(&id);
        Ok(())
    }

    fn cell(&self, call: &'static str, id: RegionId) -> Result<Cell<T>, BackendError> {
        self.cells.read().get(&id).cloned().ok_or_else(|| unknown(call, id))
    }
}

fn unknown(call: &'static str, id: RegionId) -> BackendError {
    contract(call, format!("{id} is not a live region"))
}

/// The source and the target of a move, which may be one region.
#[cfg(any(unix, feature = "cuda"))]
pub(super) enum Pair<'a, T> {
    One(&'a mut T),
    Two(&'a mut T, &'a mut T),
}

#[cfg(any(unix, feature = "cuda"))]
impl<T> Pair<'_, T> {
    pub(super) fn from(&mut self) -> &mut T {
        match self {
            Pair::One(region) | Pair::Two(region, _) => region,
        }
    }

    pub(super) fn to(&mut self) -> &mut T {
        match self {
            Pair::One(region) | Pair::Two(_, region) => region,
        }
    }
}

/// Events of a backend whose work is done when the call returns: numbers that were given are done.
#[derive(Debug)]
pub(super) struct Events(AtomicU64);

impl Events {
    pub(super) fn new() -> Self {
        Events(AtomicU64::new(0))
    }

    pub(super) fn record(&self) -> EventId {
        EventId(self.0.fetch_add(1, Ordering::Relaxed))
    }

    /// `true`, or an error for an event that was never recorded.
    pub(super) fn done(&self, call: &'static str, event: EventId) -> Result<bool, BackendError> {
        if event.0 < self.0.load(Ordering::Relaxed) {
            Ok(true)
        } else {
            Err(contract(call, format!("{event} was never recorded")))
        }
    }
}
