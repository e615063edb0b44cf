//! Bytes to the device, on it, and back.
//!
//! Each call without `_in` is submitted at once: it comes behind all that was submitted before and before all that is submitted later, a
//! recording that is open now among the latter. It is never delayed to the next submission, as `Queue::write_buffer` is, and so never
//! overtakes commands that are submitted already. The calls with `_in` are commands of the encoder like any other, in its order.
//!
//! wgpu moves whole words of 4 bytes. A part starts at a multiple of 4; its length is one too unless it ends where its block
//! does: then up to three bytes behind the end are written, which belong to the block and to nobody else.

use std::sync::Arc;

use ::wgpu::CommandEncoder;
use bytemuck::{AnyBitPattern, NoUninit};

use super::Wgpu;
use crate::allocator::{Allocator, Block};
use crate::backend::wgpu::WORD;
use crate::backend::{BackendError, Span};

/// A part of a block. A whole block is one too.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    block: &'a Block<Wgpu>,
    offset: u64,
    bytes: u64,
}

impl<'a> From<&'a Block<Wgpu>> for Part<'a> {
    fn from(block: &'a Block<Wgpu>) -> Self {
        block.part(0, block.len())
    }
}

impl Block<Wgpu> {
    /// `bytes` bytes from `offset` on. Whether they lie in the block is looked at when they are used.
    pub fn part(&self, offset: u64, bytes: u64) -> Part<'_> {
        Part { block: self, offset, bytes }
    }
}

