//! Page-locked host memory as slices, and as a source and target of `cudarc`'s copies.
//!
//! A device may read or write such memory by itself, long after the call that asked for it returned. A view for the CPU is given only
//! when all work that it must follow is complete: what is written there before anything may look, what is read too before anything may
//! write. Copies start through [`PinnedBuffer`] in safe code, which knows them; a block alone knows only the streams that it is in use on,
//! and waits for all that those were given.
//!
//! What is captured touches the memory again at each launch of its graph, which safe code may do at any time and as long as it likes: under
//! a view, or when the memory is somebody else's. So no copy of a buffer is captured unless its owner has promised to keep them apart.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use bytemuck::{AnyBitPattern, NoUninit};
use cudarc::driver::{CudaStream, HostSlice, SyncOnDrop};

use super::ViewError;
use super::cuda::{OnStreams, Pinned};
use super::host::check_view;
use super::ordering::{Ordering, Use, leave_error, wait_for};
use crate::allocator::{AllocError, Allocator, Block, Stream};
use crate::backend::BackendError;

/// Elements in page-locked host memory, which `cudarc`'s copies take as source and target without a detour.
#[derive(Debug)]
pub struct PinnedBuffer<T> {
    block: Block<Pinned>,
    len: usize,
    ordering: Ordering,
    /// Whether its owner keeps views, and what comes after it, apart from launches of graphs.
    may_be_captured: bool,
    element: PhantomData<fn() -> T>,
}

impl Allocator<Pinned> {
    /// A buffer of `len` elements for a stream, of unspecified values.
    ///
    /// # Errors
    /// As [`Request::alloc`](crate::Request::alloc).
    #[track_caller]
    pub fn buffer_on<T: AnyBitPattern>(&self, stream: &Stream, len: usize) -> Result<PinnedBuffer<T>, AllocError> {
        let bytes = (len as u64).checked_mul(size_of::<T>() as u64);
        let max = self.capabilities().region_max;
        let bytes = bytes.ok_or(AllocError::TooLarge { requested: u64::MAX, max })?;
        let block = self.request(bytes).align(align_of::<T>() as u64).on(stream).alloc()?;
        // Such memory is given out when all work on it is complete.
        Ok(PinnedBuffer::new(block, len, Ordering::default()))
    }

    /// As [`Allocator::buffer_on`], for the default stream.
    ///
    /// # Errors
    /// As [`Allocator::buffer_on`].
    #[track_caller]
    pub fn buffer<T: AnyBitPattern>(&self, len: usize) -> Result<PinnedBuffer<T>, AllocError> {
        self.buffer_on(&self.default_stream(), len)
    }
}

impl Block<Pinned> {
    /// The block as elements of a plain type. The first view or copy follows all that the streams it is in use on were given until then.
    ///
    /// # Errors
    /// A size that is not a whole number of elements, or an address that does not suit them.
    pub fn typed<T: AnyBitPattern>(self) -> Result<PinnedBuffer<T>, ViewError> {
        let len = check_view::<T>(self.len(), self.address())?;
        let ordering = Ordering::behind_all(self.streams());
        Ok(PinnedBuffer::new(self, len, ordering))
    }

    /// Waits on the host for all that the streams it is in use on, its own among them, were given until now. Where the block's address was
    /// given to work of a stream, it is said with [`Block::used_on`] before.
    ///
    /// # Errors
    /// What the driver says; [`BackendError::Recording`] when one of them is being captured.
    pub fn wait(&self) -> Result<(), AllocError> {
        let Some(core) = self.core() else { return Ok(()) };
        Ok(wait_for(Pinned::streams(core), &self.streams())?)
    }

    /// The block's bytes, after [`Block::wait`].
    ///
    /// # Errors
    /// As [`Block::wait`].
    pub fn as_bytes(&self) -> Result<&[u8], AllocError> {
        self.wait()?;
        Ok(self.bytes())
    }

    /// The block's bytes, to change, after [`Block::wait`].
    ///
    /// # Errors
    /// As [`Block::wait`].
    pub fn as_mut_bytes(&mut self) -> Result<&mut [u8], AllocError> {
        self.wait()?;
        Ok(self.bytes_mut())
    }

