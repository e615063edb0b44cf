//! The last events of a pool, in a ring under the pool's lock.
//!
//! The ring is made when the history is switched on; an event writes one slot of it, and allocates nothing. Site and
//! label are kept as they are; texts are made outside the lock.
//!
//! Invariants: slots before `at` are of this lap, the others of the lap before, or blank in the first; `at < due <= slots.len()`.
//! [`crate::snapshot::History`] says what the order between pools is worth.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::core::Core;
use super::pool::{Need, Note, State};
use crate::heap::Owned;
use crate::ids::{BlockId, PoolId, StreamId};
use crate::snapshot::{Action, Event, History, Window};
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The clock is read at every so many events of a pool.
const CLOCK_EVERY: usize = 128;

/// What stamps are made of, shared by the pools of an allocator.
pub(crate) struct Clock {
    /// About the largest stamp so far, as slots hold it: a plain load and a plain store, so that a thread which is interrupted
    /// between the two sets it back by as long as that took. Within each pool that is put right when events are read. All pools
    /// write this one word, so that pools on different cores cost each other while they keep a history.
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
    /// No later stamp is before this instant.
    fn tick(&self) -> u64 {
        let now = self.last.load(Relaxed).max(self.began.elapsed().as_nanos() as u64 * STAMP);
        self.last.store(now, Relaxed);
        now / STAMP
    }
}

/// An event as it is kept. Everything but a block's own words is packed, because this is written for every alloc and free.
#[derive(Clone, Copy)]
struct Slot {
    /// The stamp above [`STAMP`] - 1, the logarithm of an alignment below.
    stamp: u64,
    note: Note,
    address: u64,
    /// Bytes, a multiple of a quantum of at least 16, with the action below that.
    size: u64,
    /// For waits, the number of the stream that is waited for is the index.
    block: BlockId,
}

/// One more, in a slot's stamp.
const STAMP: u64 = 64;

const BLANK: Slot =
    Slot { stamp: 0, note: Note::BLANK, address: 0, size: 0, block: BlockId { index: 0, generation: 0 } };

impl Slot {
    fn action(&self) -> Action {
        Action::ALL[(self.size % 16) as usize]
    }

    fn size(&self) -> u64 {
        self.size & !15
    }
}

/// A pool's ring.
pub(crate) struct Ring {
    clock: Arc<Clock>,
    slots: Box<[Slot]>,
    /// Where the next event goes.
    at: usize,
    /// Where the clock is read, or the lap over.
    due: usize,
    laps: u64,
    /// Where the ring begins when nothing was overwritten.
    from: u64,
    /// What slow events are put down to: the request on its way up.
    cause: Note,
}

/// A pool's last events as copied under its lock.
pub(super) struct Copied {
    slots: Vec<Slot>,
    window: Window,
}

