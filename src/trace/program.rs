//! A trace as a dense program: what a replay runs, and what it must hold to run it.
//!
//! Does not know text; names and labels are carried, not read. Invariants, for the operations in order: a slot that is
//! allocated is empty, one that is freed or used is not; `slots` = greatest number of slots full at once;
//! `peak_requested` = greatest sum of the bytes of full slots; every number of a name or label has its text.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::error::{TraceError, TraceErrorKind as Kind};
use super::read::{Names, Record, Slots};
use super::{Headers, LABEL_BYTES_LIMIT, Limits, Reader, Version};

/// One operation of a program. A slot is the handle of a live block; it is used again after the block's free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Allocate into an empty slot.
    Alloc {
        /// Where the handle is kept.
        slot: u32,
        /// Bytes as requested; may be 0.
        bytes: u64,
        /// Stream it is allocated on.
        stream: u16,
        /// Logarithm of the alignment asked for; 0 when none was.
        align_log2: u8,
        /// Label for accounting, see [`Trace::name`]; 0 is none.
        tag: u16,
        /// Pool, see [`Trace::name`]; 0 is the default one.
        pool: u16,
    },
    /// Free what the slot holds.
    Free {
        /// Where the handle is kept.
        slot: u32,
    },
    /// What the slot holds is used on a further stream from here on.
    Use {
        /// Where the handle is kept.
        slot: u32,
        /// The stream.
        stream: u16,
    },
    /// Marker.
    Mark {
        /// See [`Trace::label`]; 0 is empty or not kept.
        label: u32,
    },
}

const _: () = assert!(std::mem::size_of::<Op>() <= 24);

/// A whole trace in memory, 24 bytes an operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    ops: Vec<Op>,
    slots: u32,
    version: Version,
    headers: Headers,
    names: Names,
    labels: Vec<Box<str>>,
    labels_dropped: u64,
    events: u64,
    marks: u64,
    peak_requested: u64,
    total_allocated: u64,
    live_at_end: u64,
    streams: BTreeSet<u16>,
    pools: BTreeSet<u16>,
}

impl Trace {
    /// Reads a file, plain or gzip, with the default [`Limits`].
    ///
    /// # Errors
    /// [`TraceError`] with the name of the file, when it cannot be read or is not a trace.
    pub fn load(path: impl AsRef<Path>) -> Result<Trace, TraceError> {
        Trace::load_within(path, Limits::default())
    }

