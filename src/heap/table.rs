//! The records of all blocks, in one slab. Index 0 is a sentinel that no block uses, so that links need no test for "none".
//!
//! A record's generation changes whenever its block is freed or the record is given up: a [`BlockId`] names one allocation.

use crate::ids::{BlockId, FenceId};

/// What a block is. Every byte of a region belongs to exactly one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The record is not in use.
    Vacant,
    /// Backed, owned by nobody, in a bin.
    Free,
    /// Owned by a handle.
    Live,
    /// Backed, taken out of its bin by a slow rung while the backend works on it.
    Held,
    /// Nothing behind it, in the list of voids.
    Void,
    /// Nothing behind it yet: taken by a slow rung while the backend puts memory there.
    Filling,
    /// The old address of pages that moved on: still mapped until its fence is complete.
    Retired,
}

/// One block: where it is, what it is, and what its owner noted about it.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct Record<N> {
    pub offset: u64,
    pub size: u64,
    /// Neighbours by address within the region; 0 at the ends.
    pub prev: u32,
    pub next: u32,
    /// Neighbours in the bin (free blocks), in the list of voids, or in the slab's list of vacant records.
    pub bin_prev: u32,
    pub bin_next: u32,
    pub generation: u32,
    pub region: u16,
    pub state: State,
    /// Meaningful for free, held and retired blocks.
    pub fence: FenceId,
    /// Meaningful for live blocks.
    pub note: N,
}

/// The slab of records.
pub(crate) struct Table<N> {
    pub records: Vec<Record<N>>,
    /// The first vacant record, linked by `bin_next`; 0 when there is none.
    pub vacant: u32,
}

impl<N: Copy + Default> Table<N> {
    pub(crate) fn new() -> Self {
        Table { records: vec![Self::blank()], vacant: 0 }
    }

    fn blank() -> Record<N> {
        Record {
            offset: 0,
            size: 0,
            prev: 0,
            next: 0,
            bin_prev: 0,
            bin_next: 0,
            generation: 0,
            region: 0,
            state: State::Vacant,
            fence: FenceId::NONE,
            note: N::default(),
        }
    }

    /// A vacant record's index; the caller fills it.
    #[inline(always)]
    pub(crate) fn add(&mut self) -> u32 {
        let index = self.vacant;
        if index != 0 {
            self.vacant = self.records[index as usize].bin_next;
            return index;
        }
        self.grow()
    }

    #[cold]
    fn grow(&mut self) -> u32 {
        let index = u32::try_from(self.records.len()).expect("fewer than 2^32 blocks");
        if self.records.len() == self.records.capacity() {
            // An eighth at a time: records are our own memory, and doubling would waste half of it.
            self.records.reserve_exact((self.records.len() / 8).max(64));
        }
        self.records.push(Self::blank());
        index
    }

    #[inline(always)]
    pub(crate) fn id(&self, index: u32) -> BlockId {
        BlockId { index, generation: self.records[index as usize].generation }
    }

    /// Indices of the vacant records, for the check.
    pub(crate) fn vacant_count(&self) -> usize {
        let (mut count, mut index) = (0, self.vacant);
        while index != 0 && count <= self.records.len() {
            count += 1;
            index = self.records[index as usize].bin_next;
        }
        count
    }

    /// Bytes that the slab takes.
    pub(crate) fn memory(&self) -> u64 {
        (self.records.capacity() * size_of::<Record<N>>()) as u64
    }
}

impl<N> std::ops::Index<u32> for Table<N> {
    type Output = Record<N>;

    #[inline(always)]
    fn index(&self, index: u32) -> &Record<N> {
        &self.records[index as usize]
    }
}

impl<N> std::ops::IndexMut<u32> for Table<N> {
    #[inline(always)]
    fn index_mut(&mut self, index: u32) -> &mut Record<N> {
        &mut self.records[index as usize]
    }
}
