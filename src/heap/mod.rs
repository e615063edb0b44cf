//! The heap: places blocks in regions of integer address space, splits exactly, coalesces at once.
//!
//! It knows no memory, no stream, no clock and no lock, and it is deterministic: the same calls give the same places. A free
//! block carries a fence that the heap only joins, copies and hands to the caller's test ([`crate::ids::Fences`]); a live
//! block carries a note that only its owner understands.
//!
//! Finding a block looks at up to [`SCAN`] blocks of the request's own bin, where blocks may be too small, and then takes the
//! head of the next bin that is not empty, where every block fits. Nothing here depends on the number of blocks, except the
//! calls that say so.
//!
//! Invariants (recomputed by [`Heap::check`]):
//! * the blocks of a region, linked by address, cover it without gap or overlap; sizes and offsets are multiples of the quantum;
//! * no two neighbours are both free, or both void;
//! * a block is in the bin of its size iff it is free, and in the list of voids iff it is void;
//! * voids, filling and retired blocks begin and end at pages;
//! * `pending` is the sum of the sizes of free blocks whose fence is shared.

#![forbid(unsafe_code)]

mod bins;
mod check;
mod edit;
mod find;
mod look;
mod parts;
mod table;
mod window;

use crate::ids::{Access, BlockId, FenceId, Fences, RegionId};
use crate::units::{align_down, align_up};
use bins::{Bins, bin_of};
use table::{Record, Table};

pub use check::Broken;
pub use table::State;
pub use window::{Claim, Preference, Source, Window};

/// How many blocks of the request's own bin are looked at. One is enough for density, four are cheap insurance.
pub const SCAN: usize = 4;
/// How many blocks above the own bin are looked at when fences stand in the way.
const PROBES: usize = 24;

/// A region as the heap sees it.
#[derive(Clone, Debug)]
struct Place {
    id: RegionId,
    size: u64,
    page: Option<u64>,
    first: u32,
    last: u32,
}

/// One block, for those who look at a heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockView<N> {
    /// Its name.
    pub id: BlockId,
    /// The slot of its region in this heap.
    pub place: u16,
    /// The region's name.
    pub region: RegionId,
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub state: State,
    /// What must be complete before its bytes are used again (free, held and retired blocks).
    pub fence: FenceId,
    /// What the owner noted (live blocks).
    pub note: N,
}

/// What the owner of a block is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    /// Its name.
    pub id: BlockId,
    /// The slot of its region in this heap.
    pub place: u16,
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// Blocks in regions of address space. `N` is what the owner of a live block notes on it.
pub struct Heap<N> {
    quantum: u64,
    table: Table<N>,
    free: Bins,
    /// The list of voids, linked as a bin is.
    voids: u32,
    places: Vec<Option<Place>>,
    pending: u64,
    /// Blocks of at least so many bytes are cut from the end of a free block, smaller ones from its front.
    large: u64,
}

impl<N: Copy + Default> Heap<N> {
    /// An empty heap whose sizes and offsets are multiples of `quantum` bytes, a power of two of at least 2.
    ///
    /// # Panics
    /// When `quantum` is not such a number.
    pub fn new(quantum: u64) -> Self {
        assert!(quantum.is_power_of_two() && quantum >= 2, "quantum {quantum}");
        Heap {
            quantum,
            table: Table::new(),
            free: Bins::new(),
            voids: 0,
            places: Vec::new(),
            pending: 0,
            large: u64::MAX,
        }
    }

    /// Bytes of which every size and offset is a multiple.
    pub fn quantum(&self) -> u64 {
        self.quantum
    }

    /// Whether every block is aligned so, `align` being a power of two.
    #[inline(always)]
    pub fn aligns(&self, align: u64) -> bool {
        align <= self.quantum()
    }

