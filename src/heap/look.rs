//! What can be seen of a heap and its blocks, for those who decide and those who report.

use super::bins::Bins;
use super::{BlockView, Heap, Place, State};
use crate::ids::{BlockId, FenceId};

impl<N: Copy + Default> Heap<N> {
    /// The block of an id, if it is still what the id named.
    #[inline]
    pub fn get(&self, id: BlockId) -> Option<u32> {
        let record = self.table.records.get(id.index as usize)?;
        (record.generation == id.generation && record.state == State::Live).then_some(id.index)
    }

    /// The id of a block.
    #[inline]
    pub fn id(&self, index: u32) -> BlockId {
        self.table.id(index)
    }

    /// The note of a block.
    #[inline]
    pub fn note(&self, index: u32) -> &N {
        &self.table[index].note
    }

    /// Where a block is: slot of its region, offset, size in bytes.
    #[inline]
    pub fn place(&self, index: u32) -> (u16, u64, u64) {
        let record = &self.table[index];
        (record.region, record.offset, record.size)
    }

    /// The fence of a free, held or retired block.
    #[inline]
    pub fn fence(&self, index: u32) -> FenceId {
        self.table[index].fence
    }

    /// Bytes of free blocks that no single stream may use without waiting for another.
    #[inline(always)]
    pub fn pending(&self) -> u64 {
        self.pending
    }

    /// Size of the largest free block, 0 when nothing is free. Looks at one bin.
    pub fn largest_free(&self) -> u64 {
        let Some(bin) = self.free.highest() else { return 0 };
        self.list(self.free.head(bin)).map(|index| self.table[index].size).max().unwrap_or(0)
    }

    /// Whether there is more than one free block.
    pub fn is_scattered(&self) -> bool {
        let Some(bin) = self.free.highest() else { return false };
        self.free.next(0) != Some(bin) || self.table[self.free.head(bin)].bin_next != 0
    }

    /// Number of the heap's records: at least that of its blocks.
    pub(crate) fn records(&self) -> usize {
        self.table.records.len()
    }

    /// Bytes that the heap's own records take.
    pub fn memory(&self) -> u64 {
        self.table.memory() + (self.places.capacity() * size_of::<Option<Place>>()) as u64 + size_of::<Bins>() as u64
    }

    /// Slots of the regions of this heap.
    pub fn places(&self) -> impl Iterator<Item = u16> + '_ {
        (0..self.places.len()).filter(|slot| self.places[*slot].is_some()).map(|slot| slot as u16)
    }

    /// Size and page of the region in a slot.
    pub fn extent(&self, place: u16) -> (u64, Option<u64>) {
        let place = self.places[place as usize].as_ref().expect("a region of this heap");
        (place.size, place.page)
    }

    /// The block that covers a whole region, when there is one.
    pub fn whole(&self, place: u16) -> Option<u32> {
        let place = self.places[place as usize].as_ref()?;
        (place.first == place.last).then_some(place.first)
    }

    /// The end of the last address of a region that is mapped, was mapped and is not yet unmapped, or is being filled.
    pub fn top(&self, place: u16) -> u64 {
        let Some(place) = &self.places[place as usize] else { return 0 };
        let last = &self.table[place.last];
        if last.state == State::Void { last.offset } else { place.size }
    }

    /// The blocks of a region in the order of their addresses.
    pub fn blocks(&self, place: u16) -> impl Iterator<Item = BlockView<N>> + '_ {
        let first = self.places[place as usize].as_ref().map_or(0, |place| place.first);
        std::iter::successors((first != 0).then_some(first), |index| {
            let next = self.table[*index].next;
            (next != 0).then_some(next)
        })
        .map(|index| self.view(index))
    }

    /// One block as it is now.
    pub fn view(&self, index: u32) -> BlockView<N> {
        let record = &self.table[index];
        BlockView {
            id: self.table.id(index),
            place: record.region,
            region: self.region(record.region),
            offset: record.offset,
            size: record.size,
            state: record.state,
            fence: record.fence,
            note: record.note,
        }
    }
}
