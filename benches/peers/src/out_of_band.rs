//! Placers that keep their records apart from the memory they manage, as one must for a device's memory.

use std::ops::Range;

use buddy_system_allocator::FrameAllocator;
use offset_allocator::Allocation;
use range_alloc::RangeAllocator;
use vk_mem::{
    VirtualAllocation, VirtualAllocationCreateFlags, VirtualAllocationCreateInfo, VirtualBlock, VirtualBlockCreateInfo,
};

use crate::{Placer, UNIT, common, rounded};

/// offset-allocator, in units.
pub struct Offset(offset_allocator::Allocator<u32>);

impl Placer for Offset {
    type Block = Allocation<u32>;

    fn over(range: u64, blocks: usize) -> Self {
        Offset(common::peer_within((range / UNIT) as u32, blocks))
    }

    #[inline]
    fn place(&mut self, bytes: u64) -> Option<Self::Block> {
        self.0.allocate(common::units(bytes))
    }

    #[inline]
    fn free(&mut self, block: Self::Block) {
        self.0.free(block);
    }
}

/// The Vulkan Memory Allocator's virtual block (C++) with its default strategy.
pub struct Virtual(VirtualBlock);

impl Placer for Virtual {
    type Block = VirtualAllocation;

    fn over(range: u64, _: usize) -> Self {
        let info = VirtualBlockCreateInfo { size: range, ..Default::default() };
        Virtual(VirtualBlock::new(info).expect("a virtual block"))
    }

    #[inline]
    fn place(&mut self, bytes: u64) -> Option<Self::Block> {
        let info = VirtualAllocationCreateInfo {
            size: rounded(bytes),
            alignment: UNIT,
            user_data: 0,
            flags: VirtualAllocationCreateFlags::empty(),
        };
        // SAFETY: the size is not 0 and the alignment a power of two.
        unsafe { self.0.allocate(info) }.ok().map(|(block, _)| block)
    }

    #[inline]
    fn free(&mut self, mut block: Self::Block) {
        // SAFETY: the block is of this virtual block, and consumed.
        unsafe { self.0.free(&mut block) };
    }
}

impl Drop for Virtual {
    fn drop(&mut self) {
        // SAFETY: no block is used after its placer.
        unsafe { self.0.clear() };
    }
}

/// buddy_system_allocator's allocator of frames; a frame is a unit.
pub struct Buddy(FrameAllocator<40>);

impl Placer for Buddy {
    type Block = (usize, usize);

    fn over(range: u64, _: usize) -> Self {
        let mut frames = FrameAllocator::new();
        frames.add_frame(0, (range / UNIT) as usize);
        Buddy(frames)
    }

    #[inline]
    fn place(&mut self, bytes: u64) -> Option<Self::Block> {
        let count = (rounded(bytes) / UNIT) as usize;
        Some((self.0.alloc(count)?, count))
    }

    #[inline]
    fn free(&mut self, (frame, count): Self::Block) {
        self.0.dealloc(frame, count);
    }
}

/// range-alloc: best fit over a list of the free ranges.
pub struct Ranges(RangeAllocator<u64>);

impl Placer for Ranges {
    type Block = Range<u64>;

    fn over(range: u64, _: usize) -> Self {
        Ranges(RangeAllocator::new(0..range))
    }

    #[inline]
    fn place(&mut self, bytes: u64) -> Option<Self::Block> {
        self.0.allocate_range(rounded(bytes)).ok()
    }

    #[inline]
    fn free(&mut self, block: Self::Block) {
        self.0.free_range(block);
    }
}
