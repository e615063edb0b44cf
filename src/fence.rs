//! Stream order: which stream has seen which other stream's work, and what free memory must wait for. Pure bookkeeping: no
//! driver is called here, and nothing is known of memory.
//!
//! Each stream has a counter that advances when a block is freed on it. A free block carries the (stream, counter) pairs of
//! the work that may still touch it, as a [`FenceId`]: none, one pair in the id itself, or several in a table.
//!
//! A fence may be passed by stream S when each of its pairs (T, c) has T = S, or S follows T up to c, or T completed c.
//! Memory that the CPU touches is passed only when every pair is complete.
//!
//! Invariants:
//! * `seen[t] <= now` of stream t, and `done <= now`, for every stream; all of them only grow;
//! * an event's clock is the recording stream's clock as of the record, never later;
//! * a table entry lives while a fence names it: `refs` counts them; its pairs name distinct streams.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

use crate::ids::{Access, EventId, FenceId, Fences, StreamId};

/// Events remembered for each stream. More would find older, weaker waits; fewer would serialise more.
pub const EVENTS_MAX: usize = 8;

const COUNTER_BITS: u32 = 48;
const COUNTER_MASK: u64 = (1 << COUNTER_BITS) - 1;

/// A stream's place in its own work: how many frees it has seen.
pub type Counter = u64;

/// A clock: for each stream, by number, the highest counter that is covered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clock(Vec<Counter>);

impl Clock {
    fn get(&self, stream: StreamId) -> Counter {
        self.0.get(stream.0 as usize).copied().unwrap_or(0)
    }

    fn raise(&mut self, stream: StreamId, counter: Counter) {
        let at = stream.0 as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, 0);
        }
        self.0[at] = self.0[at].max(counter);
    }

    fn join(&mut self, other: &Clock) {
        for (at, counter) in other.0.iter().enumerate() {
            self.raise(StreamId(at as u16), *counter);
        }
    }
}

/// One stream: its counter, what it has seen of the others, and its events that are not known to be done.
#[derive(Debug, Default)]
struct StreamClock {
    now: Counter,
    seen: Clock,
    done: Counter,
    events: VecDeque<Recorded>,
    /// Whether its work is written down instead of run: no event can be recorded behind it.
    recording: bool,
}

#[derive(Debug)]
struct Recorded {
    event: EventId,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Entry {
    pairs: Vec<(StreamId, Counter)>,
    refs: u32,
}

/// The clocks of all streams of one pool, and the table of fences that name several streams.
#[derive(Debug, Default)]
pub struct Clocks {
    streams: Vec<StreamClock>,
    entries: Vec<Entry>,
    vacant: Vec<u32>,
    /// Where pairs are joined.
    scratch: Vec<(StreamId, Counter)>,
    /// Whether the CPU touches the memory: then only completion orders.
    host_ordered: bool,
}

impl Clocks {
    /// Clocks that know stream 0.
    pub fn new(host_ordered: bool) -> Self {
        let mut clocks = Clocks { host_ordered, ..Clocks::default() };
        clocks.stream(StreamId(0));
        clocks
    }

    #[inline]
    fn stream(&mut self, stream: StreamId) -> &mut StreamClock {
        let at = stream.0 as usize;
        if self.streams.len() <= at {
            self.grow(at + 1);
        }
        &mut self.streams[at]
    }

    #[cold]
    fn grow(&mut self, streams: usize) {
        self.streams.resize_with(streams, StreamClock::default);
    }

    fn now(&self, stream: StreamId) -> Counter {
        self.streams.get(stream.0 as usize).map_or(0, |s| s.now)
    }

    fn is_done(&self, (stream, counter): (StreamId, Counter)) -> bool {
        self.streams.get(stream.0 as usize).is_some_and(|s| s.done >= counter)
    }

    fn follows(&self, stream: StreamId, (other, counter): (StreamId, Counter)) -> bool {
        self.streams.get(stream.0 as usize).is_some_and(|s| s.seen.get(other) >= counter)
    }

    /// Makes streams known before anything is freed on them.
    pub fn know(&mut self, streams: impl IntoIterator<Item = StreamId>) {
        for stream in streams {
            self.stream(stream);
        }
    }

