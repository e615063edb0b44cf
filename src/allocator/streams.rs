//! Streams at work: looking for completed work, waits between streams, and the life of a stream's handle.
//!
//! Everything here that talks to the driver runs under the slow lock and holds no state lock while it does.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::core::{Core, Slow};
use super::history::Happening;
use super::pages;
use super::pool::Pool;
use crate::backend::BackendError;
use crate::fence::Counter;
use crate::ids::{EventId, PoolId, StreamId};
use crate::snapshot::Action;
use crate::stats::Count;

/// Stream numbers have 15 bits here: notes and fences use the sixteenth to say "several streams".
const STREAMS_MAX: u16 = 1 << 15;

/// A stream of an allocator's device. Cheap to clone; when the last clone goes, the stream's number is given
/// back once its work is complete.
#[derive(Clone)]
pub struct Stream {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    core: Arc<Core>,
    id: StreamId,
}

/// Streams that have a handle, by number. One whose last handle went is not found any more, although its number may still be taken.
pub(crate) type Handles = Vec<(StreamId, Weak<Inner>)>;

impl Drop for Inner {
    fn drop(&mut self) {
        if self.id != StreamId(0) {
            self.core.abandoned.lock().push(self.id);
        }
    }
}

impl Stream {
    pub(crate) fn new(core: Arc<Core>, id: StreamId) -> Self {
        for pool in core.pools() {
            pool.state.lock().clocks.know([id]);
        }
        if id != StreamId(0) {
            core.open.lock().push(id);
        }
        Stream { inner: Arc::new(Inner { core, id }) }
    }

    /// Its number on the device.
    pub fn id(&self) -> StreamId {
        self.inner.id
    }

    pub(crate) fn belongs_to(&self, core: &Arc<Core>) -> bool {
        Arc::ptr_eq(&self.inner.core, core)
    }

    /// Says that the caller has ordered this stream behind everything that `other` was given so far (by an event of their own,
    /// for example). Memory freed on `other` is then used here without a wait. Not saying it is safe, only dearer.
    /// A stream of another allocator is ignored: its work cannot touch this memory.
    pub fn follows(&self, other: &Stream) {
        if !other.belongs_to(&self.inner.core) {
            return;
        }
        for pool in self.inner.core.pools() {
            pool.state.lock().clocks.ordered_behind(self.id(), other.id());
        }
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({})", self.id())
    }
}

/// A stream without handles, whose number goes back when its work is complete in every pool and no block is used on it.
pub(crate) struct Retirement {
    stream: StreamId,
    /// How many blocks must have come back before blocks are looked through again.
    look_at: u64,
    /// Behind all that the stream was given, once nobody frees on it any more.
    pub event: Option<EventId>,
}

impl Core {
    /// What is worth doing now and then, unless a slow call is under way: looking for completed work, and bringing the pages of an idle
    /// pool together.
    #[cold]
    pub(crate) fn care(&self, id: PoolId, stream: StreamId) {
        if self.special.load(Relaxed) > 0 && !self.captures.lock().is_empty() {
            return;
        }
        let Some(mut slow) = self.slow.try_lock() else { return };
        let scattered = pages::is_idle_and_scattered(self, id);
        let waiting = self.pool(id).state.lock().clocks.is_shared() || !slow.retired[usize::from(id.0)].is_empty();
        let mut cared = Ok(());
        if scattered || waiting {
            cared = self.poll(id, &mut slow);
        }
        if scattered && cared.is_ok() {
            cared = pages::retreat(self, id, stream, &mut slow);
        }
        if let Err(error) = cared {
            self.defer(error);
        }
    }

