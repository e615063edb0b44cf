//! What can happen to a block: one function for each transition, and the lists kept with it.

use super::bins::{Bins, bin_of};
use super::table::Table;
use super::{Heap, State};
use crate::ids::{FenceId, Fences};

impl<N: Copy + Default> Heap<N> {
    /// Takes the first `size` bytes of the larger free block `index`, which stays what it is.
    #[inline]
    pub(super) fn take_front(&mut self, index: u32, size: u64) -> u32 {
        let taken = self.table.add();
        let rest = &mut self.table[index];
        let (offset, prev, region) = (rest.offset, rest.prev, rest.region);
        rest.offset += size;
        rest.size -= size;
        rest.prev = taken;
        let front = &mut self.table[taken];
        (front.offset, front.size, front.prev, front.next) = (offset, size, prev, index);
        (front.region, front.state) = (region, State::Live);
        self.table[prev].next = taken;
        if prev == 0 {
            self.places[region as usize].as_mut().expect("a region of this heap").first = taken;
        }
        taken
    }

    /// Takes the last `size` bytes of the larger free block `index`, which stays what it is.
    #[inline]
    pub(super) fn take_back(&mut self, index: u32, size: u64) -> u32 {
        let taken = self.cut(index, self.table[index].size - size);
        self.table[taken].state = State::Live;
        taken
    }

    /// The free block `index` in `bin` lost `size` bytes: it moves to the bin that suits it.
    #[inline]
    pub(super) fn shrunk(&mut self, index: u32, bin: usize, size: u64) {
        let rest = &self.table[index];
        if rest.fence.is_shared() {
            self.pending -= size;
        }
        let rest_bin = bin_of(rest.size);
        if rest_bin != bin {
            unlink(&mut self.table, &mut self.free, bin, index);
            link(&mut self.table, &mut self.free, rest_bin, index);
        }
    }

    /// The free block `index` had `old` bytes behind the fence `own` and has more behind another now: it moves to the bin that suits it.
    #[inline]
    pub(super) fn grown(&mut self, index: u32, old: u64, own: FenceId, fence: FenceId) {
        let record = &mut self.table[index];
        record.fence = fence;
        if own.is_shared() {
            self.pending -= old;
        }
        if fence.is_shared() {
            self.pending += record.size;
        }
        let (old, new) = (bin_of(old), bin_of(record.size));
        if old != new {
            unlink(&mut self.table, &mut self.free, old, index);
            link(&mut self.table, &mut self.free, new, index);
        }
    }

    /// Cuts the block `index` after `size` bytes into two neighbours; the second's state and fence are the caller's to set.
    #[inline]
    pub(super) fn cut(&mut self, index: u32, size: u64) -> u32 {
        let rest = self.table.add();
        let record = &mut self.table[index];
        debug_assert!(size > 0 && size < record.size);
        let (offset, whole, next, region) = (record.offset, record.size, record.next, record.region);
        record.size = size;
        record.next = rest;
        let second = &mut self.table[rest];
        (second.offset, second.size, second.prev, second.next) = (offset + size, whole - size, index, next);
        second.region = region;
        self.table[next].prev = rest;
        if next == 0 {
            self.places[region as usize].as_mut().expect("a region of this heap").last = rest;
        }
        rest
    }

    /// Joins the next neighbour, which is in no bin, to `index`.
    #[inline(always)]
    pub(super) fn absorb_next(&mut self, index: u32) {
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
        self.table.remove(next);
    }

    /// Joins `size` bytes in front, whose record is given up by the caller and had `prev` before it, to `index`.
    #[inline]
    pub(super) fn absorb_prev(&mut self, index: u32, prev: u32, size: u64) {
        let record = &mut self.table[index];
        record.offset -= size;
        record.size += size;
        record.prev = prev;
        let region = record.region;
        self.table[prev].next = index;
        if prev == 0 {
            self.places[region as usize].as_mut().expect("a region of this heap").first = index;
        }
    }

    /// Takes `[start, start + size)` of the free block `index` out of the bins; what is before and behind stays free.
    pub(super) fn detach(&mut self, index: u32, start: u64, size: u64, fences: &mut impl Fences) -> u32 {
        let (offset, whole) = (self.table[index].offset, self.table[index].size);
        assert!(
            self.table[index].state == State::Free && start >= offset && start + size <= offset + whole,
            "b{index} does not cover {start}+{size}"
        );
        self.remove_free(index);
        let mut taken = index;
        if start > offset {
            taken = self.cut(index, start - offset);
            self.table[taken].fence = fences.copy(self.table[index].fence);
            self.insert_free(index);
        }
        if self.table[taken].size > size {
            let rest = self.cut(taken, size);
            self.table[rest].fence = fences.copy(self.table[taken].fence);
            self.insert_free(rest);
        }
        taken
    }

    #[inline]
    pub(super) fn insert_free(&mut self, index: u32) {
        let record = &mut self.table[index];
        record.state = State::Free;
        if record.fence.is_shared() {
            self.pending += record.size;
        }
        let bin = bin_of(record.size);
        link(&mut self.table, &mut self.free, bin, index);
    }

    #[inline(always)]
    pub(super) fn remove_free(&mut self, index: u32) {
        let record = &self.table[index];
        if record.fence.is_shared() {
            self.pending -= record.size;
        }
        let bin = bin_of(record.size);
        unlink(&mut self.table, &mut self.free, bin, index);
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

#[inline]
fn link<N: Copy + Default>(table: &mut Table<N>, bins: &mut Bins, bin: usize, index: u32) {
    let head = bins.push(bin, index);
    let record = &mut table[index];
    (record.bin_prev, record.bin_next) = (0, head);
    table[head].bin_prev = index;
}

#[inline]
pub(super) fn unlink<N: Copy + Default>(table: &mut Table<N>, bins: &mut Bins, bin: usize, index: u32) {
    let record = &table[index];
    let (prev, next) = (record.bin_prev, record.bin_next);
    table[next].bin_prev = prev;
    if prev != 0 {
        table[prev].bin_next = next;
    } else {
        bins.pop(bin, next);
    }
}
