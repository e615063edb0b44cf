//! Work that is written down now and runs later: open recordings, and captures of a stream with the memory that their graph keeps.
//!
//! * An *open recording* may touch any block: a block dropped while it is open is reused only when it is closed. It is a stream of
//!   its own to the clocks, which nothing can be ordered behind until then; closing it orders the default stream behind it.
//! * A *capture* takes its memory from a pool of its own, whose pages stay where they are until the graph is gone: a graph uses
//!   addresses, again at each launch. Requests of a stream under capture call the driver for growth only.
//!
//! Invariants: a pool is pinned from the start of its capture until work given to any stream before the graph went is complete;
//! `special` counts the pinned pools; a stream is in one capture at most.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Instant;

use super::core::{Core, Slow};
use super::error::AllocError;
use super::pool::Pool;
use super::streams::Stream;
use super::{Allocator, Memory};
use crate::backend::BackendError;
use crate::ids::{EventId, PoolId, StreamId};
use crate::policy::PoolConfig;

#[cfg(all(test, larder_shuttle))]
mod shuttled;
#[cfg(all(test, not(larder_shuttle)))]
mod tests;

/// Numbers of recordings, for devices with one queue: all but that of the queue.
#[derive(Default)]
pub(crate) struct Numbers {
    pub open: Vec<StreamId>,
    vacant: Vec<StreamId>,
    used: u16,
}

impl Numbers {
    const MAX: u16 = 1 << 12;

    fn take(&mut self) -> Result<StreamId, BackendError> {
        let number = match self.vacant.pop() {
            Some(number) => number,
            None if self.used < Self::MAX => {
                self.used += 1;
                StreamId(self.used)
            }
            None => {
                let (requested, max) = (u64::from(Self::MAX) + 1, Self::MAX.into());
                return Err(BackendError::TooLarge { call: "recording", requested, max });
            }
        };
        self.open.push(number);
        Ok(number)
    }

    fn give(&mut self, number: StreamId) {
        self.open.retain(|open| *open != number);
        self.vacant.push(number);
    }
}

/// An open recording. Dropping it closes it.
#[allow(dead_code, reason = "used by devices with one queue, which a feature adds")]
pub(crate) struct OpenRecording {
    core: Arc<Core>,
    number: StreamId,
}

#[allow(dead_code, reason = "used by devices with one queue, which a feature adds")]
impl OpenRecording {
    pub(crate) fn new(core: &Arc<Core>) -> Result<Self, BackendError> {
        let mut numbers = core.recordings.lock();
        let number = numbers.take()?;
        for pool in core.pools() {
            pool.state.lock().recording_opened(number);
        }
        Ok(OpenRecording { core: core.clone(), number })
    }
}

impl Drop for OpenRecording {
    fn drop(&mut self) {
        let mut numbers = self.core.recordings.lock();
        for pool in self.core.pools() {
            pool.state.lock().recording_closed(self.number);
        }
        // The number may be given again at once: counters only grow, and what was ordered are the old ones.
        numbers.give(self.number);
        drop(numbers);
        self.core.waiting.something_freed();
    }
}

/// A capture under way, from [`Allocator::capture`].
#[must_use = "the capture's memory is let go when this is dropped; end() keeps it for the graph"]
pub struct Capture<M: Memory> {
    /// `None` once ended.
    memory: Option<GraphMemory>,
    allocator: Allocator<M>,
}

/// The memory of a captured graph: as long as this lives, its pages stay at their addresses and go to nobody else.
/// Keep it beside the graph, and drop it after the graph. It keeps the streams too that were captured, on which the graph is launched:
/// what they and the other streams of the allocator were given until the drop is waited for before the pages go.
#[must_use = "the graph's memory is let go when this is dropped"]
pub struct GraphMemory {
    core: Arc<Core>,
    pool: PoolId,
    streams: Vec<Stream>,
}

/// A pool whose graph is gone, to be let go when all work given until then is complete.
pub(crate) struct Unpinning {
    pool: PoolId,
    /// One for each stream, recorded when the graph went; `None` until then.
    events: Option<Vec<EventId>>,
}

