//! What has been done with one buffer on which streams, so that each use is ordered behind those that it must follow.
//!
//! Knows nothing of bytes. Nothing is recorded when work is given to a stream: an event is recorded on the other stream when a use on
//! this one must follow it. That is in time, because a use that must be followed was given to its stream before the buffer could
//! be borrowed again; only halves of one split are borrowed at once, and have ways of their own ([`Use::PartRead`], [`Use::PartWrite`]).
//!
//! A use that is captured happens again at each launch of its graph, which nobody tells: its stream is followed by every use from then
//! on, as of then.
//!
//! Invariants: every registered stream on which the buffer was written, or read since the last write, is in `writers`, in `readers`, or
//! is followed by one that is; streams in `behind` follow all writers; a stream in `captured` stays there.

use cudarc::driver::{CudaStream, DriverError, SyncOnDrop, sys};
use parking_lot::Mutex;

use super::cuda::OnStreams;
use crate::allocator::Block;
use crate::backend::BackendError;
use crate::backend::cuda::Streams;
use crate::ids::StreamId;

/// How a buffer is about to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Read by borrowers who share it.
    Read,
    /// Written by the only one who has it.
    Write,
    /// Read by a half of a split, whose other half may be written at the same time.
    PartRead,
    /// Written by a half of a split.
    PartWrite,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Uses {
    writers: Vec<StreamId>,
    readers: Vec<StreamId>,
    behind: Vec<StreamId>,
    captured: Vec<StreamId>,
}

/// The uses of one buffer.
#[derive(Debug, Default)]
pub(super) struct Ordering {
    uses: Mutex<Uses>,
}

/// A stream that is about to use a buffer.
enum User<'a> {
    Known(StreamId),
    Unknown(&'a CudaStream),
}

impl Uses {
    /// What a use must follow; `by` is not among it.
    fn before(&self, how: Use, by: Option<StreamId>) -> Vec<StreamId> {
        let reads = matches!(how, Use::Read | Use::PartRead);
        let is_behind = reads && by.is_some_and(|by| self.behind.contains(&by));
        let writers = if is_behind { &[][..] } else { &self.writers };
        let readers = if reads { &[][..] } else { &self.readers };
        let mut before: Vec<StreamId> = writers.iter().chain(readers).chain(&self.captured).copied().collect();
        before.sort_unstable();
        before.dedup();
        before.retain(|stream| Some(*stream) != by);
        before
    }

    /// A use on `by`, which follows all that it must if `ordered`.
    fn note(&mut self, how: Use, by: StreamId, ordered: bool) {
        let add = |list: &mut Vec<StreamId>| {
            if !list.contains(&by) {
                list.push(by);
            }
        };
        match how {
            Use::Read => {
                add(&mut self.readers);
                if ordered {
                    add(&mut self.behind);
                }
            }
            // Whoever follows this one follows all before it.
            Use::Write if ordered => {
                let captured = std::mem::take(&mut self.captured);
                *self = Uses { writers: vec![by], readers: Vec::new(), behind: vec![by], captured };
            }
            Use::PartRead => add(&mut self.readers),
            Use::Write | Use::PartWrite => {
                add(&mut self.writers);
                self.behind.clear();
            }
        }
    }

    fn note_captured(&mut self, by: StreamId) {
        if !self.captured.contains(&by) {
            self.captured.push(by);
        }
    }

    /// The host has waited for what such a use must follow.
    fn note_wait(&mut self, how: Use) {
        self.writers.clear();
        // Borrowers who share it may have begun reads meanwhile, but no writes.
        if matches!(how, Use::Write | Use::PartWrite) {
            self.readers.clear();
            self.behind.clear();
        }
    }
}

impl Ordering {
    /// Of a block that nothing is known about: all streams that it may be in use on are taken to have written it.
    pub(super) fn behind_all(streams: Vec<StreamId>) -> Ordering {
        Ordering { uses: Mutex::new(Uses { writers: streams, ..Uses::default() }) }
    }

