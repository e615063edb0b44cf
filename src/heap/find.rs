//! Finding a free block: the likely ones, in constant time.

use super::bins::bin_of;
use super::table::Record;
use super::{Heap, PROBES, SCAN};
use crate::ids::{Access, Fences};

impl<N: Copy + Default> Heap<N> {
    /// A free block that fits, and its bin: the best of a few of the own bin, else the first usable one above.
    #[inline(always)]
    pub(super) fn find(&self, size: u64, access: Access, fences: &impl Fences) -> Option<(u32, usize)> {
        let bin = bin_of(size);
        let (mut best, mut best_size) = (0, u64::MAX);
        let mut index = self.free.head(bin);
        let mut left = SCAN;
        while index != 0 && left > 0 {
            let record = &self.table[index];
            if record.size >= size && record.size < best_size && fences.passes(record.fence, access) {
                if record.size == size {
                    return Some((index, bin));
                }
                (best, best_size) = (index, record.size);
            }
            index = record.bin_next;
            left -= 1;
        }
        if best != 0 {
            return Some((best, bin));
        }
        let bin = self.free.next(bin + 1)?;
        let head = self.free.head(bin);
        if fences.passes(self.table[head].fence, access) {
            return Some((head, bin));
        }
        self.find_above(bin, access, fences)
    }

    /// The first usable block among a few of the bins from `bin` up, which is not empty; all of them fit.
    #[inline(never)]
    fn find_above(&self, mut bin: usize, access: Access, fences: &impl Fences) -> Option<(u32, usize)> {
        let mut probes = PROBES;
        loop {
            let mut index = self.free.head(bin);
            while index != 0 {
                let record = &self.table[index];
                if fences.passes(record.fence, access) {
                    return Some((index, bin));
                }
                probes -= 1;
                if probes == 0 {
                    return None;
                }
                index = record.bin_next;
            }
            bin = self.free.next(bin + 1)?;
        }
    }

    /// The first of a few blocks of one bin that passes a test.
    pub(super) fn scan(&self, bin: usize, mut test: impl FnMut(&Record<N>) -> bool) -> Option<u32> {
        self.list(self.free.head(bin)).take(SCAN).find(|index| test(&self.table[*index]))
    }

    pub(super) fn list(&self, head: u32) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors((head != 0).then_some(head), |index| {
            let next = self.table[*index].bin_next;
            (next != 0).then_some(next)
        })
    }
}