impl<M: Memory> Allocator<M> {
    /// Announces that `stream` is about to be captured into a graph. Until [`Capture::end`], whatever is asked for on that stream comes
    /// from a pool of the capture's own, and the driver is called for its growth only; afterwards that pool's pages stay where
    /// they are as long as the [`GraphMemory`] lives, and nobody is served from it. Streams that join the capture by an event are announced with
    /// [`Capture::join`]. Blocks that the graph uses but that were made before must be kept by their owner.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] where streams cannot be captured; a stream of another allocator; a capture of this stream under
    /// way; too many pools.
    pub fn capture(&self, stream: &Stream) -> Result<Capture<M>, AllocError> {
        self.core.may_capture(stream)?;
        let pool = self.core.begin_capture(stream.id())?;
        let memory = GraphMemory { core: self.core.clone(), pool, streams: vec![stream.clone()] };
        Ok(Capture { memory: Some(memory), allocator: self.view(pool) })
    }
}

impl<M: Memory> Capture<M> {
    /// An allocator that takes from the capture's pool, for its streams, until it ends.
    pub fn allocator(&self) -> &Allocator<M> {
        &self.allocator
    }

    /// Announces a stream that is about to join the capture, by waiting for an event of it.
    ///
    /// # Errors
    /// As [`Allocator::capture`].
    pub fn join(&mut self, stream: &Stream) -> Result<(), AllocError> {
        let Some(memory) = &mut self.memory else { return Ok(()) };
        memory.core.may_capture(stream)?;
        memory.core.announce(stream.id(), memory.pool)?;
        memory.streams.push(stream.clone());
        Ok(())
    }

    /// The capture has ended: answers the memory that its graph keeps.
    pub fn end(mut self) -> GraphMemory {
        self.stop();
        self.memory.take().expect("a capture ends once")
    }

    fn stop(&self) {
        if let Some(memory) = &self.memory {
            memory.core.end_capture(memory.pool);
        }
    }
}

impl<M: Memory> Drop for Capture<M> {
    fn drop(&mut self) {
        self.stop();
    }
}

impl GraphMemory {
    /// Bytes that the graph's pool holds.
    pub fn reserved(&self) -> u64 {
        self.core.pool(self.pool).meter.read().reserved.current
    }

    /// The graph's pool.
    pub fn pool_id(&self) -> PoolId {
        self.pool
    }

    /// The streams that were captured.
    pub fn streams(&self) -> &[Stream] {
        &self.streams
    }
}

impl Drop for GraphMemory {
    fn drop(&mut self) {
        // The streams' handles go after this: a stream is closed behind what it was given, and so behind its launches.
        self.core.graphs_gone.lock().push(self.pool);
    }
}

impl Core {
    fn may_capture(self: &Arc<Self>, stream: &Stream) -> Result<(), AllocError> {
        if !stream.belongs_to(self) {
            return Err(AllocError::ForeignStream);
        }
        if !self.caps.captures {
            return Err(BackendError::Unsupported { call: "capture", backend: self.caps.name }.into());
        }
        Ok(())
    }

    /// A pool for a capture of `stream`, pinned from now on.
    fn begin_capture(&self, stream: StreamId) -> Result<PoolId, AllocError> {
        // With the slow lock nobody records an event on the stream while it becomes captured.
        let mut slow = self.slow.lock();
        self.may_announce(stream)?;
        self.unpin(&mut slow)?;
        let mut vacant: Vec<PoolId> = self.capture_pools.lock().clone();
        vacant.retain(|id| !self.pool(*id).is_pinned());
        let pool = match vacant.first() {
            Some(pool) => *pool,
            None => {
                let number = self.capture_pools.lock().len() + 1;
                let pool = self.add_pool_under(&format!("capture {number}"), PoolConfig::default(), &mut slow)?;
                self.capture_pools.lock().push(pool);
                pool
            }
        };
        // The capture will not ask others for memory, and those that had graphs need theirs no more.
        for other in vacant.iter().skip(1) {
            self.return_idle(*other, u64::MAX, &mut slow)?;
        }
        self.pool(pool).pin(true);
        self.special.fetch_add(1, SeqCst);
        self.note_capture(stream, pool);
        Ok(pool)
    }

    fn announce(&self, stream: StreamId, pool: PoolId) -> Result<(), AllocError> {
        let _slow = self.slow.lock();
        self.may_announce(stream)?;
        self.note_capture(stream, pool);
        Ok(())
    }

    fn may_announce(&self, stream: StreamId) -> Result<(), BackendError> {
        match self.capture_of(stream) {
            Some(_) => Err(BackendError::Recording { stream }),
            None => Ok(()),
        }
    }

    /// Under `slow`.
    fn note_capture(&self, stream: StreamId, pool: PoolId) {
        self.captures.lock().push((stream, pool));
        for pool in self.pools() {
            pool.state.lock().clocks.set_recording(stream, true);
        }
    }

