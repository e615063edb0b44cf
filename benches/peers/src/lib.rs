//! Other allocators, set up so that they can be measured beside larder. The benches of this package print the tables of the
//! repository's `BENCHMARKS.md`; what they share with larder's own benches is in `benches/common`.

#[path = "../../common/mod.rs"]
pub mod common;

pub mod general;
pub mod in_band;
pub mod out_of_band;
pub mod vulkan;

use std::sync::Mutex;

/// What sizes are rounded up to, as for the simulated device: 512 B.
pub use common::UNIT;

/// An allocator of places within one range.
pub trait Placer: Sized {
    /// What stands for a live block.
    type Block;

    /// Over so many bytes, with room for the records of so many blocks where that must be said beforehand.
    fn over(range: u64, blocks: usize) -> Self;

    /// A block of at least so many bytes, at most 1 TiB.
    fn place(&mut self, bytes: u64) -> Option<Self::Block>;

    /// Gives a block back.
    fn free(&mut self, block: Self::Block);

    /// Bytes of its own memory, where it says them itself.
    fn own_bytes(&self) -> Option<u64> {
        None
    }
}

/// A placer behind a mutex that nobody else wants.
pub struct Locked<P>(Mutex<P>);

impl<P: Placer> Placer for Locked<P> {
    type Block = P::Block;

    fn over(range: u64, blocks: usize) -> Self {
        Locked(Mutex::new(P::over(range, blocks)))
    }

    #[inline]
    fn place(&mut self, bytes: u64) -> Option<P::Block> {
        self.0.lock().expect("no panic before").place(bytes)
    }

    #[inline]
    fn free(&mut self, block: P::Block) {
        self.0.lock().expect("no panic before").free(block);
    }
}

/// Bytes rounded up to the unit; no block is empty.
pub fn rounded(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(UNIT)
}

/// Bytes that this process has from malloc, for Rust and for C++ alike: the records of an allocator that writes none into the
/// memory it manages.
pub fn heap_bytes() -> u64 {
    // SAFETY: it takes nothing and answers figures.
    let info = unsafe { libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as u64
}