    /// Reads a file within limits.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_within(path: impl AsRef<Path>, limits: Limits) -> Result<Trace, TraceError> {
        let path = path.as_ref();
        File::open(path)
            .map_err(|error| TraceError::new(0, Kind::Io(error)))
            .and_then(|file| Trace::from_reader(Reader::with_limits(file, limits)))
            .map_err(|error| error.in_file(path))
    }

    /// Reads all that a reader has. The reader must be fresh: an event taken from it before is missing here.
    ///
    /// # Errors
    /// [`TraceError`] of the reader, or one of the whole program: [`Kind::TotalOverflow`].
    pub fn from_reader<R: Read>(mut reader: Reader<R>) -> Result<Trace, TraceError> {
        let mut builder = Builder::default();
        while let Some(record) = reader.next_record()? {
            let op = match record {
                Record::Alloc { slot, bytes, stream, align_log2, tag, pool, .. } => {
                    Op::Alloc { slot, bytes, stream, align_log2, tag, pool }
                }
                Record::Free { slot, .. } => Op::Free { slot },
                Record::Use { slot, stream, .. } => Op::Use { slot, stream },
                Record::Mark => Op::Mark { label: builder.label(reader.label()) },
            };
            builder.push(op).map_err(|kind| TraceError::new(reader.line(), kind))?;
        }
        let mut trace = builder.finish();
        (trace.version, trace.headers, trace.names) = reader.into_parts();
        Ok(trace)
    }

    /// The operations in program order.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// How many slots the operations name: the greatest number of blocks live at once.
    pub fn slots(&self) -> usize {
        self.slots as usize
    }

    /// Greatest number of blocks live at once.
    pub fn max_live(&self) -> u64 {
        u64::from(self.slots)
    }

    /// Blocks live after the last operation.
    pub fn live_at_end(&self) -> u64 {
        self.live_at_end
    }

    /// Allocations, frees and uses. Markers are not counted.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Markers.
    pub fn marks(&self) -> u64 {
        self.marks
    }

    /// Greatest sum of the bytes, as requested, of all blocks live at once.
    pub fn peak_requested(&self) -> u64 {
        self.peak_requested
    }

    /// Sum of the bytes of all allocations as requested.
    pub fn total_allocated(&self) -> u64 {
        self.total_allocated
    }

    /// Streams that blocks are allocated or used on, ascending.
    pub fn streams(&self) -> impl ExactSizeIterator<Item = u16> + '_ {
        self.streams.iter().copied()
    }

    /// Numbers of the pools that blocks come from, ascending; 0 is the default one.
    pub fn pools(&self) -> impl ExactSizeIterator<Item = u16> + '_ {
        self.pools.iter().copied()
    }

    /// Name of a tag or pool; `None` for 0.
    pub fn name(&self, number: u16) -> Option<&str> {
        self.names.get(number).map(|name| &**name)
    }

    /// How many names there are; they are numbered from 1.
    pub fn names(&self) -> usize {
        self.names.len()
    }

    /// Text of a marker; empty for 0.
    pub fn label(&self, number: u32) -> &str {
        let index = (number as usize).wrapping_sub(1);
        self.labels.get(index).map_or("", |label| label)
    }

    /// Markers whose text was not kept, see [`LABEL_BYTES_LIMIT`].
    pub fn labels_dropped(&self) -> u64 {
        self.labels_dropped
    }

    /// The headers.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The version of the file it was read from; of a trace made in memory, the least that can say it.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The same program with every block on stream 0 and without uses on other streams.
    pub fn on_one_stream(&self) -> Trace {
        self.rewritten(|op, _| match op {
            Op::Alloc { slot, bytes, align_log2, tag, pool, .. } => {
                Some(Op::Alloc { slot, bytes, stream: 0, align_log2, tag, pool })
            }
            Op::Use { .. } => None,
            other => Some(other),
        })
    }

    /// The same program dealt to `count` streams by its markers: a block allocated after the k-th marker is on stream
    /// k modulo `count`, one before any marker on stream 0. Uses on other streams are left out. 0 counts as 1.
    pub fn spread(&self, count: u16) -> Trace {
        let count = u64::from(count.max(1));
        self.rewritten(|op, marks| match op {
            Op::Alloc { slot, bytes, align_log2, tag, pool, .. } => {
                let stream = (marks % count) as u16; // below count
                Some(Op::Alloc { slot, bytes, stream, align_log2, tag, pool })
            }
            Op::Use { .. } => None,
            other => Some(other),
        })
    }

    /// Each operation, with the number of markers before it, replaced or left out. Allocations and frees must stay.
    fn rewritten(&self, change: impl Fn(Op, u64) -> Option<Op>) -> Trace {
        let mut marks = 0;
        let mut trace = Trace { ops: Vec::with_capacity(self.ops.len()), events: 0, ..self.without_ops() };
        for &op in &self.ops {
            let Some(op) = change(op, marks) else { continue };
            marks += u64::from(matches!(op, Op::Mark { .. }));
            trace.count(op);
            trace.ops.push(op);
        }
        trace
    }

    /// All but the operations and what [`count`](Self::count) counts.
    fn without_ops(&self) -> Trace {
        Trace {
            ops: Vec::new(),
            slots: self.slots,
            version: self.version,
            headers: self.headers.clone(),
            names: self.names.clone(),
            labels: self.labels.clone(),
            labels_dropped: self.labels_dropped,
            events: 0,
            marks: 0,
            peak_requested: self.peak_requested,
            total_allocated: self.total_allocated,
            live_at_end: self.live_at_end,
            streams: BTreeSet::new(),
            pools: BTreeSet::new(),
        }
    }

    /// Counts what does not depend on the operations before.
    fn count(&mut self, op: Op) {
        match op {
            Op::Alloc { stream, pool, .. } => {
                self.streams.insert(stream);
                self.pools.insert(pool);
            }
            Op::Use { stream, .. } => {
                self.streams.insert(stream);
            }
            Op::Free { .. } => {}
            Op::Mark { .. } => {
                self.marks += 1;
                return;
            }
        }
        self.events += 1;
    }

    pub(super) fn needs_version_2(&self) -> bool {
        self.ops.iter().any(|op| match *op {
            Op::Alloc { align_log2, tag, pool, .. } => align_log2 != 0 || tag != 0 || pool != 0,
            _ => false,
        })
    }
}

/// An allocation to put into a program: bytes and stream, the rest as seldom needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alloc<'a> {
    /// Bytes as requested.
    pub bytes: u64,
    /// Stream it is allocated on.
    pub stream: u16,
    /// Logarithm of the alignment, below 64; 0 for none.
    pub align_log2: u8,
    /// Label for accounting; empty for none.
    pub tag: &'a str,
    /// Pool it comes from; empty for the default one.
    pub pool: &'a str,
}

