//! The heap's invariants, recomputed from scratch.

use super::bins::{self, bin_of};
use super::table::Record;
use super::{Heap, State};
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
        self.check_bins(free)?;
        self.check_list(self.voids, voids, "void", |record| record.state == State::Void)?;
        ensure!(pending == self.pending, "pending is {}, the blocks say {pending}", self.pending);
        let records = self.table.records.len();
        ensure!(seen + self.table.vacant_count() == records, "{seen} blocks of {records} records, others lost");
        Ok(())
    }

    fn check_bins(&self, expected: usize) -> Result<(), Broken> {
        ensure!(self.free.consistent(), "the bitmaps of the bins");
        let mut left = expected;
        for bin in 0..bins::BINS {
            let suits = |record: &Record<N>| record.state == State::Free && bin_of(record.size) == bin;
            let count = self.list(self.free.head(bin)).take(left + 1).count();
            ensure!(count <= left, "more blocks in bins than free blocks, in bin {bin}");
            self.check_list(self.free.head(bin), count, "bin", suits)?;
            left -= count;
        }
        ensure!(left == 0, "{left} of {expected} free blocks are in no bin");
        Ok(())
    }

    fn check_list(
        &self,
        head: u32,
        expected: usize,
        name: &str,
        suits: impl Fn(&Record<N>) -> bool,
    ) -> Result<(), Broken> {
        let (mut count, mut prev) = (0, 0);
        for index in self.list(head).take(expected + 1) {
            let record = &self.table[index];
            ensure!(suits(record), "b{index} of {} bytes is in a {name} list while {:?}", record.size, record.state);
            ensure!(prev == 0 || record.bin_prev == prev, "b{index} has {} before it in its list", record.bin_prev);
            (count, prev) = (count + 1, index);
        }
        ensure!(count == expected, "a {name} list has {count} blocks or more, not {expected}");
        Ok(())
    }
}
