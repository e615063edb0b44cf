//! Streams, queued work, events and completion, on a logical clock.
//!
//! Knows no memory. A stream is a queue of *pieces*, numbered from 1 without end: work, markers and waits.
//!
//! * A **marker** is what `record` puts on a stream. It is a piece of work like any other: it takes the lag, it completes in
//!   its turn, and its event is done exactly when the marker is complete. So an event recorded on an idle stream is not done
//!   at once (unless the lag is 0). Its clock is that of the stream as of the record, with the marker's own number.
//! * A **wait** takes no time of its own: it is complete as soon as everything before it on its stream and the marker that
//!   it waits for are. Nothing behind it completes before. [`Device::complete`] does not count it as a piece.
//!
//! Invariants (re-proved by [`Device::check`]):
//! * `completed(s)` = number of the front of the queue - 1, or `issued` when it is empty: completion is in order.
//! * `clock[t]` of a stream `s` = highest number of `t`'s pieces ordered before what is issued on `s` next, by waits alone; it
//!   is at most `issued` of `t`. Clocks are transitive, so completing all that an event's clock covers breaks no wait.
//! * Numbers of a stream go on when it is closed and its `StreamId` is given again.

use std::collections::VecDeque;

use super::calls::{Stop, ViolationKind, broken};
use crate::ids::{EventId, StreamId};

/// When the simulated device gets its work done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lag {
    /// Work of time `t` is complete at time `t + n`, but not before earlier work of its stream and what it waits for.
    Events(u64),
    /// Only what `host_wait` waits for is ever complete.
    Never,
    /// The test says what is complete: [`super::Sim::complete`], [`super::Sim::complete_all`] and `host_wait`.
    Manual,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Work or a marker: complete from this time on.
    Due(u64),
    /// Behind this piece of that stream.
    Wait(StreamId, u64),
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    number: u64,
    kind: Kind,
}

#[derive(Debug, Default)]
struct Stream {
    open: bool,
    captured: bool,
    issued: u64,
    queue: VecDeque<Piece>,
    /// Indexed by stream; what is missing is 0.
    clock: Vec<u64>,
}

impl Stream {
    fn completed(&self) -> u64 {
        self.queue.front().map_or(self.issued, |piece| piece.number - 1)
    }

    fn push(&mut self, kind: Kind) -> u64 {
        self.issued += 1;
        self.queue.push_back(Piece { number: self.issued, kind });
        self.issued
    }

    /// Completes all pieces up to a number; whether there were any.
    fn finish(&mut self, number: u64) -> bool {
        let before = self.queue.len();
        while self.queue.front().is_some_and(|piece| piece.number <= number) {
            self.queue.pop_front();
        }
        self.queue.len() < before
    }
}

#[derive(Debug, Default)]
struct Event {
    generation: u32,
    live: bool,
    stream: StreamId,
    number: u64,
    clock: Vec<u64>,
}

/// All streams of the device.
#[derive(Debug)]
pub(super) struct Device {
    lag: Lag,
    now: u64,
    streams: Vec<Stream>,
    events: Vec<Event>,
    free_events: Vec<u32>,
    /// Whether something may have become complete since [`Device::settle`].
    stale: bool,
}

impl Device {
    pub(super) fn new(lag: Lag) -> Self {
        let default = Stream { open: true, ..Stream::default() };
        Device { lag, now: 0, streams: vec![default], events: Vec::new(), free_events: Vec::new(), stale: false }
    }

    pub(super) fn now(&self) -> u64 {
        self.now
    }

    pub(super) fn advance(&mut self, n: u64) {
        self.now = self.now.saturating_add(n).min(u64::MAX - 1);
        self.stale = true;
    }

    pub(super) fn open_streams(&self) -> u64 {
        self.streams.iter().filter(|stream| stream.open).count() as u64
    }

    pub(super) fn live_events(&self) -> u64 {
        (self.events.len() - self.free_events.len()) as u64
    }