impl Ring {
    /// A ring of `len` events, the first of which may not lie before `from`; none for no events.
    pub(crate) fn new(len: usize, clock: &Arc<Clock>, from: u64) -> Option<Box<Ring>> {
        let slots = vec![BLANK; len].into_boxed_slice();
        let cause = Note::BLANK;
        (len > 0).then(|| {
            clock.tick();
            Box::new(Ring { clock: clock.clone(), slots, at: 0, due: len.min(CLOCK_EVERY), laps: 0, from, cause })
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn memory(&self) -> u64 {
        size_of_val(&*self.slots) as u64
    }

    /// Writes down what happened to a block.
    #[inline(always)]
    pub(crate) fn write(&mut self, action: Action, align: u64, block: Owned, address: u64, note: Note) {
        let stamp = self.clock.last.load(Relaxed) + STAMP;
        self.clock.last.store(stamp, Relaxed);
        let (stamp, size) = (stamp | u64::from(align.trailing_zeros()), block.size | action as u64);
        self.slots[self.at] = Slot { stamp, note, address, size, block: block.id };
        self.at += 1;
        // Last, so that nothing is kept over the call.
        if self.at == self.due {
            self.turn();
        }
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
        self.clock.tick();
    }

    /// Writes down what happens rarely, with its time.
    fn write_now(&mut self, action: Action, align: u64, size: u64, address: u64, note: Note, other: StreamId) {
        self.clock.tick();
        let id = BlockId { index: u32::from(other.0), generation: 0 };
        self.write(action, align, Owned { id, place: 0, offset: 0, size }, address, note);
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
            overwritten => Window { pool, from: self.slots[self.at].stamp / STAMP, overwritten },
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
            let note = history.cause.on(stream);
            history.write_now(action, 1, bytes, address, note, other);
        }
    }

    /// Puts down what happens from here on to a request; `None`: to nobody.
    pub(super) fn because_of(&mut self, need: Option<&Need<'_>>) {
        if let Some(history) = &mut self.history {
            history.cause = need.map_or(Note::BLANK, Note::of);
        }
    }

    /// A request could not be served.
    pub(super) fn ran_out(&mut self, need: &Need<'_>) {
        if let Some(history) = &mut self.history {
            history.write_now(Action::Oom, need.align, need.size, 0, Note::of(need), StreamId(0));
        }
    }
}

impl Copied {
    /// A place for a pool's events, made before its lock is taken.
    pub(super) fn with_room(len: usize) -> Copied {
        let window = Window { pool: PoolId(0), from: 0, overwritten: 0 };
        Copied { slots: Vec::with_capacity(len), window }
    }

    /// Copies the last events of a pool, oldest first, under its lock. Answers nothing where it keeps none.
    pub(super) fn fill(mut self, pool: PoolId, state: &State, most: usize) -> Option<Copied> {
        let ring = state.history.as_ref()?;
        let (older, newer) = ring.in_order();
        let (newer_from, more) = (newer.len().saturating_sub(most), most.saturating_sub(newer.len()));
        self.slots.extend_from_slice(&older[older.len().saturating_sub(more)..]);
        self.slots.extend_from_slice(&newer[newer_from..]);
        self.window = ring.window(pool);
        Some(self)
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
        // The first is not before the window, whatever the shared stamp was put back to.
        let mut newest = copied.window.from.saturating_sub(1);
        copied.slots.iter().map(move |slot| {
            newest = (slot.stamp / STAMP).max(newest + 1);
            self.event(slot, copied.window.pool, newest)
        })
    }

    fn event(&self, slot: &Slot, pool: PoolId, stamp: u64) -> Event {
        let (action, note, size) = (slot.action(), slot.note, slot.size());
        let of_block = matches!(action, Action::Alloc | Action::Free | Action::Use);
        let asked = of_block || action == Action::Oom;
        let of_request = matches!(action, Action::Alloc | Action::Oom);
        Event {
            stamp,
            action,
            pool,
            block: of_block.then_some(slot.block),
            address: slot.address,
            requested: if asked { size - u64::from(note.padding) } else { 0 },
            size,
            align: if of_request { 1 << (slot.stamp % STAMP) } else { 1 },
            stream: note.stream(),
            other: (action == Action::StreamWait).then_some(StreamId(slot.block.index as u16)),
            tag: note.tag.name(),
            site: note.site.map(Into::into),
        }
    }

    /// Every pool keeps its last `len` events from here on; what is kept is dropped where the length differs.
    pub(super) fn keep_history(&self, len: usize) {
        for pool in self.pools() {
            let kept = pool.state.lock().history.as_ref().map_or(0, |ring| ring.len());
            if kept != len {
                let mut ring = Ring::new(len, &self.clock, 0);
                let mut state = pool.state.lock();
                if let Some(ring) = &mut ring {
                    // Under the lock, so that no event of the pool lies between; behind the last one that was not kept.
                    ring.from = self.clock.tick() + 1;
                }
                let old = std::mem::replace(&mut state.history, ring);
                drop(state);
                drop(old);
            }
        }
    }
}