/// Why bytes were not moved.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The part leaves its block.
    #[error("{bytes} bytes at {offset} leave a block of {len} bytes")]
    OutOfBlock {
        /// Where the part starts.
        offset: u64,
        /// Bytes of the part.
        bytes: u64,
        /// Bytes of the block.
        len: u64,
    },
    /// The part is not of whole words, and does not end where its block does.
    #[error(
        "{bytes} bytes at {offset}: a part starts at a multiple of 4, and is as long unless it ends with its block"
    )]
    PartialWord {
        /// Where the part starts.
        offset: u64,
        /// Bytes of the part.
        bytes: u64,
    },
    /// What is to be moved and where it is to go differ in size.
    #[error("{from} bytes to {to} bytes: a transfer is of as many as there are (`part` names fewer)")]
    Sizes {
        /// Bytes to be moved.
        from: u64,
        /// Bytes that they are to take.
        to: u64,
    },
    /// Source and target of a copy overlap.
    #[error("source and target overlap")]
    Overlap,
    /// The bytes are not a whole number of elements.
    #[error("{bytes} bytes are not a whole number of elements of {element} bytes")]
    PartialElement {
        /// Bytes of the part.
        bytes: u64,
        /// Bytes of an element.
        element: usize,
    },
    /// The block belongs to another allocator.
    #[error("the block belongs to another allocator")]
    ForeignBlock,
    /// The work before it was not complete in the time that the config gives to waits (`wait_max`).
    #[error("the device's work was not complete in time")]
    TimedOut,
    /// What wgpu says.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Allocator<Wgpu> {
    /// Writes elements to a part of the same size.
    ///
    /// # Errors
    /// A part that is none, of another size or of another allocator; what wgpu says.
    pub fn upload<'a, T: NoUninit>(&self, to: impl Into<Part<'a>>, data: &[T]) -> Result<(), TransferError> {
        let (span, bytes) = self.uploaded(to.into(), data)?;
        Ok(span.map_or(Ok(()), |span| self.backing().upload(span.region, span.offset, bytes))?)
    }

    /// As [`Allocator::upload`], as a command of an encoder.
    ///
    /// # Errors
    /// As [`Allocator::upload`].
    pub fn upload_in<'a, T: NoUninit>(
        &self,
        encoder: &mut CommandEncoder,
        to: impl Into<Part<'a>>,
        data: &[T],
    ) -> Result<(), TransferError> {
        let (span, bytes) = self.uploaded(to.into(), data)?;
        Ok(span.map_or(Ok(()), |span| self.backing().upload_in(encoder, span.region, span.offset, bytes))?)
    }

    fn uploaded<'b, T: NoUninit>(
        &self,
        to: Part<'_>,
        data: &'b [T],
    ) -> Result<(Option<Span>, &'b [u8]), TransferError> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        same_size(bytes.len() as u64, to.bytes)?;
        Ok((self.written(to)?, bytes))
    }

    /// Waits for all that was submitted and reads a part, which may be any bytes of the block.
    ///
    /// # Errors
    /// A part that is none or of another allocator, or is not of whole elements; work that is not complete in time; what wgpu says.
    pub fn read<'a, T: AnyBitPattern + NoUninit>(&self, from: impl Into<Part<'a>>) -> Result<Vec<T>, TransferError> {
        let from = from.into();
        let span = self.span_of(from)?;
        let element = size_of::<T>();
        let count = from.bytes.checked_div(element as u64).unwrap_or(0);
        if count * element as u64 != from.bytes {
            return Err(TransferError::PartialElement { bytes: from.bytes, element });
        }
        let mut data = vec![T::zeroed(); count as usize];
        let Some(span) = span else { return Ok(data) };
        let patience = self.core.config.read().wait_max;
        let bytes = bytemuck::cast_slice_mut(&mut data);
        match self.backing().read(span.region, span.offset, bytes, patience)? {
            true => Ok(data),
            false => Err(TransferError::TimedOut),
        }
    }

    /// Sets every word of a part to `value`.
    ///
    /// # Errors
    /// A part that is none or of another allocator; what wgpu says.
    pub fn fill<'a>(&self, part: impl Into<Part<'a>>, value: u32) -> Result<(), TransferError> {
        let span = self.written(part.into())?;
        let fill = |span| self.backing().submit("fill", |encoder| self.backing().fill_in(encoder, span, value));
        Ok(span.map_or(Ok(()), fill)?)
    }

    /// As [`Allocator::fill`], as a command of an encoder.
    ///
    /// # Errors
    /// As [`Allocator::fill`].
    pub fn fill_in<'a>(
        &self,
        encoder: &mut CommandEncoder,
        part: impl Into<Part<'a>>,
        value: u32,
    ) -> Result<(), TransferError> {
        let span = self.written(part.into())?;
        Ok(span.map_or(Ok(()), |span| self.backing().fill_in(encoder, span, value))?)
    }

    /// Copies between two parts of the same size that do not overlap: with wgpu's own copy from one buffer to another, and with a
    /// kernel within one.
    ///
    /// # Errors
    /// Parts that are none, overlap, differ in size or are of another allocator; what wgpu says.
    pub fn copy<'a, 'b>(&self, from: impl Into<Part<'a>>, to: impl Into<Part<'b>>) -> Result<(), TransferError> {
        let spans = self.copied(from.into(), to.into())?;
        let backing = self.backing();
        let copy = |(from, to)| backing.submit("copy", |encoder| backing.copy_in(encoder, from, to));
        Ok(spans.map_or(Ok(()), copy)?)
    }

    /// As [`Allocator::copy`], as a command of an encoder.
    ///
    /// # Errors
    /// As [`Allocator::copy`].
    pub fn copy_in<'a, 'b>(
        &self,
        encoder: &mut CommandEncoder,
        from: impl Into<Part<'a>>,
        to: impl Into<Part<'b>>,
    ) -> Result<(), TransferError> {
        let spans = self.copied(from.into(), to.into())?;
        Ok(spans.map_or(Ok(()), |(from, to)| self.backing().copy_in(encoder, from, to))?)
    }

    fn copied(&self, from: Part<'_>, to: Part<'_>) -> Result<Option<(Span, Span)>, TransferError> {
        same_size(from.bytes, to.bytes)?;
        let (source, target) = (self.span_of(from)?, self.written(to)?);
        let (Some(source), Some(target)) = (source, target) else { return Ok(None) };
        if !source.offset.is_multiple_of(WORD) {
            return Err(TransferError::PartialWord { offset: from.offset, bytes: from.bytes });
        }
        // The rest of a last word is the source block's own, whatever it holds.
        let source = Span { size: target.size, ..source };
        if source.region == target.region && source.offset.abs_diff(target.offset) < source.size {
            return Err(TransferError::Overlap);
        }
        Ok(Some((source, target)))
    }

    /// The span of a part that is to be written: whole words of its block. `None` when there is nothing to write.
    fn written(&self, part: Part<'_>) -> Result<Option<Span>, TransferError> {
        let Some(span) = self.span_of(part)? else { return Ok(None) };
        let ends_with_block = part.offset + part.bytes == part.block.len();
        if !part.offset.is_multiple_of(WORD) || !(part.bytes.is_multiple_of(WORD) || ends_with_block) {
            return Err(TransferError::PartialWord { offset: part.offset, bytes: part.bytes });
        }
        Ok(Some(Span { size: span.size.next_multiple_of(WORD), ..span }))
    }

    /// The span of a part of a block of this allocator; `None` when it is of no bytes.
    fn span_of(&self, part: Part<'_>) -> Result<Option<Span>, TransferError> {
        let Part { block, offset, bytes } = part;
        if block.core().is_some_and(|core| !Arc::ptr_eq(core, &self.core)) {
            return Err(TransferError::ForeignBlock);
        }
        if offset.checked_add(bytes).is_none_or(|end| end > block.len()) {
            return Err(TransferError::OutOfBlock { offset, bytes, len: block.len() });
        }
        let place = block.place().filter(|_| bytes > 0);
        Ok(place.map(|place| Span { region: place.region, offset: place.offset + offset, size: bytes }))
    }
}

fn same_size(from: u64, to: u64) -> Result<(), TransferError> {
    if from == to { Ok(()) } else { Err(TransferError::Sizes { from, to }) }
}