    /// Asks the backend which events of a pool are done, unmaps what waited for them, and records new events where
    /// frees are not covered yet.
    pub(crate) fn poll(&self, id: PoolId, slow: &mut Slow) -> Result<(), BackendError> {
        if !self.caps.streams {
            return pages::unmap_retired(self, id, slow);
        }
        let pool = self.pool(id);
        let streams: Vec<StreamId> = pool.state.lock().clocks.streams().collect();
        let mut progress = Ok(false);
        for stream in streams {
            self.look_for_end_of_capture(pool, stream)?;
            progress = self.poll_stream(pool, stream).map(|more| more || matches!(progress, Ok(true)));
            if progress.is_err() {
                break;
            }
        }
        if !matches!(progress, Ok(false)) {
            // On an error too: what was found complete before it is.
            self.refresh_fences(pool);
        }
        if progress? {
            pages::unmap_retired(self, id, slow)?;
        }
        // Before streams go that the launches of a graph were given.
        self.unpin(slow)?;
        self.retire_streams(slow)
    }

    fn look_for_end_of_capture(&self, pool: &Pool, stream: StreamId) -> Result<(), BackendError> {
        let ended = self.caps.captures && pool.state.lock().clocks.is_recording(stream) && !self.is_captured(stream)?;
        if ended {
            pool.state.lock().clocks.set_recording(stream, false);
        }
        Ok(())
    }