    /// Whether `stream` may use what only this pair protects.
    pub fn has_passed(&self, pair: (StreamId, Counter), stream: StreamId) -> bool {
        self.passed(pair, stream)
    }

    /// Numbers of the streams known here.
    pub fn streams(&self) -> impl Iterator<Item = StreamId> + use<> {
        (0..self.streams.len()).map(|at| StreamId(at as u16))
    }

    /// Whether more than one stream is known.
    #[inline]
    pub fn is_shared(&self) -> bool {
        self.streams.len() > 1
    }

    // ---- fences of free memory -------------------------------------------------------------------------------------------

    /// The fence of a block dropped now by `stream`, which alone used it.
    #[inline(always)]
    pub fn freed_on(&mut self, stream: StreamId) -> FenceId {
        let Some(clock) = self.streams.get_mut(stream.0 as usize) else { return self.freed_first(stream) };
        clock.now += 1;
        debug_assert!(clock.now <= COUNTER_MASK);
        single(stream, clock.now)
    }

    #[cold]
    fn freed_first(&mut self, stream: StreamId) -> FenceId {
        self.stream(stream).now = 1;
        single(stream, 1)
    }

    /// The fence of a block dropped now that `stream` and `others` used. Counters are read here, at the drop.
    pub fn freed_by_all(&mut self, stream: StreamId, others: &[StreamId]) -> FenceId {
        let mut fence = self.freed_on(stream);
        for other in others {
            if *other != stream {
                let also = self.freed_on(*other);
                fence = self.join(fence, also);
            }
        }
        fence
    }

    /// Whether `stream` may use memory behind this fence now, without any wait.
    #[inline(always)]
    pub fn usable(&self, fence: FenceId, stream: StreamId) -> bool {
        let own = fence.0 >> COUNTER_BITS == u64::from(stream.0) && !self.host_ordered;
        if own || fence == FenceId::NONE {
            return true;
        }
        if fence.is_shared() {
            return self.usable_shared(fence, stream);
        }
        self.passed((StreamId((fence.0 >> COUNTER_BITS) as u16), fence.0 & COUNTER_MASK), stream)
    }

    fn usable_shared(&self, fence: FenceId, stream: StreamId) -> bool {
        self.entries[slot(fence)].pairs.iter().all(|pair| self.passed(*pair, stream))
    }

    fn passed(&self, pair: (StreamId, Counter), stream: StreamId) -> bool {
        let ordered = pair.0 == stream || self.follows(stream, pair);
        (ordered && !self.host_ordered) || self.is_done(pair)
    }

    /// Whether all work behind a fence is known to be complete.
    pub fn complete(&self, fence: FenceId) -> bool {
        self.pairs(fence).all(|pair| self.is_done(pair))
    }

    /// The pairs that stand between `stream` and memory behind this fence.
    pub fn missing(&self, fence: FenceId, stream: StreamId) -> Vec<(StreamId, Counter)> {
        self.pairs(fence).filter(|pair| !self.passed(*pair, stream)).collect()
    }

    /// The pairs of a fence.
    pub fn pairs(&self, fence: FenceId) -> impl Iterator<Item = (StreamId, Counter)> + '_ {
        let one = (fence != FenceId::NONE && !fence.is_shared())
            .then_some((StreamId((fence.0 >> COUNTER_BITS) as u16), fence.0 & COUNTER_MASK));
        let many: &[(StreamId, Counter)] = if fence.is_shared() { &self.entries[slot(fence)].pairs } else { &[] };
        one.into_iter().chain(many.iter().copied())
    }

    /// Leaves out of the table what is complete. Answers whether some fence of it names one stream or none now and should be simplified.
    pub fn settle(&mut self) -> bool {
        let streams = &self.streams;
        let done = |(stream, counter): &(StreamId, Counter)| {
            streams.get(stream.0 as usize).is_some_and(|s| s.done >= *counter)
        };
        let mut simpler = false;
        for entry in self.entries.iter_mut().filter(|entry| entry.refs > 0) {
            entry.pairs.retain(|pair| !done(pair));
            simpler |= entry.pairs.len() < 2;
        }
        simpler
    }

