//! Host blocks as slices, typed through bytemuck.
//!
//! A view is of the bytes asked for, never more. Host memory is initialised from the start (backends promise it), so a view
//! of any plain type is never over uninitialised bytes; what it holds is whatever was there before unless zeros were asked for.

#![allow(unsafe_code)]

use bytemuck::{AnyBitPattern, NoUninit, PodCastError};

use crate::allocator::{Any, Block, Host, Memory};

/// Why a block cannot be seen as a slice of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// The block's bytes are not a whole number of elements.
    #[error("{bytes} bytes are not a whole number of elements of {element} bytes")]
    PartialElement {
        /// Bytes of the block.
        bytes: usize,
        /// Bytes of an element.
        element: usize,
    },
    /// The block's address does not suit the type; ask for the alignment when allocating.
    #[error("address {address:#x} is not a multiple of the alignment {align} of the element")]
    Misaligned {
        /// The block's address.
        address: u64,
        /// What the type needs.
        align: usize,
    },
    /// The block has no bytes, and so belongs to nobody.
    #[error("the block has no bytes")]
    Empty,
}

/// The bytes of a block.
///
/// # Safety
/// The block is of memory that its backend gave as the host's, as [`Host`] memory is, which no device writes to while the view
/// lives; or of no bytes.
pub(crate) unsafe fn bytes<M: Memory>(block: &Block<M>) -> &[u8] {
    let pointer = std::ptr::with_exposed_provenance::<u8>(block.address() as usize);
    // SAFETY: a host block's address is the start of `len` bytes that its backend mapped readable and writable and exposed,
    // initialised, owned by this block alone while it lives (the heap gives no byte twice); an empty block's address is not
    // null. Shared views only come from a shared block, so nobody writes meanwhile.
    unsafe { std::slice::from_raw_parts(pointer, block.len() as usize) }
}

/// The bytes of a block, to change.
///
/// # Safety
/// As for [`bytes`]; no device reads it either.
pub(crate) unsafe fn bytes_mut<M: Memory>(block: &mut Block<M>) -> &mut [u8] {
    let pointer = std::ptr::with_exposed_provenance_mut::<u8>(block.address() as usize);
    // SAFETY: as in `bytes`; the exclusive borrow makes this the only view.
    unsafe { std::slice::from_raw_parts_mut(pointer, block.len() as usize) }
}

impl Block<Any> {
    /// The block's bytes, where they are memory of the host; `None` elsewhere.
    pub fn host_bytes(&self) -> Option<&[u8]> {
        // SAFETY: it is host memory, or no bytes.
        self.is::<Host>().then(|| unsafe { bytes(self) })
    }

    /// The block's bytes, to change, where they are memory of the host; `None` elsewhere.
    pub fn host_bytes_mut(&mut self) -> Option<&mut [u8]> {
        // SAFETY: it is host memory, or no bytes.
        self.is::<Host>().then(|| unsafe { bytes_mut(self) })
    }
}

impl Block<Host> {
    /// The block's bytes.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: the type says that it is host memory.
        unsafe { bytes(self) }
    }

    /// The block's bytes, to change.
    #[inline]
    pub fn as_mut_bytes(&mut self) -> &mut [u8] {
        // SAFETY: the type says that it is host memory.
        unsafe { bytes_mut(self) }
    }

    /// The block as elements of a plain type.
    ///
    /// # Errors
    /// A size that is not a whole number of elements, or an address that does not suit them (every quantum, 64 bytes by default, does
    /// for all common types).
    pub fn as_slice<T: AnyBitPattern>(&self) -> Result<&[T], ViewError> {
        bytemuck::try_cast_slice(self.as_bytes()).map_err(|error| self.view_error::<T>(error))
    }

    /// The block as elements of a plain type, to change.
    ///
    /// # Errors
    /// As [`Block::as_slice`].
    pub fn as_mut_slice<T: AnyBitPattern + NoUninit>(&mut self) -> Result<&mut [T], ViewError> {
        let (bytes, address) = (self.len(), self.address());
        bytemuck::try_cast_slice_mut(self.as_mut_bytes()).map_err(|error| view_error::<T>(bytes, address, error))
    }

    fn view_error<T>(&self, error: PodCastError) -> ViewError {
        view_error::<T>(self.len(), self.address(), error)
    }
}

fn view_error<T>(bytes: u64, address: u64, error: PodCastError) -> ViewError {
    match error {
        PodCastError::TargetAlignmentGreaterAndInputNotAligned => {
            ViewError::Misaligned { address, align: align_of::<T>() }
        }
        _ => ViewError::PartialElement { bytes: bytes as usize, element: size_of::<T>() },
    }
}

/// How many elements of a type so many bytes at an address are.
#[allow(dead_code, reason = "used by kinds of memory that features add")]
pub(super) fn check_view<T>(bytes: u64, address: u64) -> Result<usize, ViewError> {
    let (bytes, element) = (bytes as usize, size_of::<T>());
    if element == 0 || !bytes.is_multiple_of(element) {
        return Err(ViewError::PartialElement { bytes, element });
    }
    if !address.is_multiple_of(align_of::<T>() as u64) {
        return Err(ViewError::Misaligned { address, align: align_of::<T>() });
    }
    Ok(bytes / element)
}

#[cfg(test)]
mod tests {
    use crate::units::MIB;
    use crate::{Allocator, Config};

    use super::ViewError;

    #[test]
    fn typed_views_are_whole_and_aligned() {
        let host = Allocator::host(Config::default().limit(64 * MIB)).unwrap();
        let mut block = host.alloc_zeroed(4096).unwrap();
        block.as_mut_slice::<f32>().unwrap()[1023] = 1.5;
        assert_eq!(block.as_slice::<f32>().unwrap()[1023], 1.5);
        assert_eq!(block.as_bytes().len(), 4096);
        let odd = host.alloc(10).unwrap();
        assert_eq!(odd.as_slice::<u32>().unwrap_err(), ViewError::PartialElement { bytes: 10, element: 4 });
        assert_eq!(host.alloc(0).unwrap().as_slice::<u64>().unwrap(), &[] as &[u64]);
    }
}