    /// Orders `stream` behind what a use must follow and notes the use. The guard is to be dropped when the work has been given to
    /// the stream: for a stream without a number it waits for that.
    pub(super) fn begin<'a, M: OnStreams>(
        &self,
        block: &Block<M>,
        how: Use,
        stream: &'a CudaStream,
    ) -> (SyncOnDrop<'a>, Result<(), BackendError>) {
        let Some(core) = block.core() else { return (SyncOnDrop::Sync(None), Ok(())) };
        let streams = M::streams(core);
        let captured = streams.captures(stream);
        let known = core.with_stream(
            |id| streams.is_stream(id, stream),
            |id| {
                block.used_on_number(id);
                let mut uses = self.uses.lock();
                let ordered = follow(streams, &User::Known(id), uses.before(how, Some(id)));
                uses.note(how, id, ordered.is_ok());
                if !matches!(captured, Ok(false)) {
                    uses.note_captured(id);
                }
                ordered
            },
        );
        if let Some(ordered) = known {
            return (SyncOnDrop::Sync(None), ordered.and(captured.map(drop)));
        }
        if let Err(error) = captured.and_then(refuse_unknown) {
            // Waiting for it would end its capture.
            return (SyncOnDrop::Sync(None), Err(error));
        }
        let before = self.uses.lock().before(how, None);
        (SyncOnDrop::sync_stream(stream), follow(streams, &User::Unknown(stream), before))
    }

    /// As [`Ordering::begin`], for callers who cannot be given an error: it is left with the context, for the next call there.
    pub(super) fn begin_or_leave_error<'a, M: OnStreams>(
        &self,
        block: &Block<M>,
        how: Use,
        stream: &'a CudaStream,
    ) -> SyncOnDrop<'a> {
        let (guard, ordered) = self.begin(block, how, stream);
        leave_error(stream, ordered);
        guard
    }

    /// Waits on the host until the uses are complete that a use by the CPU must follow.
    pub(super) fn wait<M: OnStreams>(&self, block: &Block<M>, how: Use) -> Result<(), BackendError> {
        let Some(core) = block.core() else { return Ok(()) };
        let before = self.uses.lock().before(how, None);
        wait_for(M::streams(core), &before)?;
        self.uses.lock().note_wait(how);
        Ok(())
    }
}

/// Leaves what went wrong with a stream's context, for the next call of `cudarc` there.
pub(super) fn leave_error(stream: &CudaStream, result: Result<(), BackendError>) {
    stream.context().record_err(result.map_err(|error| DriverError(result_of(&error))));
}

/// A capture of a stream without a number can be followed by nothing, and follow nothing.
fn refuse_unknown(captured: bool) -> Result<(), BackendError> {
    match captured {
        true => Err(BackendError::Unsupported { call: "capture of a stream without a number", backend: "cuda" }),
        false => Ok(()),
    }
}

/// Waits on the host for all that these streams were given until now.
pub(super) fn wait_for(streams: &dyn Streams, before: &[StreamId]) -> Result<(), BackendError> {
    before.iter().try_for_each(|stream| {
        let event = streams.record(*stream)?;
        let waited = streams.host_wait(event, None);
        streams.forget(event);
        waited.map(drop)
    })
}

/// Makes a stream wait for all that others were given until now. One that is being captured cannot wait for work outside the graph, so
/// the host waits for that instead. Goes on after a failure: as much order as can be had.
fn follow(streams: &dyn Streams, user: &User<'_>, before: Vec<StreamId>) -> Result<(), BackendError> {
    let wait = |other| {
        let event = streams.record(other)?;
        let waited = match user {
            User::Known(id) => streams.stream_wait(*id, event),
            User::Unknown(stream) => streams.foreign_wait(stream, event),
        };
        let waited = match waited {
            Err(BackendError::Recording { .. }) => streams.host_wait(event, None).map(drop),
            waited => waited,
        };
        streams.forget(event);
        waited
    };
    let failures: Vec<BackendError> = before.into_iter().filter_map(|other| wait(other).err()).collect();
    failures.into_iter().next().map_or(Ok(()), Err)
}

