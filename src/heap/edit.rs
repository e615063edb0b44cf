//! What can happen to a block off the hot path: one function for each transition, and the lists kept with it.

use super::{Heap, State};
use crate::ids::Fences;

impl<N: Copy + Default> Heap<N> {
    /// Cuts the block `index` after `size` bytes into two neighbours; the second's state and fence are the caller's to set.
    pub(super) fn cut(&mut self, index: u32, size: u64) -> u32 {
        let rest = self.table.add();
        self.parts().cut(index, rest, size);
        rest
    }

    /// Joins the next neighbour, which is in no bin, to `index`.
    fn absorb_next(&mut self, index: u32) {
        let next = self.table[index].next;
        let (size, after) = (self.table[next].size, self.table[next].next);
        let record = &mut self.table[index];
        record.size += size;
        record.next = after;
        let region = record.region;
        self.table[after].prev = index;
        if after == 0 {
            self.places[region as usize].as_mut().expect("a region of this heap").last = index;
        }
        self.parts().vacate(next);
    }

    /// Takes `[start, start + size)` of the free block `index` out of the bins; what is before and behind stays free.
    pub(super) fn detach(&mut self, index: u32, start: u64, size: u64, fences: &mut impl Fences) -> u32 {
        let (offset, whole) = (self.table[index].offset, self.table[index].size);
        assert!(
            self.table[index].state == State::Free && start >= offset && start + size <= offset + whole,
            "b{index} does not cover {start}+{size}"
        );
        self.parts().remove_free(index);
        let mut taken = index;
        if start > offset {
            taken = self.cut(index, start - offset);
            self.table[taken].fence = fences.copy(self.table[index].fence);
            self.parts().insert_free(index);
        }
        if self.table[taken].size > size {
            let rest = self.cut(taken, size);
            self.table[rest].fence = fences.copy(self.table[taken].fence);
            self.parts().insert_free(rest);
        }
        taken
    }

    pub(super) fn insert_void(&mut self, index: u32) {
        let head = std::mem::replace(&mut self.voids, index);
        let record = &mut self.table[index];
        record.state = State::Void;
        (record.bin_prev, record.bin_next) = (0, head);
        self.table[head].bin_prev = index;
    }

    pub(super) fn remove_void(&mut self, index: u32) {
        let (prev, next) = (self.table[index].bin_prev, self.table[index].bin_next);
        self.table[next].bin_prev = prev;
        match prev {
            0 => self.voids = next,
            _ => self.table[prev].bin_next = next,
        }
    }

    /// Makes a block, which is in no bin, a void, joined with its void neighbours.
    pub(super) fn make_void(&mut self, index: u32) {
        let record = &mut self.table[index];
        record.generation = record.generation.wrapping_add(1);
        let (prev, next) = (record.prev, record.next);
        let mut index = index;
        if self.table[next].state == State::Void {
            self.remove_void(next);
            self.absorb_next(index);
        }
        if self.table[prev].state == State::Void {
            self.remove_void(prev);
            index = prev;
            self.absorb_next(index);
        }
        self.insert_void(index);
    }
}