    /// Adds a region of `size` bytes, as one free block (`page` is `None`: a segment) or as one void of whole pages.
    /// Answers the region's slot; `None` when all 65,535 slots are taken.
    pub fn add_region(&mut self, id: RegionId, size: u64, page: Option<u64>) -> Option<u16> {
        assert!(size > 0 && size.is_multiple_of(page.unwrap_or(self.quantum())), "{id:?} of {size} bytes");
        let place = match self.places.iter().position(Option::is_none) {
            Some(slot) => slot,
            None => {
                self.places.push(None);
                self.places.len() - 1
            }
        };
        let slot = u16::try_from(place).ok().filter(|slot| *slot < u16::MAX)?;
        let index = self.table.add();
        let record = &mut self.table[index];
        (record.offset, record.size, record.prev, record.next) = (0, size, 0, 0);
        (record.region, record.fence) = (slot, FenceId::NONE);
        self.places[place] = Some(Place { id, size, page, first: index, last: index });
        match page {
            Some(page) => {
                // Small blocks at one end and large ones at the other leave fewer pages that are partly live.
                self.large = page;
                self.insert_void(index);
            }
            None => self.parts().insert_free(index),
        }
        Some(slot)
    }

    /// Takes a region away, which must be one free or one void block. Ends its fence.
    ///
    /// # Panics
    /// When a part of it is in use.
    pub fn remove_region(&mut self, place: u16, fences: &mut impl Fences) {
        let gone = self.places[place as usize].take().expect("a region of this heap");
        assert_eq!(gone.first, gone.last, "{:?} is in pieces", gone.id);
        match self.table[gone.first].state {
            State::Free => {
                self.parts().remove_free(gone.first);
                fences.release(self.table[gone.first].fence);
            }
            State::Void => self.remove_void(gone.first),
            State::Held => fences.release(self.table[gone.first].fence),
            state => panic!("{:?} is removed while {state:?}", gone.id),
        }
        self.parts().vacate(gone.first);
    }

    /// The name of the region in a slot.
    #[inline]
    pub fn region(&self, place: u16) -> RegionId {
        self.places[place as usize].as_ref().expect("a region of this heap").id
    }

    /// Takes `size` bytes, a positive multiple of the quantum, out of a free block whose fence lets `access` pass.
    /// The block is live afterwards, with whatever note its record had. Constant time; may miss a block that is
    /// usable when others of like size are not ([`Heap::take_thorough`] does not).
    #[inline(always)]
    pub fn take(&mut self, size: u64, access: Access, fences: &mut impl Fences) -> Option<u32> {
        let (index, bin) = self.find(size, access, fences)?;
        if self.table[index].size == size {
            self.parts().take_whole(index, bin, fences);
            return Some(index);
        }
        let taken = self.table.add();
        let large = self.large;
        let mut parts = self.parts();
        if size < large {
            parts.take_front(index, taken, size);
        } else {
            let kept = parts.at(index).size - size;
            parts.cut(index, taken, kept);
            parts.at(taken).state = State::Live;
        }
        parts.shrunk(index, bin, size);
        Some(taken)
    }

    /// As [`Heap::take`], for any alignment of the offset, looking at every free block large enough: linear in their number.
    pub fn take_thorough(&mut self, size: u64, align: u64, access: Access, fences: &mut impl Fences) -> Option<u32> {
        self.take_within(size, align, access, fences, |_| true)
    }

    /// As [`Heap::take_thorough`], in the regions whose slots `allowed` names.
    pub fn take_within(
        &mut self,
        size: u64,
        align: u64,
        access: Access,
        fences: &mut impl Fences,
        allowed: impl Fn(u16) -> bool,
    ) -> Option<u32> {
        let mut bin = self.free.next(bin_of(size));
        while let Some(b) = bin {
            let mut best: Option<(u64, u64, u32)> = None;
            let mut index = self.free.head(b);
            while index != 0 {
                let record = &self.table[index];
                let start = align_up(record.offset, align);
                let fits = start.is_some_and(|start| start - record.offset + size <= record.size);
                if fits
                    && allowed(record.region)
                    && best.is_none_or(|best| (record.size, record.offset) < (best.0, best.1))
                    && fences.passes(record.fence, access)
                {
                    best = Some((record.size, record.offset, index));
                }
                index = record.bin_next;
            }
            if let Some((_, offset, index)) = best {
                return Some(self.carve(index, align_up(offset, align)?, size, fences));
            }
            bin = self.free.next(b + 1);
        }
        None
    }