    fn intern(&mut self, pairs: &[(StreamId, Counter)]) -> FenceId {
        match pairs {
            [] => FenceId::NONE,
            [(stream, counter)] => single(*stream, *counter),
            _ => {
                let slot = self.vacant.pop().unwrap_or_else(|| {
                    self.entries.push(Entry::default());
                    (self.entries.len() - 1) as u32
                });
                let entry = &mut self.entries[slot as usize];
                entry.pairs.extend_from_slice(pairs);
                entry.refs = 1;
                FenceId(FenceId::SHARED | u64::from(slot))
            }
        }
    }

    // ---- events ----------------------------------------------------------------------------------------------------------

    /// The clock that an event recorded on `stream` now will carry. Read it before the driver records.
    pub fn clock(&self, stream: StreamId) -> Clock {
        let mut clock = self.streams.get(stream.0 as usize).map(|s| s.seen.clone()).unwrap_or_default();
        clock.raise(stream, self.now(stream));
        clock
    }

    /// An event was recorded on `stream`; `clock` was read before. Answers an event that is no longer needed, if any.
    pub fn recorded(&mut self, stream: StreamId, event: EventId, clock: Clock) -> Option<EventId> {
        let events = &mut self.stream(stream).events;
        events.push_back(Recorded { event, clock });
        // The newest but one is the least loss: older ones complete sooner, the newest covers most.
        if events.len() > EVENTS_MAX { events.remove(EVENTS_MAX - 1).map(|gone| gone.event) } else { None }
    }

    /// The earliest event that covers `counter` of `stream`.
    pub fn event_for(&self, (stream, counter): (StreamId, Counter)) -> Option<EventId> {
        let clock = self.streams.get(stream.0 as usize)?;
        clock.events.iter().find(|e| e.clock.get(stream) >= counter).map(|e| e.event)
    }

    /// Whether `stream` has frees that no event covers and that are not done: an event would tell something new, and can be recorded.
    pub fn wants_event(&self, stream: StreamId) -> bool {
        let Some(clock) = self.streams.get(stream.0 as usize).filter(|clock| !clock.recording) else { return false };
        let covered = clock.events.back().map_or(clock.done, |e| e.clock.get(stream));
        clock.now > covered.max(clock.done)
    }

    /// Whether `stream` has frees that are not known to be complete.
    pub fn unfinished(&self, stream: StreamId) -> bool {
        self.streams.get(stream.0 as usize).is_some_and(|clock| clock.now > clock.done)
    }

    /// Says whether work given to a stream is written down now, to run later.
    pub fn set_recording(&mut self, stream: StreamId, recording: bool) {
        self.stream(stream).recording = recording;
    }

    /// Whether work given to a stream is written down now, to run later.
    pub fn is_recording(&self, stream: StreamId) -> bool {
        self.streams.get(stream.0 as usize).is_some_and(|clock| clock.recording)
    }

    /// Whether some wait, on the device or the host, could let others pass this fence.
    pub fn is_reachable(&self, fence: FenceId) -> bool {
        self.pairs(fence).all(|pair| !self.is_recording(pair.0) || self.is_done(pair) || self.event_for(pair).is_some())
    }

    /// Whether another event of this stream can be remembered without dropping one.
    pub fn has_room(&self, stream: StreamId) -> bool {
        self.streams.get(stream.0 as usize).is_none_or(|clock| clock.events.len() < EVENTS_MAX)
    }

    /// The oldest event of a stream that is not known to be done.
    pub fn oldest(&self, stream: StreamId) -> Option<EventId> {
        self.streams.get(stream.0 as usize)?.events.front().map(|e| e.event)
    }

    /// The newest event of a stream.
    pub fn newest(&self, stream: StreamId) -> Option<EventId> {
        self.streams.get(stream.0 as usize)?.events.back().map(|e| e.event)
    }

    /// `stream` waits for an event of `other` from now on: it has seen all that the event's clock covers.
    pub fn waited(&mut self, stream: StreamId, other: StreamId, event: EventId) {
        let Some(clock) = self.event_clock(other, event) else { return };
        self.stream(stream).seen.join(&clock);
    }

