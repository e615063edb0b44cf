//! The last events of a pool, in a ring under the pool's lock.
//!
//! The ring is made when the history is switched on; an event writes one slot of it, and allocates nothing. Site and
//! label are kept as they are; texts are made outside the lock.
//!
//! Invariants: slots before `at` are of this lap, the others of the lap before, or blank in the first; `at <= due <= slots.len()`; no event
//! has a larger stamp than `stamp`, and stamps rise with every event. [`crate::snapshot::Event::stamp`] says what the order between pools is worth.

use std::panic::Location;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::core::Core;
use super::pool::{Need, Note, State};
use super::tags::TagId;
use crate::heap::Owned;
use crate::ids::{BlockId, PoolId, StreamId};
use crate::snapshot::{Action, Event, History, Window};
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The clock is read at every so many events of a pool.
const CLOCK_EVERY: usize = 128;

/// What stamps are made of, shared by the pools of an allocator.
pub(crate) struct Clock {
    /// About the largest stamp so far: written without a locked instruction, so that pools which race may set it back a little.
    last: AtomicU64,
    began: Instant,
    epoch: u64,
}

impl Default for Clock {
    fn default() -> Self {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        Clock { last: AtomicU64::new(0), began: Instant::now(), epoch }
    }
}

impl Clock {
    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }
}

/// An event as it is kept.
#[derive(Clone, Copy)]
struct Slot {
    stamp: u64,
    site: Option<&'static Location<'static>>,
    address: u64,
    /// Bytes asked for, where a block or a request is meant; of memory otherwise.
    bytes: u64,
    /// For waits, the number of the stream that is waited for is the index.
    block: BlockId,
    stream: StreamId,
    tag: TagId,
    action: Action,
    align_log2: u8,
}

const BLANK: Slot = Slot {
    stamp: 0,
    site: None,
    address: 0,
    bytes: 0,
    block: BlockId { index: 0, generation: 0 },
    stream: StreamId(0),
    tag: TagId::NONE,
    action: Action::Trim,
    align_log2: 0,
};

impl Slot {
    #[inline]
    fn of(block: Owned, address: u64, note: &Note) -> Slot {
        let bytes = block.size - u64::from(note.padding);
        Slot { site: note.site, address, bytes, block: block.id, stream: note.stream(), tag: note.tag, ..BLANK }
    }
}

/// What slow events are put down to: the request on its way up.
type Cause = (Option<&'static Location<'static>>, TagId);

/// A pool's ring.
pub(crate) struct Ring {
    clock: Arc<Clock>,
    slots: Box<[Slot]>,
    /// Where the next event goes, unless that is the end.
    at: usize,
    /// Where the clock is read, or the lap over.
    due: usize,
    laps: u64,
    stamp: u64,
    /// Where the ring begins when nothing was overwritten.
    from: u64,
    cause: Cause,
}

/// A pool's events as copied under its lock.
pub(super) struct Copied {
    slots: Vec<Slot>,
    window: Window,
}

impl Ring {
    /// A ring of `len` events, the first of which may not lie before `from`; none for no events.
    pub(crate) fn new(len: usize, clock: &Arc<Clock>, from: u64) -> Option<Box<Ring>> {
        let slots = vec![BLANK; len].into_boxed_slice();
        let cause = (None, TagId::NONE);
        (len > 0)
            .then(|| Box::new(Ring { clock: clock.clone(), slots, at: 0, due: 0, laps: 0, stamp: from, from, cause }))
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn memory(&self) -> u64 {
        size_of_val(&*self.slots) as u64
    }

    #[inline]
    fn push(&mut self, slot: Slot) {
        if self.at == self.due {
            self.turn();
        }
        let stamp = self.stamp.max(self.clock.last.load(Relaxed)) + 1;
        self.clock.last.store(stamp, Relaxed);
        self.stamp = stamp;
        self.slots[self.at] = Slot { stamp, ..slot };
        self.at += 1;
    }

    /// Reads the clock, and begins a new lap where one is over.
    #[cold]
    #[inline(never)]
    fn turn(&mut self) {
        if self.at == self.slots.len() {
            self.at = 0;
            self.laps += 1;
        }
        self.due = (self.at + CLOCK_EVERY).min(self.slots.len());
        self.look_at_clock();
    }

    fn look_at_clock(&mut self) {
        self.stamp = self.stamp.max(self.clock.now());
    }

    /// An event with its time.
    fn push_now(&mut self, slot: Slot) {
        self.look_at_clock();
        self.push(slot);
    }

    /// `block` is where the note is, and `address` what its user was told.
    #[inline]
    pub(crate) fn gave(&mut self, block: Owned, address: u64, note: &Note, align: u64) {
        let slot = Slot::of(block, address, note);
        self.push(Slot { action: Action::Alloc, align_log2: align.trailing_zeros() as u8, ..slot });
    }

    /// A free says what its alloc said, so that a block can be told of whose alloc was overwritten.
    #[inline]
    pub(crate) fn took_back(&mut self, block: Owned, address: u64, note: &Note) {
        self.push(Slot { action: Action::Free, ..Slot::of(block, address, note) });
    }

    pub(crate) fn used(&mut self, block: Owned, address: u64, note: &Note, stream: StreamId) {
        self.push(Slot { action: Action::Use, stream, ..Slot::of(block, address, note) });
    }

    /// The events of the lap before, and those of this one.
    fn in_order(&self) -> (&[Slot], &[Slot]) {
        let (newer, older) = self.slots.split_at(self.at);
        (if self.laps == 0 { &[] } else { older }, newer)
    }

    fn window(&self, pool: PoolId) -> Window {
        let written = self.laps * self.slots.len() as u64 + self.at as u64;
        match written.saturating_sub(self.slots.len() as u64) {
            0 => Window { pool, from: self.from, overwritten: 0 },
            overwritten => Window { pool, from: self.slots[self.at % self.slots.len()].stamp, overwritten },
        }
    }
}

/// What happens rarely, to a pool and not to a block.
pub(super) struct Happening {
    pub action: Action,
    pub bytes: u64,
    pub address: u64,
    pub stream: StreamId,
    /// The stream that is waited for.
    pub other: StreamId,
}

impl Happening {
    pub(super) fn to_memory(action: Action, bytes: u64, address: u64) -> Happening {
        Happening { action, bytes, address, stream: StreamId(0), other: StreamId(0) }
    }

