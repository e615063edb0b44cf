//! What happened to an allocator, event by event, while somebody records.

use std::collections::BTreeMap;

use super::tags::TagId;
use crate::ids::{BlockId, StreamId};

/// One event of a live allocator. `id` numbers allocations from 0 and is never used twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A block was given out.
    Alloc {
        /// Number of the allocation.
        id: u64,
        /// Bytes asked for.
        bytes: u64,
        /// Alignment asked for, in bytes.
        align: u64,
        /// The stream that wanted it.
        stream: StreamId,
        /// Its label; empty when it has none.
        tag: String,
    },
    /// A block came back.
    Free {
        /// Number of its allocation.
        id: u64,
    },
    /// A block is used on another stream from here on.
    Use {
        /// Number of its allocation.
        id: u64,
        /// The stream.
        stream: StreamId,
    },
}

/// Events since recording began, up to a bound.
pub(crate) struct History {
    events: Vec<Event>,
    numbers: BTreeMap<BlockId, u64>,
    next: u64,
    max: usize,
    lost: u64,
}

/// What was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// The events in order.
    pub events: Vec<Event>,
    /// Events that came after the bound was reached and were not kept. Not 0 means: the end is missing.
    pub lost: u64,
}

impl History {
    pub(crate) fn new(max: usize) -> Self {
        History { events: Vec::new(), numbers: BTreeMap::new(), next: 0, max, lost: 0 }
    }

    pub(crate) fn finish(self) -> Recording {
        Recording { events: self.events, lost: self.lost }
    }

    fn push(&mut self, event: Event) {
        if self.events.len() < self.max { self.events.push(event) } else { self.lost += 1 }
    }

    #[cold]
    pub(crate) fn gave(&mut self, block: BlockId, bytes: u64, align: u64, stream: StreamId, tag: TagId) {
        let id = self.next;
        self.next += 1;
        self.numbers.insert(block, id);
        self.push(Event::Alloc { id, bytes, align, stream, tag: tag.name() });
    }

    /// Blocks from before the recording have no number and leave no event.
    pub(crate) fn took_back(&mut self, block: BlockId) {
        if let Some(id) = self.numbers.remove(&block) {
            self.push(Event::Free { id });
        }
    }

    pub(crate) fn used(&mut self, block: BlockId, stream: StreamId) {
        if let Some(id) = self.numbers.get(&block) {
            let id = *id;
            self.push(Event::Use { id, stream });
        }
    }
}