    /// The lowest number that is not open; `None` when all are.
    pub(super) fn open(&mut self) -> Option<StreamId> {
        let number = self.streams.iter().position(|stream| !stream.open).unwrap_or(self.streams.len());
        let id = StreamId(u16::try_from(number).ok()?);
        if number == self.streams.len() {
            self.streams.push(Stream::default());
        }
        let stream = &mut self.streams[number];
        stream.open = true;
        stream.clock.clear();
        Some(id)
    }

    pub(super) fn close(&mut self, id: StreamId) -> Result<(), Stop> {
        self.settle();
        let unfinished = self.stream(id)?.queue.len();
        if unfinished > 0 || id == StreamId(0) {
            let text = format!("{id} is closed with {unfinished} unfinished pieces, or is the default stream");
            return Err(broken(ViolationKind::Stream, text));
        }
        self.streams[id.0 as usize].open = false;
        Ok(())
    }

    fn stream(&self, id: StreamId) -> Result<&Stream, Stop> {
        let found = self.streams.get(id.0 as usize).filter(|stream| stream.open);
        found.ok_or_else(|| broken(ViolationKind::Stream, format!("{id} is not an open stream")))
    }

    pub(super) fn capture(&mut self, id: StreamId, captured: bool) {
        if let Some(stream) = self.streams.get_mut(id.0 as usize) {
            stream.captured = captured;
        }
    }

    pub(super) fn is_captured(&self, id: StreamId) -> bool {
        self.streams.get(id.0 as usize).is_some_and(|stream| stream.captured)
    }

    pub(super) fn known_stream(&self, id: StreamId) -> Result<(), Stop> {
        self.stream(id).map(|_| ())
    }

    fn stream_mut(&mut self, id: StreamId) -> Result<&mut Stream, Stop> {
        self.known_stream(id)?;
        Ok(&mut self.streams[id.0 as usize])
    }

    /// Queues work on a stream; gives its number.
    pub(super) fn issue(&mut self, id: StreamId) -> Result<u64, Stop> {
        let due = match self.lag {
            Lag::Events(lag) => self.now.saturating_add(lag),
            Lag::Never | Lag::Manual => u64::MAX,
        };
        let number = self.stream_mut(id)?.push(Kind::Due(due));
        self.stale = true;
        Ok(number)
    }

    /// Queues a marker; gives its event.
    pub(super) fn record(&mut self, id: StreamId) -> Result<EventId, Stop> {
        let number = self.issue(id)?;
        let slot = self.free_events.pop().unwrap_or_else(|| {
            self.events.push(Event::default());
            (self.events.len() - 1) as u32
        });
        let event = &mut self.events[slot as usize];
        event.live = true;
        event.stream = id;
        event.number = number;
        event.clock.clear();
        event.clock.extend_from_slice(&self.streams[id.0 as usize].clock);
        raise(&mut event.clock, id, number);
        Ok(EventId(u64::from(event.generation) << 32 | u64::from(slot)))
    }

    fn event(&self, id: EventId) -> Result<&Event, Stop> {
        let found = self.events.get((id.0 & u64::from(u32::MAX)) as usize);
        let found = found.filter(|event| event.live && u64::from(event.generation) == id.0 >> 32);
        found.ok_or_else(|| broken(ViolationKind::Event, format!("{id} was never recorded, or was forgotten")))
    }

    pub(super) fn known_event(&self, id: EventId) -> Result<(), Stop> {
        self.event(id).map(|_| ())
    }

    pub(super) fn forget(&mut self, id: EventId) -> Result<(), Stop> {
        self.known_event(id)?;
        let slot = (id.0 & u64::from(u32::MAX)) as u32;
        let event = &mut self.events[slot as usize];
        event.live = false;
        event.generation = event.generation.wrapping_add(1);
        self.free_events.push(slot);
        Ok(())
    }

    /// Queues a wait for an event.
    pub(super) fn wait(&mut self, id: StreamId, event: EventId) -> Result<(), Stop> {
        let event = self.event(event)?;
        let (on, number, clock) = (event.stream, event.number, event.clock.clone());
        let stream = self.stream_mut(id)?;
        stream.push(Kind::Wait(on, number));
        for (other, number) in clock.into_iter().enumerate().filter(|(other, _)| *other != usize::from(id.0)) {
            raise(&mut stream.clock, StreamId(other as u16), number);
        }
        self.stale = true;
        Ok(())
    }