    pub(super) fn wait(action: Action, stream: StreamId, other: StreamId) -> Happening {
        Happening { action, bytes: 0, address: 0, stream, other }
    }
}

impl State {
    /// Writes down a rare event, with the time.
    #[cold]
    pub(super) fn happened(&mut self, happening: Happening) {
        if let Some(history) = &mut self.history {
            let Happening { action, bytes, address, stream, other } = happening;
            let (site, tag) = history.cause;
            let block = BlockId { index: u32::from(other.0), generation: 0 };
            history.push_now(Slot { site, address, bytes, block, stream, tag, action, ..BLANK });
        }
    }

    /// Puts down what happens from here on to a request; `None`: to nobody.
    pub(super) fn because_of(&mut self, need: Option<&Need<'_>>) {
        if let Some(history) = &mut self.history {
            history.cause = need.map_or((None, TagId::NONE), |need| (Some(need.site), need.tag));
        }
    }

    /// A request could not be served.
    pub(super) fn ran_out(&mut self, need: &Need<'_>) {
        if let Some(history) = &mut self.history {
            let slot = Slot {
                site: Some(need.site),
                bytes: need.requested,
                stream: need.stream,
                tag: need.tag,
                action: Action::Oom,
                align_log2: need.align.trailing_zeros() as u8,
                ..BLANK
            };
            history.push_now(slot);
        }
    }
}

impl Copied {
    /// A place for a pool's events, made before its lock is taken.
    pub(super) fn with_room(len: usize) -> Copied {
        let window = Window { pool: PoolId(0), from: 0, overwritten: 0 };
        Copied { slots: Vec::with_capacity(len), window }
    }

    /// Copies a pool's events, under its lock. Answers nothing where it keeps none.
    pub(super) fn fill(mut self, pool: PoolId, state: &State) -> Option<Copied> {
        let ring = state.history.as_ref()?;
        let (older, newer) = ring.in_order();
        self.slots.extend_from_slice(older);
        self.slots.extend_from_slice(newer);
        self.window = ring.window(pool);
        Some(self)
    }

    /// The last events of a pool, oldest first.
    pub(super) fn last(pool: PoolId, state: &State, most: usize) -> Option<Copied> {
        let ring = state.history.as_ref()?;
        let (older, newer) = ring.in_order();
        let skipped = (older.len() + newer.len()).saturating_sub(most);
        let slots = older.iter().chain(newer).skip(skipped).copied().collect();
        Some(Copied { slots, window: ring.window(pool) })
    }
}

impl Core {
    /// The events as plain data, with texts, by stamp.
    pub(super) fn history(&self, pools: Vec<Copied>) -> Option<History> {
        if pools.is_empty() {
            return None;
        }
        let windows = pools.iter().map(|copied| copied.window).collect();
        let mut events: Vec<Event> = pools.iter().flat_map(|copied| self.events(copied)).collect();
        events.sort_by_key(|event| event.stamp);
        Some(History { epoch: self.clock.epoch, windows, events })
    }

    pub(super) fn events(&self, copied: &Copied) -> impl Iterator<Item = Event> {
        copied.slots.iter().map(|slot| self.event(slot, copied.window.pool))
    }

    fn event(&self, slot: &Slot, pool: PoolId) -> Event {
        let of_block = matches!(slot.action, Action::Alloc | Action::Free | Action::Use);
        let asked = of_block || slot.action == Action::Oom;
        Event {
            stamp: slot.stamp,
            action: slot.action,
            pool,
            block: of_block.then_some(slot.block),
            address: slot.address,
            requested: if asked { slot.bytes } else { 0 },
            size: if asked { self.rounded(slot.bytes) } else { slot.bytes },
            align: 1 << slot.align_log2,
            stream: slot.stream,
            other: (slot.action == Action::StreamWait).then_some(StreamId(slot.block.index as u16)),
            tag: slot.tag.name(),
            site: slot.site.map(Into::into),
        }
    }

    /// Every pool keeps its last `len` events from here on; what is kept is dropped where the length differs.
    pub(super) fn keep_history(&self, len: usize) {
        for pool in self.pools() {
            let kept = pool.state.lock().history.as_ref().map_or(0, |ring| ring.len());
            if kept != len {
                let from = self.clock.last.load(Relaxed).max(self.clock.now());
                let ring = Ring::new(len, &self.clock, from);
                // The old one goes after the lock.
                let _old = std::mem::replace(&mut pool.state.lock().history, ring);
            }
        }
    }
}
