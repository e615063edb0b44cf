//! Work that is written down now and runs later: open recordings, and captures of a stream with the memory that their graph keeps.
//!
//! * An *open recording* may touch any block: a block dropped while it is open is reused only when it is closed. It is a stream of
//!   its own to the clocks, which nothing can be ordered behind until then; closing it orders the default stream behind it.
//! * A *capture* takes its memory from a pool of its own, whose pages stay where they are until the graph is gone: a graph uses
//!   addresses, again at each launch. Requests of a stream under capture call the driver for growth only.
//!
//! Invariants: a pool is pinned from the start of its capture until work given to any stream before the graph went is complete;
//! `captured` is the number of announced captures under way.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Instant;

use super::core::{Core, Slow};
use super::error::AllocError;
use super::streams::Stream;
use super::{Allocator, Memory};
use crate::backend::BackendError;
use crate::ids::{EventId, PoolId, StreamId};
use crate::policy::PoolConfig;

#[cfg(test)]
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
    pinned: Option<GraphMemory>,
    stream: Stream,
    allocator: Allocator<M>,
}

/// The memory of a captured graph: as long as this lives, its pages stay at their addresses and go to nobody else.
/// Keep it beside the graph, and drop it after the graph.
#[must_use = "the graph's memory is let go when this is dropped"]
pub struct GraphMemory {
    core: Arc<Core>,
    pool: PoolId,
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
    /// they are as long as the [`GraphMemory`] lives. Blocks that the graph uses but that were made before must be kept by their owner.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] where streams cannot be captured; a stream of another allocator; a capture of this stream under
    /// way; too many pools.
    pub fn capture(&self, stream: &Stream) -> Result<Capture<M>, AllocError> {
        if !stream.belongs_to(&self.core) {
            return Err(AllocError::ForeignStream);
        }
        if !self.core.caps.captures {
            return Err(BackendError::Unsupported { call: "capture", backend: self.core.caps.name }.into());
        }
        let pool = self.core.begin_capture(stream.id())?;
        let pinned = Some(GraphMemory { core: self.core.clone(), pool });
        Ok(Capture { pinned, stream: stream.clone(), allocator: self.view(pool) })
    }
}

impl<M: Memory> Capture<M> {
    /// An allocator that takes from the capture's pool.
    pub fn allocator(&self) -> &Allocator<M> {
        &self.allocator
    }

    /// The capture has ended: answers the memory that its graph keeps.
    pub fn end(mut self) -> GraphMemory {
        self.stop();
        self.pinned.take().expect("a capture ends once")
    }

    fn stop(&self) {
        if let Some(pinned) = &self.pinned {
            pinned.core.end_capture(self.stream.id());
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
}

impl Drop for GraphMemory {
    fn drop(&mut self) {
        self.core.graphs_gone.lock().push(self.pool);
    }
}

impl Core {
    fn begin_capture(&self, stream: StreamId) -> Result<PoolId, AllocError> {
        let vacant = {
            // With the slow lock nobody records an event on the stream while it becomes captured.
            let _slow = self.slow.lock();
            let captures = self.captures.lock();
            if captures.iter().any(|(other, _)| *other == stream) {
                return Err(BackendError::Recording { stream }.into());
            }
            let pinned = |id: &PoolId| self.pool(*id).is_pinned();
            let vacant = self.capture_pools.lock().iter().copied().find(|id| !pinned(id));
            vacant.inspect(|id| self.pool(*id).pin(true))
        };
        let pool = match vacant {
            Some(pool) => pool,
            None => {
                let number = self.capture_pools.lock().len() + 1;
                let pool = self.add_pool(&format!("capture {number}"), PoolConfig::default())?;
                self.pool(pool).pin(true);
                self.capture_pools.lock().push(pool);
                pool
            }
        };
        let _slow = self.slow.lock();
        self.captures.lock().push((stream, pool));
        self.captured.fetch_add(1, SeqCst);
        for pool in self.pools() {
            pool.state.lock().clocks.set_recording(stream, true);
        }
        Ok(pool)
    }

    fn end_capture(&self, stream: StreamId) {
        let mut captures = self.captures.lock();
        captures.retain(|(other, _)| *other != stream);
        self.captured.fetch_sub(1, SeqCst);
        for pool in self.pools() {
            pool.state.lock().clocks.set_recording(stream, false);
        }
    }

    /// Where a stream's requests go while it is captured.
    #[cold]
    pub(crate) fn capture_of(&self, stream: StreamId) -> Option<PoolId> {
        self.captures.lock().iter().find(|(other, _)| *other == stream).map(|(_, pool)| *pool)
    }

    /// Whether a stream is being captured, announced or not.
    pub(crate) fn is_captured(&self, stream: StreamId) -> Result<bool, BackendError> {
        if !self.caps.captures {
            return Ok(false);
        }
        let announced = self.captured.load(Relaxed) > 0 && self.capture_of(stream).is_some();
        Ok(announced || self.backend.is_capturing(stream)?)
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
        Ok(true)
    }
}

impl Slow {
    /// Events that nobody waits for any more.
    pub(crate) fn take_unpinning(&mut self) -> impl Iterator<Item = EventId> + '_ {
        self.unpinning.drain(..).filter_map(|unpinning| unpinning.events).flatten()
    }
}
