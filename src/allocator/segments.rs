//! Memory in segments: how large they are made, growth by whole segments, and their return when nothing in them is in use.

use super::core::{Core, Slow};
use super::history::Happening;
use super::ladder::{Climb, Climbed};
use crate::backend::BackendError;
use crate::ids::PoolId;
use crate::policy::{OnLimit, roomy_segment, segment_size};
use crate::snapshot::{Action, Outcome, Rung};

/// Adds a segment of `size` bytes to a pool.
pub(super) fn grow(core: &Core, id: PoolId, size: u64) -> Result<(), BackendError> {
    let region = core.backend.grow_segment(size)?;
    let pool = core.pool(id);
    let mut state = pool.state.lock();
    if state.add_region(region, None).is_none() {
        drop(state);
        core.backend.release(region.id)?;
        return Err(BackendError::OutOfMemory { call: "grow_segment", requested: size });
    }
    core.count_reserved(pool, region.size);
    state.happened(Happening::to_memory(Action::Grow, region.size, region.base));
    pool.meter.addresses(state.addresses());
    Ok(())
}

/// Whether a segment is wholly free but not yet complete.
pub(super) fn has_unfinished_empty(core: &Core, id: PoolId) -> bool {
    core.pool(id).state.lock().has_unfinished_empty()
}

/// Releases wholly free segments whose work is complete, the smallest that suffices first, until `wanted` bytes went back or
/// none is left that keeps them within `most`. Answers the bytes.
pub(super) fn release_empty(core: &Core, id: PoolId, wanted: u64, most: u64) -> Result<u64, BackendError> {
    let pool = core.pool(id);
    let mut released = 0;
    if pool.is_pinned() {
        return Ok(0);
    }
    while released < wanted {
        let (region, place, size, index) = {
            let mut guard = pool.state.lock();
            let state = &mut *guard;
            let Some((place, index)) = state.complete_empty(wanted - released, most - released) else { break };
            let size = state.heap.extent(place).0;
            let index = state.heap.hold(index, 0, size, &mut state.clocks);
            pool.meter.pending_is(state.heap.pending());
            (state.heap.region(place), place, size, index)
        };
        let result = core.backend.release(region);
        let mut guard = pool.state.lock();
        let state = &mut *guard;
        if let Err(error) = result {
            state.heap.unhold(index, &mut state.clocks);
            pool.meter.pending_is(state.heap.pending());
            return Err(error);
        }
        state.heap.remove_region(place, &mut state.clocks);
        core.count_returned(pool, size);
        state.happened(Happening::to_memory(Action::Return, size, state.bases[usize::from(place)]));
        released += size;
    }
    Ok(released)
}

impl Climb<'_> {
    /// Growth by a segment: of the usual size, or of the request's own where there is no room for that.
    pub(super) fn grow_segment(&mut self, slow: &mut Slow, rung: Rung, room: u64) -> Climbed {
        let segment_min = self.core.config.read().segment_min.min(self.core.caps.region_max);
        let Some(least) = segment_size(self.need.size, segment_min, self.core.quantum) else { return Ok(None) };
        // What a limit forbids in any case empties no cache.
        if rung == Rung::Grow && !self.captured && !self.core.forbids(self.id, least) {
            self.make_room_for_segment(slow, least)?;
        }
        let room = if rung == Rung::Grow { self.room() } else { room };
        // Where the limit leaves less than a segment of the usual size, one of the request's own may still do.
        let small = segment_size(self.need.size, 0, self.core.quantum).filter(|_| rung == Rung::Grow && least > room);
        let least = small.unwrap_or(least);
        let spare = self.slack_room().min(room).min(self.core.caps.region_max);
        let size = least.max(roomy_segment(self.crest(), spare, self.core.quantum));
        if least > room {
            self.note(rung, Outcome::NeedsMore { needed: least, room });
            return Ok(None);
        }
        let own = segment_size(self.need.size, 0, self.core.quantum).unwrap_or(least);
        let mut grown = grow(self.core, self.id, size);
        // Where the device has less than a segment of the usual size left, one of the request's own may still do.
        let mut refused = size;
        for smaller in [least, own] {
            if smaller < refused && matches!(&grown, Err(error) if error.is_out_of_memory()) {
                refused = smaller;
                grown = grow(self.core, self.id, smaller);
            }
        }
        match grown {
            Ok(()) => Ok(self.search(self.now())),
            Err(error) if error.is_out_of_memory() => {
                self.note(rung, Outcome::Refused { reason: error.to_string() });
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Wholly free segments go back first, all of them, when growth would pass what was ever live: their memory is better spent
    /// on one segment that fits. Where the driver waits at a release anyway, their work is waited for.
    fn make_room_for_segment(&mut self, slow: &mut Slow, size: u64) -> Result<(), BackendError> {
        let over = size.saturating_sub(self.slack_room());
        if over == 0 {
            return Ok(());
        }
        let waits = self.core.caps.release_waits && self.on_limit == OnLimit::Climb;
        if waits && has_unfinished_empty(self.core, self.id) {
            let until = self.patience();
            self.core.wait_for_all(self.id, slow, until)?;
        }
        release_empty(self.core, self.id, u64::MAX, u64::MAX)?;
        Ok(())
    }
}
