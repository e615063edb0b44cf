//! The heap's invariants, recomputed from scratch.

use super::{Heap, State, bin_of, bins};
use crate::units::align_down;

/// A broken invariant, with the ids that show it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("heap invariant broken: {0}")]
pub struct Broken(pub String);

macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(Broken(format!($($text)*)));
        }
    };
}

impl<N: Copy + Default> Heap<N> {
    /// Recomputes every invariant of the module's list. Linear in the number of blocks.
    ///
    /// # Errors
    /// The first invariant found broken.
    pub fn check(&self) -> Result<(), Broken> {
        let (mut free, mut voids, mut pending, mut seen) = (0usize, 0usize, 0u64, 1usize);
        for (slot, place) in self.places.iter().enumerate() {
            let Some(place) = place else { continue };
            let (mut index, mut prev, mut at) = (place.first, 0, 0);
            while index != 0 {
                let record = &self.table[index];
                ensure!(
                    record.region as usize == slot,
                    "b{index} is linked in slot {slot}, not in its {}",
                    record.region
                );
                ensure!(record.offset == at, "b{index} begins at {}, its neighbour ends at {at}", record.offset);
                ensure!(record.prev == prev, "b{index} has {} before it, not {prev}", record.prev);
                ensure!(
                    record.size > 0 && record.size.is_multiple_of(self.quantum()),
                    "b{index} has {} bytes",
                    record.size
                );
                let before = if prev == 0 { State::Vacant } else { self.table[prev].state };
                match record.state {
                    State::Free => {
                        ensure!(before != State::Free, "b{prev} and b{index} are neighbours and free");
                        free += 1;
                        pending += if record.fence.is_shared() { record.size } else { 0 };
                    }
                    State::Void => {
                        ensure!(before != State::Void, "b{prev} and b{index} are neighbours and void");
                        voids += 1;
                    }
                    State::Vacant => ensure!(false, "b{index} is vacant but linked"),
                    State::Live | State::Held | State::Filling | State::Retired => {}
                }
                if matches!(record.state, State::Void | State::Filling | State::Retired) {
                    let page = place.page.unwrap_or(0);
                    ensure!(page > 0, "b{index} is {:?} in a segment", record.state);
                    let whole = align_down(record.offset, page) == record.offset && record.size.is_multiple_of(page);
                    ensure!(whole, "b{index} is {:?} but not whole pages", record.state);
                }
                seen += 1;
                at = match at.checked_add(record.size) {
                    Some(end) if end <= place.size => end,
                    _ => return Err(Broken(format!("b{index} passes the end of {:?}", place.id))),
                };
                ensure!(record.next != 0 || index == place.last, "b{index} ends {:?}, not b{}", place.id, place.last);
                (prev, index) = (index, record.next);
            }
            ensure!(at == place.size, "the blocks of {:?} cover {at} of {} bytes", place.id, place.size);
        }
        self.check_bins("free", &self.free, State::Free, free)?;
        self.check_bins("void", &self.voids, State::Void, voids)?;
        ensure!(pending == self.pending, "pending is {}, the blocks say {pending}", self.pending);
        let records = self.table.records.len();
        ensure!(seen + self.table.vacant_count() == records, "{seen} blocks of {records} records, others lost");
        Ok(())
    }

    fn check_bins(&self, name: &str, bins: &bins::Bins, state: State, expected: usize) -> Result<(), Broken> {
        ensure!(bins.consistent(), "the bitmaps of the {name} bins");
        let mut count = 0;
        for bin in 0..bins::BINS {
            let mut prev = 0;
            let mut index = bins.head(bin);
            while index != 0 {
                let record = &self.table[index];
                ensure!(record.state == state, "b{index} is in a {name} bin while {:?}", record.state);
                ensure!(
                    bin_of(record.size >> self.quantum_shift) == bin,
                    "b{index} of {} bytes in {name} bin {bin}",
                    record.size
                );
                ensure!(prev == 0 || record.bin_prev == prev, "b{index} has {} before it in its bin", record.bin_prev);
                count += 1;
                ensure!(count <= expected, "more blocks in the {name} bins than {name} blocks");
                (prev, index) = (index, record.bin_next);
            }
        }
        ensure!(count == expected, "{count} blocks in the {name} bins, {expected} are {name}");
        Ok(())
    }
}