    fn end_capture(&self, pool: PoolId) {
        let ended: Vec<StreamId> =
            self.captures.lock().extract_if(.., |capture| capture.1 == pool).map(|c| c.0).collect();
        for pool in self.pools() {
            let clocks = &mut pool.state.lock().clocks;
            ended.iter().for_each(|stream| clocks.set_recording(*stream, false));
        }
    }

    /// The pool of the announced capture that a stream is in.
    fn capture_of(&self, stream: StreamId) -> Option<PoolId> {
        self.captures.lock().iter().find(|(other, _)| *other == stream).map(|(_, pool)| *pool)
    }

    /// The pool that serves a request on `stream` for `pool`, while there are captures or graphs, or the device is lost.
    #[cold]
    pub(crate) fn route(&self, pool: PoolId, stream: StreamId) -> Result<PoolId, AllocError> {
        if self.lost.load(Relaxed) {
            return Err(BackendError::Lost { reason: "an earlier call found it lost".into() }.into());
        }
        let under_way = {
            let captures = self.captures.lock();
            if let Some((_, captured)) = captures.iter().find(|(other, _)| *other == stream) {
                return Ok(*captured);
            }
            !captures.is_empty()
        };
        if under_way && self.caps.captures && self.backend.is_capturing(stream)? {
            // It joined a capture unannounced: the graph would use memory that is not its own.
            return Err(BackendError::Recording { stream }.into());
        }
        match self.find_pool(pool).is_some_and(Pool::is_pinned) {
            true => Err(AllocError::GraphPool { pool }),
            false => Ok(pool),
        }
    }

    /// Whether a stream is being captured, announced or not.
    pub(crate) fn is_captured(&self, stream: StreamId) -> Result<bool, BackendError> {
        if !self.caps.captures {
            return Ok(false);
        }
        Ok(self.capture_of(stream).is_some() || self.backend.is_capturing(stream)?)
    }

    /// Lets the pools of graphs go that are gone, when all work given until then is complete.
    pub(crate) fn unpin(&self, slow: &mut Slow) -> Result<(), BackendError> {
        let gone = std::mem::take(&mut *self.graphs_gone.lock());
        slow.unpinning.extend(gone.into_iter().map(|pool| Unpinning { pool, events: None }));
        let mut result = Ok(());
        slow.unpinning.retain_mut(|unpinning| match self.is_unpinned(unpinning) {
            Ok(unpinned) => !unpinned,
            Err(error) => {
                result = Err(error);
                true
            }
        });
        result
    }

    /// Whether pools of graphs that are gone are still kept.
    pub(crate) fn keeps_graphs(&self, slow: &Slow) -> bool {
        !slow.unpinning.is_empty() || !self.graphs_gone.lock().is_empty()
    }

    /// Waits on the host for the work that keeps the pools of graphs that are gone. Answers `false` when the time was over first, or when
    /// nothing can be ordered behind some of it.
    pub(crate) fn wait_unpinned(&self, slow: &mut Slow, until: Instant) -> Result<bool, BackendError> {
        self.unpin(slow)?;
        for event in slow.unpinning.iter().filter_map(|unpinning| unpinning.events.as_ref()).flatten() {
            if !self.backend.host_wait(*event, Some(until.saturating_duration_since(Instant::now())))? {
                return Ok(false);
            }
        }
        self.unpin(slow)?;
        Ok(slow.unpinning.is_empty())
    }

    fn is_unpinned(&self, unpinning: &mut Unpinning) -> Result<bool, BackendError> {
        let pool = self.pool(unpinning.pool);
        if unpinning.events.is_none() {
            let streams: Vec<StreamId> = std::iter::once(StreamId(0)).chain(self.open.lock().iter().copied()).collect();
            let mut events = Vec::new();
            for stream in streams {
                match self.backend.record(stream) {
                    Ok(event) => events.push(event),
                    Err(error) => {
                        events.into_iter().for_each(|event| self.backend.forget(event));
                        return if error.is_refusal() { Ok(false) } else { Err(error) };
                    }
                }
            }
            unpinning.events = Some(events);
        }
        let Some(events) = &mut unpinning.events else { return Ok(false) };
        while let Some(event) = events.last() {
            if !self.backend.done(*event)? {
                return Ok(false);
            }
            self.backend.forget(*event);
            events.pop();
        }
        pool.pin(false);
        self.special.fetch_sub(1, SeqCst);
        Ok(true)
    }
}
