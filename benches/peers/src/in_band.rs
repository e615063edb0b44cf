//! Placers that write their records into the memory they manage. They get real addresses, as many as the range has, of which the
//! system backs only the pages they write to. Sizes are as asked for and aligned as malloc's are, to 16 bytes: at
//! [`UNIT`](crate::UNIT) their headers would cost them up to a unit more a block.

use std::alloc::Layout;
use std::ptr::NonNull;

use rlsf::Tlsf;
use talc::DefaultBinning;
use talc::base::Talc;
use talc::source::Manual;

use crate::Placer;

/// Addresses, readable and writable, without memory until they are written to.
struct Arena {
    base: NonNull<u8>,
    bytes: usize,
}

impl Arena {
    fn new(bytes: u64) -> Self {
        let bytes = bytes as usize;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the system's choice.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind | libc::MAP_NORESERVE, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "{bytes} bytes of addresses");
        Arena { base: NonNull::new(base.cast()).expect("mmap answers no null"), bytes }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: this mapping is the arena's own, and its placer goes with it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

fn layout(bytes: u64) -> Layout {
    Layout::from_size_align(bytes.max(1) as usize, 16).expect("less than the address space")
}

/// rlsf's TLSF, with 32 lists for each power of two.
pub struct Rlsf {
    placer: Tlsf<'static, u64, u32, 40, 32>,
    _arena: Arena,
}

// SAFETY: the arena is the placer's alone, and both move together.
unsafe impl Send for Rlsf {}

impl Placer for Rlsf {
    type Block = NonNull<u8>;

    fn over(range: u64, _: usize) -> Self {
        let arena = Arena::new(range);
        let mut placer = Tlsf::new();
        // SAFETY: the arena is nobody else's and outlives every use of the placer.
        unsafe { placer.insert_free_block_ptr(NonNull::slice_from_raw_parts(arena.base, arena.bytes)) };
        Rlsf { placer, _arena: arena }
    }

    #[inline]
    fn place(&mut self, bytes: u64) -> Option<Self::Block> {
        self.placer.allocate(layout(bytes))
    }

    #[inline]
    fn free(&mut self, block: Self::Block) {
        // SAFETY: the block is of this placer, with this alignment, and consumed.
        unsafe { self.placer.deallocate(block, 16) };
    }
}

/// talc with its default bins.
pub struct Talcs {
    placer: Talc<Manual, DefaultBinning>,
    _arena: Arena,
}

// SAFETY: the arena is the placer's alone, and both move together.
unsafe impl Send for Talcs {}

impl Placer for Talcs {
    type Block = (NonNull<u8>, Layout);

    fn over(range: u64, _: usize) -> Self {
        let arena = Arena::new(range);
        let mut placer = Talc::new(Manual);
        // SAFETY: the arena is nobody else's and outlives every use of the placer.
        let claimed = unsafe { placer.claim(arena.base.as_ptr(), arena.bytes) };
        claimed.expect("an arena larger than talc's own records");
        Talcs { placer, _arena: arena }
    }

    #[inline]
    fn place(&mut self, bytes: u64) -> Option<Self::Block> {
        let layout = layout(bytes);
        // SAFETY: the layout has bytes.
        unsafe { self.placer.allocate(layout) }.map(|block| (block, layout))
    }

    #[inline]
    fn free(&mut self, (block, layout): Self::Block) {
        // SAFETY: the block is of this placer, with this layout, and consumed.
        unsafe { self.placer.deallocate(block.as_ptr(), layout) };
    }
}