/// Makes a [`Trace`] operation by operation.
#[derive(Debug, Default)]
pub struct Builder {
    trace: Trace,
    /// Bytes of what each slot holds.
    held: Vec<Option<u64>>,
    empty: Slots,
    live_bytes: u64,
    label_bytes: usize,
}

impl Builder {
    /// An empty program.
    pub fn new() -> Self {
        Builder::default()
    }

    /// Adds a header; it is only counted when a limit of [`Headers`] is passed.
    pub fn header(&mut self, key: &str, value: &str) {
        self.trace.headers.push(key.trim(), value.trim());
    }

    /// Allocates and says the slot.
    ///
    /// # Errors
    /// A name too long or one too many, an alignment of 2^64 or more, sizes that together pass 2^64.
    pub fn alloc(&mut self, alloc: Alloc<'_>) -> Result<u32, Kind> {
        let Alloc { bytes, stream, align_log2, tag, pool } = alloc;
        if align_log2 > 63 {
            return Err(Kind::NumberTooLarge { field: "align_log2", text: align_log2.to_string(), max: 63 });
        }
        let tag = self.trace.names.intern("tag", tag)?;
        let pool = self.trace.names.intern("pool", pool)?;
        let slot = self.empty.take()?;
        self.push(Op::Alloc { slot, bytes, stream, align_log2, tag, pool }).inspect_err(|_| self.empty.put(slot))?;
        Ok(slot)
    }

    /// Frees what the slot holds.
    ///
    /// # Errors
    /// [`Kind::BadSlot`] when it holds nothing.
    pub fn free(&mut self, slot: u32) -> Result<(), Kind> {
        self.push(Op::Free { slot })?;
        self.empty.put(slot);
        Ok(())
    }

    /// What the slot holds is used on a further stream from here on.
    ///
    /// # Errors
    /// [`Kind::BadSlot`] when it holds nothing.
    pub fn use_on(&mut self, slot: u32, stream: u16) -> Result<(), Kind> {
        self.push(Op::Use { slot, stream })
    }

    /// Adds a marker; its text is kept while all texts are within [`LABEL_BYTES_LIMIT`].
    pub fn mark(&mut self, label: &str) {
        let label = self.label(label);
        self.trace.count(Op::Mark { label });
        self.trace.ops.push(Op::Mark { label });
    }

    /// The program so far.
    pub fn finish(self) -> Trace {
        let mut trace = self.trace;
        trace.live_at_end = self.held.iter().flatten().count() as u64;
        if trace.needs_version_2() {
            trace.version = Version::Two;
        }
        trace
    }

    /// Number of a label's text.
    fn label(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        if text.len() > LABEL_BYTES_LIMIT - self.label_bytes {
            self.trace.labels_dropped += 1;
            return 0;
        }
        self.label_bytes += text.len();
        self.trace.labels.push(text.into());
        self.trace.labels.len() as u32 // at most LABEL_BYTES_LIMIT
    }

    fn push(&mut self, op: Op) -> Result<(), Kind> {
        match op {
            Op::Alloc { slot, bytes, .. } => self.fill(slot, bytes)?,
            Op::Free { slot } => match self.held.get_mut(slot as usize).and_then(Option::take) {
                Some(bytes) => self.live_bytes -= bytes,
                None => return Err(Kind::BadSlot { slot }),
            },
            Op::Use { slot, .. } if self.held.get(slot as usize).is_none_or(Option::is_none) => {
                return Err(Kind::BadSlot { slot });
            }
            Op::Use { .. } | Op::Mark { .. } => {}
        }
        self.trace.count(op);
        self.trace.ops.push(op);
        Ok(())
    }

    fn fill(&mut self, slot: u32, bytes: u64) -> Result<(), Kind> {
        let index = slot as usize;
        let total = self.trace.total_allocated.checked_add(bytes).ok_or(Kind::TotalOverflow)?;
        let next = self.held.len();
        match self.held.get_mut(index) {
            Some(held @ None) => *held = Some(bytes),
            None if index == next => self.held.push(Some(bytes)),
            _ => return Err(Kind::BadSlot { slot }),
        }
        self.trace.slots = self.held.len() as u32; // a slot is a u32
        self.trace.total_allocated = total;
        self.live_bytes += bytes; // at most the total
        self.trace.peak_requested = self.trace.peak_requested.max(self.live_bytes);
        Ok(())
    }
}