    /// As [`Heap::take`] for an alignment above the quantum. What is padded in front stays free.
    #[inline(never)]
    pub fn take_aligned(&mut self, size: u64, align: u64, access: Access, fences: &mut impl Fences) -> Option<u32> {
        if align <= self.quantum() {
            return self.take(size, access, fences);
        }
        let roomy = size.checked_add(align - self.quantum())?;
        let fits = |record: &Record<N>| {
            align_up(record.offset, align).is_some_and(|start| start - record.offset + size <= record.size)
        };
        // A block of the exact size may happen to be aligned; a roomy one always is, somewhere.
        let own = self.scan(bin_of(size), |record| fits(record) && fences.passes(record.fence, access));
        let index = match own {
            Some(index) => index,
            None => self.find(roomy, access, fences)?.0,
        };
        let start = align_up(self.table[index].offset, align)?;
        Some(self.carve(index, start, size, fences))
    }

    /// Frees a live or held block under `fence`, joined with its free neighbours. Answers the free block it became part of.
    ///
    /// # Panics
    /// When the block is not live or held.
    #[inline(always)]
    pub fn put(&mut self, index: u32, fence: FenceId, fences: &mut impl Fences) -> u32 {
        let state = self.table[index].state;
        assert!(matches!(state, State::Live | State::Held), "b{index} is put while {state:?}");
        self.parts().coalesce(index, fence, fences)
    }

    /// As [`Heap::put`], for a block that [`Heap::live`] just answered.
    #[inline(always)]
    pub(crate) fn put_live(&mut self, index: u32, fence: FenceId, fences: &mut impl Fences) {
        debug_assert_eq!(self.table[index].state, State::Live);
        self.parts().coalesce(index, fence, fences);
    }

    /// Takes `[start, start + size)` out of the free block `index`, which must cover it. The rest stays free.
    pub fn carve(&mut self, index: u32, start: u64, size: u64, fences: &mut impl Fences) -> u32 {
        let taken = self.detach(index, start, size, fences);
        fences.release(self.table[taken].fence);
        self.table[taken].state = State::Live;
        taken
    }

    /// As [`Heap::carve`], but the block is held and keeps its fence.
    pub fn hold(&mut self, index: u32, start: u64, size: u64, fences: &mut impl Fences) -> u32 {
        let taken = self.detach(index, start, size, fences);
        self.table[taken].state = State::Held;
        taken
    }

    /// Holds the part of a free block that suits a request and needs the fewest waits, as `waits` counts them for a region's slot and
    /// a fence (`None`: no wait would do); of equals the smallest,
    /// then the lowest. Looks at every free block large enough until one needs a single wait.
    pub fn hold_fewest<F: Fences>(
        &mut self,
        size: u64,
        align: u64,
        fences: &mut F,
        waits: impl Fn(&F, u16, FenceId) -> Option<usize>,
    ) -> Option<u32> {
        let mut best: Option<(usize, u64, u64, u32)> = None;
        let mut bin = self.free.next(bin_of(size));
        while let Some(b) = bin {
            for index in self.list(self.free.head(b)) {
                let record = &self.table[index];
                let start = align_up(record.offset, align);
                if start.is_none_or(|start| start - record.offset + size > record.size) {
                    continue;
                }
                let Some(waits) = waits(fences, record.region, record.fence) else { continue };
                let candidate = (waits, record.size, record.offset, index);
                if best.is_none_or(|best| candidate < best) {
                    best = Some(candidate);
                }
            }
            if best.is_some_and(|best| best.0 <= 1) {
                break;
            }
            bin = self.free.next(b + 1);
        }
        let (_, _, offset, index) = best?;
        Some(self.hold(index, align_up(offset, align)?, size, fences))
    }