    /// Whether something was found complete. Records an event where frees are not covered yet.
    fn poll_stream(&self, pool: &Pool, stream: StreamId) -> Result<bool, BackendError> {
        let mut progress = false;
        loop {
            let (oldest, uncovered) = {
                let clocks = &pool.state.lock().clocks;
                (clocks.oldest(stream), clocks.wants_event(stream) && clocks.has_room(stream))
            };
            let done = match oldest {
                Some(event) => self.backend.done(event)?.then_some(event),
                None if uncovered => match self.record(pool, stream) {
                    Ok(event) => self.backend.done(event)?.then_some(event),
                    Err(BackendError::Recording { .. }) => return Ok(progress),
                    Err(error) => return Err(error),
                },
                None => None,
            };
            let Some(event) = done else {
                if oldest.is_some() && uncovered {
                    match self.record(pool, stream) {
                        Ok(_) | Err(BackendError::Recording { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                return Ok(progress);
            };
            self.completed(pool, stream, event);
            progress = true;
        }
    }

    fn completed(&self, pool: &Pool, stream: StreamId, event: EventId) {
        let done = pool.state.lock().clocks.completed(stream, event);
        done.into_iter().for_each(|event| self.backend.forget(event));
    }

    /// What was pending on completed work is simply free.
    fn refresh_fences(&self, pool: &Pool) {
        let mut guard = pool.state.lock();
        let state = &mut *guard;
        if state.heap.pending() > 0 && state.clocks.settle() {
            state.heap.refresh_fences(&mut state.clocks);
            pool.meter.pending_is(state.heap.pending());
        }
    }

    /// Records an event. Its clock is read before the driver is called: it may cover more than it says, never less.
    fn record(&self, pool: &Pool, stream: StreamId) -> Result<EventId, BackendError> {
        let clock = {
            let clocks = &pool.state.lock().clocks;
            if clocks.is_recording(stream) {
                return Err(BackendError::Recording { stream });
            }
            clocks.clock(stream)
        };
        let event = self.backend.record(stream).inspect_err(|error| {
            if matches!(error, BackendError::Recording { .. }) {
                // A capture that nobody announced; `poll` sees its end.
                pool.state.lock().clocks.set_recording(stream, true);
            }
        })?;
        let dropped = pool.state.lock().clocks.recorded(stream, event, clock);
        if let Some(event) = dropped {
            self.backend.forget(event);
        }
        Ok(event)
    }

    /// Puts waits between `stream` and each pair, on the device.
    pub(crate) fn wait_between(
        &self,
        pool: &Pool,
        stream: StreamId,
        pairs: &[(StreamId, Counter)],
    ) -> Result<(), BackendError> {
        for pair in pairs {
            let covering = {
                let state = pool.state.lock();
                if state.clocks.has_passed(*pair, stream) {
                    continue;
                }
                state.clocks.event_for(*pair)
            };
            let event = match covering {
                Some(event) => event,
                None => self.record(pool, pair.0)?,
            };
            self.backend.stream_wait(stream, event)?;
            let mut state = pool.state.lock();
            state.clocks.waited(stream, pair.0, event);
            pool.meter.count(Count::StreamWait);
            state.happened(Happening::wait(Action::StreamWait, stream, pair.0));
        }
        Ok(())
    }

    /// Waits on the host until all work of a pool's frees is complete. Answers `false` when the time was over first, or when some of it
    /// is recorded and not submitted; what is complete by then is known.
    pub(crate) fn wait_for_all(&self, id: PoolId, slow: &mut Slow, until: Instant) -> Result<bool, BackendError> {
        if !self.caps.streams {
            return Ok(true);
        }
        let waited = self.wait_for_streams(self.pool(id), until);
        self.refresh_fences(self.pool(id));
        pages::unmap_retired(self, id, slow)?;
        waited
    }

    /// The latest instant until which unfinished work is waited for.
    pub(crate) fn patience(&self) -> Instant {
        Instant::now() + self.config.read().wait_max.min(Duration::from_secs(1 << 30))
    }

    /// Whether frees wait for work that is recorded and not submitted.
    pub(crate) fn something_is_recorded(&self) -> bool {
        self.pools().any(|pool| {
            let clocks = &pool.state.lock().clocks;
            clocks.streams().any(|stream| clocks.is_recording(stream) && clocks.unfinished(stream))
        })
    }

    fn wait_for_streams(&self, pool: &Pool, until: Instant) -> Result<bool, BackendError> {
        let streams: Vec<StreamId> = pool.state.lock().clocks.streams().collect();
        let mut in_time = true;
        for stream in streams {
            self.look_for_end_of_capture(pool, stream)?;
            let (unfinished, newest, stale) = {
                let state = pool.state.lock();
                (state.clocks.unfinished(stream), state.clocks.newest(stream), state.clocks.wants_event(stream))
            };
            if !unfinished {
                continue;
            }
            let event = match newest {
                Some(event) if !stale => event,
                _ => match self.record(pool, stream) {
                    Ok(event) => event,
                    Err(BackendError::Recording { .. }) => {
                        in_time = false;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            let left = until.saturating_duration_since(Instant::now());
            {
                let mut state = pool.state.lock();
                pool.meter.count(Count::HostWait);
                state.happened(Happening::wait(Action::HostWait, stream, stream));
            }
            if self.backend.host_wait(event, Some(left))? {
                self.completed(pool, stream, event);
            } else {
                in_time = false;
            }
            let clocks = &pool.state.lock().clocks;
            in_time &= !(clocks.is_recording(stream) && clocks.unfinished(stream));
        }
        Ok(in_time)
    }

    fn retire_streams(&self, slow: &mut Slow) -> Result<(), BackendError> {
        let abandoned = std::mem::take(&mut *self.abandoned.lock());
        slow.retiring.extend(abandoned.into_iter().map(|stream| Retirement { stream, look_at: 0, event: None }));
        let mut result = Ok(());
        slow.retiring.retain_mut(|retirement| match self.retire(retirement) {
            Ok(closed) => !closed,
            Err(error) => {
                result = Err(error);
                true
            }
        });
        result
    }

    /// Closes a stream when an event recorded behind its last free is done. Answers whether it did. All that the stream had seen is
    /// complete then, so that its clock is true for whoever is given the number next.
    fn retire(&self, retirement: &mut Retirement) -> Result<bool, BackendError> {
        let stream = retirement.stream;
        if retirement.event.is_none() {
            if self.is_busy(retirement) {
                return Ok(false);
            }
            retirement.event = match self.backend.record(stream) {
                Ok(event) => Some(event),
                Err(BackendError::Recording { .. }) => None,
                Err(error) => return Err(error),
            };
        }
        let Some(event) = retirement.event else { return Ok(false) };
        if !self.backend.done(event)? {
            return Ok(false);
        }
        self.backend.forget(event);
        for pool in self.pools() {
            // A capture that was over before anybody looked.
            pool.state.lock().clocks.set_recording(stream, false);
        }
        self.open.lock().retain(|open| *open != stream);
        self.backend.close_stream(stream);
        Ok(true)
    }

    /// Whether a stream has unfinished work, or blocks that will come back on it. Looks through all blocks, but after a find only
    /// when a good part of them may have gone.
    fn is_busy(&self, retirement: &mut Retirement) -> bool {
        let stream = retirement.stream;
        let unfinished = || self.pools().any(|pool| pool.state.lock().clocks.unfinished(stream));
        if unfinished() {
            return true;
        }
        let came_back = || self.pools().map(|pool| pool.meter.read().blocks.freed).sum::<u64>();
        if came_back() < retirement.look_at {
            return true;
        }
        let used = self.pools().any(|pool| pool.state.lock().is_used_on(stream));
        if used {
            let blocks: u64 = self.pools().map(|pool| pool.meter.read().blocks.current).sum();
            retirement.look_at = came_back() + blocks / 8 + 1;
        }
        // The last block may have come back between the two looks.
        used || unfinished()
    }

    /// A new stream of the backend's own making.
    pub(crate) fn open_stream(self: &Arc<Self>) -> Result<Stream, BackendError> {
        if !self.caps.streams {
            // One order for all: the host's.
            return Ok(Stream::new(self.clone(), StreamId(0)));
        }
        if self.lost.load(Relaxed) {
            return Err(BackendError::Lost { reason: "an earlier call found it lost".into() });
        }
        let id = match self.backend.open_stream() {
            Err(BackendError::Unsupported { .. }) => return Ok(Stream::new(self.clone(), StreamId(0))),
            id => id?,
        };
        self.with_handle(id, &mut self.handles.lock())
    }

    fn with_handle(self: &Arc<Self>, id: StreamId, handles: &mut Handles) -> Result<Stream, BackendError> {
        if id.0 >= STREAMS_MAX {
            self.backend.close_stream(id);
            let max = u64::from(STREAMS_MAX);
            return Err(BackendError::TooLarge { call: "open_stream", requested: u64::from(id.0) + 1, max });
        }
        let stream = Stream::new(self.clone(), id);
        handles.retain(|(_, handle)| handle.strong_count() > 0);
        handles.push((id, Arc::downgrade(&stream.inner)));
        Ok(stream)
    }

    /// A stream that the user brings: the handle that it has, if it has one, under a number that `is_it` knows it by; else `open` gives
    /// it a number. One that is being retired gets another number: for the clocks it is another stream, which is safe.
    #[allow(dead_code, reason = "used by devices with streams of the user's, which a feature adds")]
    pub(crate) fn adopt_stream(
        self: &Arc<Self>,
        is_it: impl Fn(StreamId) -> bool,
        open: impl FnOnce() -> Result<StreamId, BackendError>,
    ) -> Result<Stream, BackendError> {
        if is_it(StreamId(0)) {
            return Ok(Stream::new(self.clone(), StreamId(0)));
        }
        let mut handles = self.handles.lock();
        match handles.iter().filter(|(id, _)| is_it(*id)).find_map(|(_, handle)| handle.upgrade()) {
            Some(inner) => Ok(Stream { inner }),
            None => self.with_handle(open()?, &mut handles),
        }
    }

    /// Does `work` with the number of a stream that has a handle and that `is_it` knows; it keeps that number meanwhile.
    #[allow(dead_code, reason = "used by devices with streams of the user's, which a feature adds")]
    pub(crate) fn with_stream<R>(
        &self,
        is_it: impl Fn(StreamId) -> bool,
        work: impl FnOnce(StreamId) -> R,
    ) -> Option<R> {
        if is_it(StreamId(0)) {
            return Some(work(StreamId(0)));
        }
        let handles = self.handles.lock();
        let held = handles.iter().filter(|(id, _)| is_it(*id)).find_map(|(_, handle)| handle.upgrade());
        drop(handles);
        held.map(|held| work(held.id))
    }
}
