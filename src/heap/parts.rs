//! The transitions of the hot path: a block taken, a block put back, and the bins and links kept with it.
//!
//! They work on the parts of a heap borrowed apart, so that the records' address and number are read once for a whole
//! operation instead of behind every store.

use super::bins::{Bins, bin_of};
use super::table::{Record, State};
use super::{Heap, Place};
use crate::ids::{FenceId, Fences};

/// What a heap consists of, borrowed apart.
pub(super) struct Parts<'a, N> {
    records: &'a mut [Record<N>],
    vacant: &'a mut u32,
    free: &'a mut Bins,
    places: &'a mut Vec<Option<Place>>,
    pending: &'a mut u64,
}

impl<N: Copy + Default> Heap<N> {
    #[inline(always)]
    pub(super) fn parts(&mut self) -> Parts<'_, N> {
        Parts {
            records: &mut self.table.records,
            vacant: &mut self.table.vacant,
            free: &mut self.free,
            places: &mut self.places,
            pending: &mut self.pending,
        }
    }
}

impl<N: Copy + Default> Parts<'_, N> {
    #[inline(always)]
    pub(super) fn at(&mut self, index: u32) -> &mut Record<N> {
        &mut self.records[index as usize]
    }

    #[inline(always)]
    fn state(&self, index: u32) -> State {
        self.records[index as usize].state
    }

    /// The free block `index` in `bin` is live from now on, whole.
    #[inline(always)]
    pub(super) fn take_whole(&mut self, index: u32, bin: usize, fences: &mut impl Fences) {
        let record = self.at(index);
        record.state = State::Live;
        let (fence, size) = (record.fence, record.size);
        if fence.is_shared() {
            *self.pending -= size;
        }
        fences.release(fence);
        self.unlink(bin, index);
    }

    /// The first `size` bytes of the larger free block `index` become the block `taken`, a vacant record.
    #[inline(always)]
    pub(super) fn take_front(&mut self, index: u32, taken: u32, size: u64) {
        let rest = self.at(index);
        let (offset, prev, region) = (rest.offset, rest.prev, rest.region);
        rest.offset += size;
        rest.size -= size;
        rest.prev = taken;
        let front = self.at(taken);
        (front.offset, front.size, front.prev, front.next) = (offset, size, prev, index);
        (front.region, front.state) = (region, State::Live);
        self.at(prev).next = taken;
        if prev == 0 {
            set_first(self.places, region, taken);
        }
    }

    /// Cuts the block `index` after `size` bytes; what is behind becomes the block `rest`, a vacant record, whose state and fence
    /// are the caller's to set.
    #[inline(always)]
    pub(super) fn cut(&mut self, index: u32, rest: u32, size: u64) {
        let record = self.at(index);
        debug_assert!(size > 0 && size < record.size);
        let (offset, whole, next, region) = (record.offset, record.size, record.next, record.region);
        record.size = size;
        record.next = rest;
        let second = self.at(rest);
        (second.offset, second.size, second.prev, second.next) = (offset + size, whole - size, index, next);
        second.region = region;
        self.at(next).prev = rest;
        if next == 0 {
            set_last(self.places, region, rest);
        }
    }

    /// The free block `index` in `bin` lost `size` bytes: it moves to the bin that suits it.
    #[inline(always)]
    pub(super) fn shrunk(&mut self, index: u32, bin: usize, size: u64) {
        let rest = self.at(index);
        let (fence, rest_bin) = (rest.fence, bin_of(rest.size));
        if fence.is_shared() {
            *self.pending -= size;
        }
        if rest_bin != bin {
            self.unlink(bin, index);
            self.link(rest_bin, index);
        }
    }

    /// Frees the block `index` under `fence`, joined with its free neighbours. Answers the free block it became part of.
    #[inline(always)]
    pub(super) fn coalesce(&mut self, index: u32, mut fence: FenceId, fences: &mut impl Fences) -> u32 {
        let record = self.at(index);
        let (prev, next, size, offset, region) = (record.prev, record.next, record.size, record.offset, record.region);
        if self.state(prev) == State::Free {
            let (mut size, mut after) = (size, next);
            if self.state(next) == State::Free {
                let behind = self.at(next);
                (size, after) = (size + behind.size, behind.next);
                fence = fences.join(fence, behind.fence);
                self.remove_free(next);
                self.vacate(next);
            }
            self.vacate(index);
            let before = self.at(prev);
            let (old, own) = (before.size, before.fence);
            before.size += size;
            before.next = after;
            self.at(after).prev = prev;
            if after == 0 {
                set_last(self.places, region, prev);
            }
            self.grown(prev, old, own, fences.join(fence, own));
            return prev;
        }
        if self.state(next) == State::Free {
            let behind = self.at(next);
            let (old, own) = (behind.size, behind.fence);
            (behind.offset, behind.size, behind.prev) = (offset, old + size, prev);
            self.at(prev).next = next;
            if prev == 0 {
                set_first(self.places, region, next);
            }
            self.vacate(index);
            self.grown(next, old, own, fences.join(fence, own));
            return next;
        }
        let record = self.at(index);
        record.generation = record.generation.wrapping_add(1);
        record.fence = fence;
        self.insert_free(index);
        index
    }

    /// The free block `index` had `old` bytes behind the fence `own` and has more behind another now: it moves to the bin that suits it.
    #[inline(always)]
    fn grown(&mut self, index: u32, old: u64, own: FenceId, fence: FenceId) {
        let record = self.at(index);
        record.fence = fence;
        let size = record.size;
        if own.is_shared() {
            *self.pending -= old;
        }
        if fence.is_shared() {
            *self.pending += size;
        }
        let (old, new) = (bin_of(old), bin_of(size));
        if old != new {
            self.unlink(old, index);
            self.link(new, index);
        }
    }

    #[inline(always)]
    pub(super) fn insert_free(&mut self, index: u32) {
        let record = self.at(index);
        record.state = State::Free;
        let (fence, size) = (record.fence, record.size);
        if fence.is_shared() {
            *self.pending += size;
        }
        self.link(bin_of(size), index);
    }

    #[inline(always)]
    pub(super) fn remove_free(&mut self, index: u32) {
        let record = self.at(index);
        let (fence, size) = (record.fence, record.size);
        if fence.is_shared() {
            *self.pending -= size;
        }
        self.unlink(bin_of(size), index);
    }

    #[inline(always)]
    fn link(&mut self, bin: usize, index: u32) {
        let head = self.free.push(bin, index);
        let record = self.at(index);
        (record.bin_prev, record.bin_next) = (0, head);
        self.at(head).bin_prev = index;
    }

    #[inline(always)]
    fn unlink(&mut self, bin: usize, index: u32) {
        let record = self.at(index);
        let (prev, next) = (record.bin_prev, record.bin_next);
        self.at(next).bin_prev = prev;
        if prev != 0 {
            self.at(prev).bin_next = next;
        } else {
            self.free.pop(bin, next);
        }
    }

    /// Gives a record up.
    #[inline(always)]
    pub(super) fn vacate(&mut self, index: u32) {
        let vacant = std::mem::replace(self.vacant, index);
        let record = self.at(index);
        record.state = State::Vacant;
        record.generation = record.generation.wrapping_add(1);
        record.bin_next = vacant;
    }
}

// Not methods: what they are given by reference stays in registers otherwise.

#[cold]
#[inline(never)]
fn set_first(places: &mut [Option<Place>], region: u16, index: u32) {
    places[usize::from(region)].as_mut().expect("a region of this heap").first = index;
}

#[cold]
#[inline(never)]
fn set_last(places: &mut [Option<Place>], region: u16, index: u32) {
    places[usize::from(region)].as_mut().expect("a region of this heap").last = index;
}
