//! Memory in segments: growth by whole segments, and their return when nothing in them is in use.

use super::core::Core;
use crate::backend::BackendError;
use crate::ids::PoolId;

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
        released += size;
    }
    Ok(released)
}