    pub(super) fn done(&mut self, id: EventId) -> Result<bool, Stop> {
        self.settle();
        let event = self.event(id)?;
        Ok(self.reached(event.stream, event.number))
    }

    /// Completes all that an event's clock covers.
    pub(super) fn force(&mut self, id: EventId) -> Result<(), Stop> {
        let clock = self.event(id)?.clock.clone();
        for (stream, number) in self.streams.iter_mut().zip(clock) {
            self.stale |= stream.finish(number);
        }
        self.settle();
        Ok(())
    }

    /// Completes the next pieces of a stream, as far as no wait stands in the way; gives how many.
    pub(super) fn complete(&mut self, id: StreamId, n: u64) -> Result<u64, Stop> {
        self.known_stream(id)?;
        for count in 0..n {
            self.settle();
            let stream = &mut self.streams[id.0 as usize];
            match stream.queue.front() {
                Some(Piece { kind: Kind::Due(_), .. }) => stream.queue.pop_front(),
                Some(Piece { kind: Kind::Wait(..), .. }) | None => return Ok(count),
            };
            self.stale = true;
        }
        Ok(n)
    }

    pub(super) fn complete_all(&mut self) {
        self.streams.iter_mut().for_each(|stream| stream.queue.clear());
    }

    /// Pieces on a stream that are not complete, waits not counted.
    pub(super) fn queued(&mut self, id: StreamId) -> u64 {
        self.settle();
        let pieces = self.streams.get(id.0 as usize).into_iter().flat_map(|stream| &stream.queue);
        pieces.filter(|piece| matches!(piece.kind, Kind::Due(_))).count() as u64
    }

    /// Takes what is complete by now off the queues, until nothing more follows from it.
    pub(super) fn settle(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        let mut moved = true;
        while moved {
            moved = false;
            for index in 0..self.streams.len() {
                while self.front_complete(index) {
                    self.streams[index].queue.pop_front();
                    moved = true;
                }
            }
        }
    }

    fn front_complete(&self, index: usize) -> bool {
        match self.streams[index].queue.front().map(|piece| piece.kind) {
            Some(Kind::Due(due)) => due <= self.now,
            Some(Kind::Wait(on, number)) => self.reached(on, number),
            None => false,
        }
    }

    /// Whether a piece is complete; as of the last [`Device::settle`].
    pub(super) fn reached(&self, id: StreamId, number: u64) -> bool {
        self.streams.get(id.0 as usize).is_none_or(|stream| stream.completed() >= number)
    }

    /// Whether what is issued on `later` next comes after a piece: by its stream, by waits, or because it is complete.
    pub(super) fn ordered(&self, later: StreamId, id: StreamId, number: u64) -> bool {
        let clock = || self.streams.get(later.0 as usize).and_then(|stream| stream.clock.get(id.0 as usize));
        later == id || clock().is_some_and(|seen| *seen >= number) || self.reached(id, number)
    }

    /// Recomputes the invariants.
    pub(super) fn check(&self) -> Result<(), String> {
        for (id, stream) in self.streams.iter().enumerate() {
            let numbers: Vec<u64> = stream.queue.iter().map(|piece| piece.number).collect();
            let first = stream.issued + 1 - numbers.len() as u64;
            if !numbers.iter().copied().eq(first..=stream.issued) {
                return Err(format!("st{id} has a hole in its queue"));
            }
            if let Some(other) = (0..stream.clock.len()).find(|i| stream.clock[*i] > self.streams[*i].issued) {
                return Err(format!("st{id} follows work of st{other} that was never issued"));
            }
            if !stream.open && !numbers.is_empty() {
                return Err(format!("st{id} is closed and has work"));
            }
        }
        let live = self.events.iter().filter(|event| event.live).count() as u64;
        if live != self.live_events() {
            Err(format!("{live} live events, {} counted", self.live_events()))
        } else {
            Ok(())
        }
    }
}

fn raise(clock: &mut Vec<u64>, id: StreamId, number: u64) {
    let index = id.0 as usize;
    if clock.len() <= index {
        clock.resize(index + 1, 0);
    }
    clock[index] = clock[index].max(number);
}
