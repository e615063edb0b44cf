//! Memory for itself: fills and copies within a buffer, in the order of a stream.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::NoUninit;
use cudarc::driver::{CudaStream, DevicePtrMut};

use super::cuda::{Cuda, device};
use crate::allocator::{AllocError, Allocator};
use crate::backend::BackendError;

impl Allocator<Cuda> {
    /// Sets every element of a buffer or of a slice, of ours or of `cudarc`, to a value. Elements of up to 4 bytes, and values that repeat
    /// so few, are set by the driver; those of 8 and 16 by a kernel, for which NVRTC must be installed.
    ///
    /// # Errors
    /// [`AllocError::ForeignStream`]; [`BackendError::Unsupported`] for elements of other sizes, and without NVRTC; what the driver says.
    pub fn fill<T: NoUninit>(
        &self,
        stream: &Arc<CudaStream>,
        target: &mut impl DevicePtrMut<T>,
        value: T,
    ) -> Result<(), AllocError> {
        self.check_stream(stream)?;
        let bytes = target.num_bytes();
        if bytes == 0 {
            return Ok(());
        }
        let pattern = shortest_period(bytemuck::bytes_of(&value));
        let (address, _finish) = target.device_ptr_mut(stream);
        Ok(device(&self.core).fill(address, pattern, (bytes / pattern.len()) as u64, stream)?)
    }

    /// Copies elements of a buffer or of a slice to another place in it. Where the places overlap, memory of this allocator is used in
    /// between.
    ///
    /// # Errors
    /// [`AllocError::ForeignStream`]; [`BackendError::Contract`] when a range does not lie within the buffer; out of memory; what the
    /// driver says.
    pub fn copy_within<T>(
        &self,
        stream: &Arc<CudaStream>,
        target: &mut impl DevicePtrMut<T>,
        from: Range<usize>,
        to: usize,
    ) -> Result<(), AllocError> {
        self.check_stream(stream)?;
        let (count, len) = (from.len(), target.len());
        if from.start > from.end || from.end > len || to.checked_add(count).is_none_or(|end| end > len) {
            let rule = format!("{from:?} to {to} leaves a buffer of {len} elements");
            return Err(BackendError::Contract { call: "copy_within", rule }.into());
        }
        let bytes = (count * size_of::<T>()) as u64;
        if bytes == 0 || from.start == to {
            return Ok(());
        }
        let overlaps = from.start.abs_diff(to) < count;
        let between = if overlaps { Some(self.alloc_on(&self.stream_of(stream)?, bytes)?) } else { None };
        let (address, _finish) = target.device_ptr_mut(stream);
        let at = |element: usize| address + (element * size_of::<T>()) as u64;
        let (from, to, device) = (at(from.start), at(to), device(&self.core));
        match between {
            None => device.copy(to, from, bytes, stream)?,
            Some(between) => {
                device.copy(between.ptr(), from, bytes, stream)?;
                device.copy(to, between.ptr(), bytes, stream)?;
            }
        }
        Ok(())
    }

    fn check_stream(&self, stream: &CudaStream) -> Result<(), AllocError> {
        if stream.context() == self.context() { Ok(()) } else { Err(AllocError::ForeignStream) }
    }
}

/// The shortest power-of-two start of a value, of some bytes, that makes the value when repeated.
fn shortest_period(value: &[u8]) -> &[u8] {
    let repeats = |length: &usize| {
        value.len().is_multiple_of(*length) && value.chunks(*length).all(|chunk| *chunk == value[..*length])
    };
    [1, 2, 4, 8].into_iter().find(repeats).map_or(value, |length| &value[..length])
}