    /// A held block gets an owner. Ends its fence.
    pub fn own_held(&mut self, index: u32, fences: &mut impl Fences) -> u32 {
        debug_assert_eq!(self.table[index].state, State::Held);
        fences.release(self.table[index].fence);
        self.table[index].state = State::Live;
        index
    }

    /// Puts a held block back as it was.
    pub fn unhold(&mut self, index: u32, fences: &mut impl Fences) -> u32 {
        debug_assert_eq!(self.table[index].state, State::Held);
        let fence = self.table[index].fence;
        self.put(index, fence, fences)
    }

    /// Cuts a held block after `size` bytes into two. Answers the second.
    pub fn cut_held(&mut self, index: u32, size: u64, fences: &mut impl Fences) -> u32 {
        debug_assert_eq!(self.table[index].state, State::Held);
        let rest = self.cut(index, size);
        self.table[rest].fence = fences.copy(self.table[index].fence);
        self.table[rest].state = State::Held;
        rest
    }

    /// The bytes behind the held block `index` are gone (unbacked): it becomes a void. Ends its fence.
    pub fn forget_backing(&mut self, index: u32, fences: &mut impl Fences) {
        let record = &self.table[index];
        assert!(
            matches!(record.state, State::Held | State::Retired),
            "b{index} loses its pages while {:?}",
            record.state
        );
        fences.release(record.fence);
        self.table[index].fence = FenceId::NONE;
        self.make_void(index);
    }

    /// The pages behind the held block `index` moved on; its address stays mapped until its fence is complete.
    pub fn retire(&mut self, index: u32) {
        debug_assert_eq!(self.table[index].state, State::Held);
        self.table[index].generation = self.table[index].generation.wrapping_add(1);
        self.table[index].state = State::Retired;
    }

    /// The index of a live block.
    ///
    /// # Panics
    /// When the id is stale: its block was freed before. Only a defect of this crate can cause it.
    #[inline(always)]
    pub fn live(&self, id: BlockId) -> u32 {
        let record = &self.table[id.index];
        if record.generation != id.generation || record.state != State::Live {
            stale(id, record.generation, record.state);
        }
        id.index
    }

    /// What a block is, and its note to change.
    #[inline(always)]
    pub fn owned(&mut self, index: u32) -> (Owned, &mut N) {
        let record = &mut self.table[index];
        let id = BlockId { index, generation: record.generation };
        (Owned { id, place: record.region, offset: record.offset, size: record.size }, &mut record.note)
    }

    /// The note of a block, to change.
    #[inline]
    pub fn note_mut(&mut self, index: u32) -> &mut N {
        &mut self.table[index].note
    }

    /// Simplifies the shared fences of all free blocks, after work was completed. Linear in the number of free blocks.
    pub fn refresh_fences(&mut self, fences: &mut impl Fences) {
        let mut bin = self.free.next(0);
        while let Some(b) = bin {
            let mut index = self.free.head(b);
            while index != 0 {
                let record = &mut self.table[index];
                if record.fence.is_shared() {
                    record.fence = fences.simplify(record.fence);
                    if !record.fence.is_shared() {
                        self.pending -= record.size;
                    }
                }
                index = record.bin_next;
            }
            bin = self.free.next(b + 1);
        }
    }
}

#[cold]
#[inline(never)]
fn stale(id: BlockId, generation: u32, state: State) -> ! {
    panic!("{id:?} is stale: its record is at generation {generation} and {state:?}")
}

/// Whole pages inside `[offset, offset + size)`, as a range of bytes; empty when there are none.
pub(crate) fn whole_pages(offset: u64, size: u64, page: u64) -> std::ops::Range<u64> {
    let start = align_up(offset, page).unwrap_or(u64::MAX);
    start..align_down(offset + size, page).max(start)
}

#[cfg(test)]
mod tests;
