//! General allocators, called directly, beside larder's host memory.

use std::alloc::{GlobalAlloc, Layout};

use larder::{Allocator, Block, Host};

/// Where memory of the host comes from.
pub trait Source {
    /// Memory; it goes back when dropped.
    type Memory;

    /// So many bytes, not zero.
    fn get(&self, bytes: usize) -> Self::Memory;

    /// Where the bytes begin.
    fn address(memory: &mut Self::Memory) -> *mut u8;
}

/// A general allocator. Alignment 16, which all of them give anyway.
pub struct General<A: GlobalAlloc + 'static>(pub &'static A);

/// Memory of a general allocator.
pub struct Piece<A: GlobalAlloc + 'static> {
    owner: &'static A,
    address: *mut u8,
    layout: Layout,
}

impl<A: GlobalAlloc> Drop for Piece<A> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the piece is of this allocator, with this layout, and goes away.
        unsafe { self.owner.dealloc(self.address, self.layout) };
    }
}

impl<A: GlobalAlloc> Source for General<A> {
    type Memory = Piece<A>;

    #[inline]
    fn get(&self, bytes: usize) -> Piece<A> {
        let layout = Layout::from_size_align(bytes, 16).expect("less than the address space");
        // SAFETY: the layout has bytes.
        let address = unsafe { self.0.alloc(layout) };
        assert!(!address.is_null(), "{bytes} bytes");
        Piece { owner: self.0, address, layout }
    }

    #[inline]
    fn address(memory: &mut Piece<A>) -> *mut u8 {
        memory.address
    }
}

impl Source for Allocator<Host> {
    type Memory = Block<Host>;

    #[inline]
    fn get(&self, bytes: usize) -> Block<Host> {
        self.alloc(bytes as u64).expect("a machine with memory left")
    }

    #[inline]
    fn address(memory: &mut Block<Host>) -> *mut u8 {
        memory.as_mut_bytes().as_mut_ptr()
    }
}