    /// An event is done: all that its clock covers is complete. Answers it and the older events of its stream.
    pub fn completed(&mut self, stream: StreamId, event: EventId) -> Vec<EventId> {
        let Some(clock) = self.event_clock(stream, event) else { return Vec::new() };
        for (at, counter) in clock.0.iter().enumerate() {
            let done = &mut self.stream(StreamId(at as u16)).done;
            *done = (*done).max(*counter);
        }
        let events = &mut self.stream(stream).events;
        let upto = events.iter().position(|e| e.event == event).map_or(0, |at| at + 1);
        events.drain(..upto).map(|e| e.event).collect()
    }

    /// Takes all events, of all streams, away.
    pub fn take_events(&mut self) -> Vec<EventId> {
        self.streams.iter_mut().flat_map(|stream| stream.events.drain(..)).map(|recorded| recorded.event).collect()
    }

    fn event_clock(&self, stream: StreamId, event: EventId) -> Option<Clock> {
        let clock = self.streams.get(stream.0 as usize)?;
        clock.events.iter().find(|e| e.event == event).map(|e| e.clock.clone())
    }

    /// The user ordered `stream` behind all work that `other` has issued so far.
    pub fn ordered_behind(&mut self, stream: StreamId, other: StreamId) {
        let clock = self.clock(other);
        self.stream(stream).seen.join(&clock);
    }

    /// Entries of the table in use, for the check.
    pub fn shared_fences(&self) -> usize {
        self.entries.len() - self.vacant.len()
    }

    /// Bytes that clocks and fences take.
    pub fn memory(&self) -> u64 {
        let events: usize =
            self.streams.iter().map(|s| s.events.iter().map(|e| 24 + e.clock.0.len() * 8).sum::<usize>()).sum();
        let pairs: usize = self.entries.iter().map(|e| 32 + e.pairs.capacity() * 16).sum();
        (events + pairs + self.streams.len() * size_of::<StreamClock>()) as u64
    }
}

fn single(stream: StreamId, counter: Counter) -> FenceId {
    FenceId(u64::from(stream.0) << COUNTER_BITS | counter)
}

fn slot(fence: FenceId) -> usize {
    (fence.0 & !FenceId::SHARED) as usize
}

impl Fences for Clocks {
    #[inline(always)]
    fn passes(&self, fence: FenceId, access: Access) -> bool {
        match access {
            Access::Now(stream) => self.usable(fence, stream),
            Access::Completed => self.complete(fence),
            Access::AfterWait => self.is_reachable(fence),
        }
    }

    #[inline(always)]
    fn join(&mut self, a: FenceId, b: FenceId) -> FenceId {
        if (a.0 ^ b.0) >> COUNTER_BITS == 0 && !a.is_shared() {
            return FenceId(a.0.max(b.0));
        }
        if a == FenceId::NONE && !b.is_shared() {
            return b;
        }
        if b == FenceId::NONE && !a.is_shared() {
            return a;
        }
        self.join_pairs(a, b)
    }

    fn simplify(&mut self, fence: FenceId) -> FenceId {
        if fence.is_shared() { self.join_pairs(fence, FenceId::NONE) } else { fence }
    }

    #[inline]
    fn copy(&mut self, fence: FenceId) -> FenceId {
        if fence.is_shared() {
            self.entries[slot(fence)].refs += 1;
        }
        fence
    }

    #[inline(always)]
    fn release(&mut self, fence: FenceId) {
        if fence.is_shared() {
            self.release_shared(fence);
        }
    }
}

impl Clocks {
    #[cold]
    fn join_pairs(&mut self, a: FenceId, b: FenceId) -> FenceId {
        let mut pairs = std::mem::take(&mut self.scratch);
        pairs.clear();
        for pair in self.pairs(a).chain(self.pairs(b)).filter(|pair| !self.is_done(*pair)) {
            match pairs.iter_mut().find(|(stream, _)| *stream == pair.0) {
                Some((_, counter)) => *counter = (*counter).max(pair.1),
                None => pairs.push(pair),
            }
        }
        pairs.sort_unstable();
        self.release(a);
        self.release(b);
        let fence = self.intern(&pairs);
        self.scratch = pairs;
        fence
    }

    #[cold]
    fn release_shared(&mut self, fence: FenceId) {
        let entry = &mut self.entries[slot(fence)];
        entry.refs -= 1;
        if entry.refs == 0 {
            // Its room is kept: joins come and go all the time.
            entry.pairs.clear();
            self.vacant.push(slot(fence) as u32);
        }
    }
}