/// The driver's word for an error, for callers who can be told only that.
fn result_of(error: &BackendError) -> sys::CUresult {
    use sys::CUresult;
    match error {
        BackendError::OutOfMemory { .. } => CUresult::CUDA_ERROR_OUT_OF_MEMORY,
        BackendError::Recording { .. } => CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
        BackendError::Unsupported { .. } => CUresult::CUDA_ERROR_NOT_SUPPORTED,
        BackendError::Lost { .. } => CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED,
        BackendError::TooLarge { .. } | BackendError::Contract { .. } => CUresult::CUDA_ERROR_INVALID_VALUE,
        BackendError::Driver { .. } => CUresult::CUDA_ERROR_UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: StreamId = StreamId(1);
    const B: StreamId = StreamId(2);
    const C: StreamId = StreamId(3);

    /// A use that could be ordered.
    fn on(uses: &mut Uses, how: Use, by: StreamId) -> Vec<StreamId> {
        let before = uses.before(how, Some(by));
        uses.note(how, by, true);
        before
    }

    #[test]
    fn reads_follow_the_last_write_and_writes_follow_all() {
        let mut uses = Uses::default();
        assert_eq!(on(&mut uses, Use::Write, A), []);
        assert_eq!(on(&mut uses, Use::Read, A), []);
        assert_eq!(on(&mut uses, Use::Read, B), [A]);
        assert_eq!(on(&mut uses, Use::Read, B), [], "once is enough");
        assert_eq!(on(&mut uses, Use::Read, C), [A], "readers do not follow each other");
        assert_eq!(on(&mut uses, Use::Write, C), [A, B]);
        assert_eq!(on(&mut uses, Use::Write, C), []);
        assert_eq!(on(&mut uses, Use::Read, A), [C], "what it followed before was another write");
    }

    #[test]
    fn halves_of_a_split_forget_nobody() {
        let mut uses = Uses::default();
        on(&mut uses, Use::Write, A);
        on(&mut uses, Use::Read, B);
        assert_eq!(on(&mut uses, Use::PartWrite, B), [A]);
        assert_eq!(on(&mut uses, Use::PartWrite, C), [A, B]);
        // The write on C may be given to it after this read began, so the read says nothing about a later one.
        assert_eq!(on(&mut uses, Use::PartRead, A), [B, C]);
        assert_eq!(on(&mut uses, Use::Read, A), [B, C]);
        assert_eq!(on(&mut uses, Use::Write, A), [B, C]);
        assert_eq!(on(&mut uses, Use::Read, B), [A]);
    }

    #[test]
    fn what_was_captured_is_followed_for_ever() {
        let mut uses = Uses::default();
        on(&mut uses, Use::Write, A);
        uses.note_captured(A);
        assert_eq!(on(&mut uses, Use::Read, A), []);
        for _ in 0..2 {
            assert_eq!(on(&mut uses, Use::Read, B), [A]);
        }
        assert_eq!(on(&mut uses, Use::Write, B), [A]);
        assert_eq!(on(&mut uses, Use::Read, C), [A, B]);
        uses.note_wait(Use::Write);
        assert_eq!(uses.before(Use::Read, None), [A], "it may have been launched again");
    }

    #[test]
    fn what_could_not_be_ordered_is_not_believed_to_be() {
        let mut uses = Uses::default();
        on(&mut uses, Use::Write, A);
        uses.note(Use::Read, B, false);
        assert_eq!(uses.before(Use::Read, Some(B)), [A]);
        uses.note(Use::Write, C, false);
        assert_eq!(uses.before(Use::Write, None), [A, B, C]);
    }
}