    fn bytes(&self) -> &[u8] {
        let pointer = std::ptr::with_exposed_provenance::<u8>(self.address() as usize);
        // SAFETY: the block's address is the start of `len` bytes that the driver gave, whose provenance is exposed, which were initialised
        // when their segment was made, and which belong to this block alone while it lives (the heap gives no byte twice); an empty
        // block's address is not null. Callers saw to it that no device writes there, or do not look.
        unsafe { std::slice::from_raw_parts(pointer, self.len() as usize) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let pointer = std::ptr::with_exposed_provenance_mut::<u8>(self.address() as usize);
        // SAFETY: as in `bytes`; `&mut self` makes this the only view.
        unsafe { std::slice::from_raw_parts_mut(pointer, self.len() as usize) }
    }
}

impl<T: AnyBitPattern> PinnedBuffer<T> {
    fn new(block: Block<Pinned>, len: usize, ordering: Ordering) -> Self {
        PinnedBuffer { block, len, ordering, may_be_captured: false, element: PhantomData }
    }

    /// Lets copies from and to the buffer be captured. Without it, a copy on a stream that is being captured copies nothing, and
    /// [`BackendError::Unsupported`] is left with the context in the driver's words.
    ///
    /// Views still wait for all that the streams of such captures were given until then, launches of graphs on them included.
    ///
    /// # Safety
    /// No graph that copies from or to the buffer runs while a view of it lives that says otherwise: none that writes there while there
    /// is any view, none that reads there while there is one to change. And none is launched once the buffer was dropped or taken apart.
    pub unsafe fn allow_captures(&mut self) {
        self.may_be_captured = true;
    }

    /// Whether a copy on a stream may have the elements. What is refused is left with the stream's context.
    fn may_copy(&self, stream: &CudaStream) -> bool {
        let Some(core) = self.block.core().filter(|_| !self.may_be_captured) else { return true };
        let refused = match Pinned::streams(core).captures(stream) {
            Ok(false) => return true,
            Ok(true) => BackendError::Unsupported { call: "capture of page-locked memory", backend: core.caps.name },
            Err(error) => error,
        };
        leave_error(stream, Err(refused));
        false
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The block that it is made of.
    pub fn block(&self) -> &Block<Pinned> {
        &self.block
    }

    /// The block that it is made of, without the type.
    pub fn into_block(self) -> Block<Pinned> {
        self.block
    }

    /// The elements, when no copy writes to them any more.
    ///
    /// # Errors
    /// What the driver says.
    pub fn as_slice(&self) -> Result<&[T], AllocError> {
        self.ordering.wait(&self.block, Use::Read)?;
        Ok(bytemuck::cast_slice(self.block.bytes()))
    }

    /// The elements, to change, when no copy reads or writes them any more.
    ///
    /// # Errors
    /// What the driver says.
    pub fn as_mut_slice(&mut self) -> Result<&mut [T], AllocError>
    where
        T: NoUninit,
    {
        self.ordering.wait(&self.block, Use::Write)?;
        Ok(bytemuck::cast_slice_mut(self.block.bytes_mut()))
    }
}

impl<T: AnyBitPattern + NoUninit> HostSlice<T> for PinnedBuffer<T> {
    fn len(&self) -> usize {
        self.len
    }

    /// The copy reads in the order of `stream`, behind copies of other streams that write here. No elements, where it is captured and
    /// that is not allowed.
    unsafe fn stream_synced_slice<'a>(&'a self, stream: &'a CudaStream) -> (&'a [T], SyncOnDrop<'a>) {
        if !self.may_copy(stream) {
            return (&[], SyncOnDrop::Sync(None));
        }
        let guard = self.ordering.begin_or_leave_error(&self.block, Use::Read, stream);
        (bytemuck::cast_slice(self.block.bytes()), guard)
    }

    /// The copy writes in the order of `stream`, behind copies of other streams that read or write here. No elements, where it is captured
    /// and that is not allowed.
    unsafe fn stream_synced_mut_slice<'a>(&'a mut self, stream: &'a CudaStream) -> (&'a mut [T], SyncOnDrop<'a>) {
        if !self.may_copy(stream) {
            return (&mut [], SyncOnDrop::Sync(None));
        }
        let guard = self.ordering.begin_or_leave_error(&self.block, Use::Write, stream);
        (bytemuck::cast_slice_mut(self.block.bytes_mut()), guard)
    }
}
