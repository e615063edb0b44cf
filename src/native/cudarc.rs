//! Typed buffers of device memory that the calls of `cudarc` accept: copies, fills, cuBLAS and the like, kernels.
//!
//! A [`Buffer`] is a block with a type. It is read and written on any stream of its context, in an order that is kept here: each use
//! follows the last write, and a write follows the reads since. Nothing here frees anything but the block itself.
//!
//! The traits of `cudarc` cannot answer errors. What fails there is left with the context (`CudaContext::record_err`), and the next
//! call of `cudarc` answers it.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytemuck::AnyBitPattern;
use cudarc::driver::{
    CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceSlice, DriverError, LaunchArgs,
    PushKernelArg, SyncOnDrop, sys,
};

use super::ViewError;
use super::cuda::{Cuda, device};
use super::host::check_view;
use super::ordering::{Ordering, Use};
use crate::allocator::{AllocError, Allocator, Block, Stream};
use crate::backend::BackendError;
use crate::backend::cuda::Streams;

/// Elements in device memory. Dropping it gives the memory back, in the order of the streams that used it.
///
/// What it holds at first is whatever was there: any bits are a value of `T`.
#[derive(Debug)]
pub struct Buffer<T> {
    block: Block<Cuda>,
    len: usize,
    stream: Arc<CudaStream>,
    ordering: Ordering,
    /// Its stream is known to the allocator as long as there is a buffer on it.
    _known: Option<Stream>,
    element: PhantomData<fn() -> T>,
}

/// Some elements of a buffer, to read.
#[derive(Debug)]
pub struct Slice<'a, T> {
    buffer: &'a Buffer<T>,
    start: usize,
    len: usize,
}

/// Some elements of a buffer, to write.
#[derive(Debug)]
pub struct SliceMut<'a, T> {
    buffer: &'a Buffer<T>,
    start: usize,
    len: usize,
    share: Share,
    /// Nobody else has these elements.
    only: PhantomData<&'a mut Buffer<T>>,
}

/// Whether other elements of the buffer may be written at the same time.
#[derive(Clone, Copy, Debug)]
enum Share {
    Whole,
    Split,
}

impl<T> Clone for Slice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slice<'_, T> {}

impl Allocator<Cuda> {
    /// A buffer of `len` elements for a stream, of unspecified values.
    ///
    /// # Errors
    /// As [`Request::alloc`](crate::Request::alloc).
    #[track_caller]
    pub fn buffer_on<T: AnyBitPattern>(&self, stream: &Stream, len: usize) -> Result<Buffer<T>, AllocError> {
        let cuda_stream = self.cuda_stream(stream)?;
        let bytes = (len as u64).checked_mul(size_of::<T>() as u64);
        let max = self.capabilities().region_max;
        let bytes = bytes.ok_or(AllocError::TooLarge { requested: u64::MAX, max })?;
        let block = self.request(bytes).align(align_of::<T>() as u64).on(stream).alloc()?;
        Ok(Buffer::new(block, len, cuda_stream, Some(stream.clone())))
    }

    /// As [`Allocator::buffer_on`], for the default stream.
    ///
    /// # Errors
    /// As [`Allocator::buffer_on`].
    #[track_caller]
    pub fn buffer<T: AnyBitPattern>(&self, len: usize) -> Result<Buffer<T>, AllocError> {
        self.buffer_on(&self.default_stream(), len)
    }
}

impl Block<Cuda> {
    /// The block as elements of a plain type. Uses follow all that the streams it is in use on were given until then.
    ///
    /// # Errors
    /// A size that is not a whole number of elements, an address that does not suit them, or a block of no bytes, which has no stream.
    pub fn typed<T: AnyBitPattern>(self) -> Result<Buffer<T>, ViewError> {
        let len = check_view::<T>(self.len(), self.address())?;
        let (Some(core), Some(own)) = (self.core(), self.streams().first().copied()) else {
            return Err(ViewError::Empty);
        };
        let stream = device(core).stream(own).map_err(|_| ViewError::Empty)?;
        Ok(Buffer::new(self, len, stream, None))
    }
}

impl<T> Buffer<T> {
    fn new(block: Block<Cuda>, len: usize, stream: Arc<CudaStream>, known: Option<Stream>) -> Self {
        // Its bytes may have been freed a moment ago by work of its own stream: that is what the first use elsewhere follows.
        let ordering = Ordering::behind_all(block.streams());
        Buffer { block, len, stream, ordering, _known: known, element: PhantomData }
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
    pub fn block(&self) -> &Block<Cuda> {
        &self.block
    }

    /// The block that it is made of, without the type.
    pub fn into_block(self) -> Block<Cuda> {
        self.block
    }

    /// All elements, to read.
    pub fn as_slice(&self) -> Slice<'_, T> {
        Slice { buffer: self, start: 0, len: self.len }
    }

    /// All elements, to write.
    pub fn as_slice_mut(&mut self) -> SliceMut<'_, T> {
        let len = self.len;
        SliceMut { buffer: self, start: 0, len, share: Share::Whole, only: PhantomData }
    }

    /// Some elements, to read; `None` when the range does not lie within the buffer.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Option<Slice<'_, T>> {
        self.as_slice().slice(range)
    }

    /// Some elements, to write; `None` when the range does not lie within the buffer.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> Option<SliceMut<'_, T>> {
        self.as_slice_mut().slice_mut(range)
    }

    fn address(&self, start: usize) -> sys::CUdeviceptr {
        self.block.address() + (start * size_of::<T>()) as u64
    }

    /// An argument for a kernel that reads the buffer and is launched on `stream`: see [`Argument`].
    ///
    /// # Errors
    /// What the driver says: the streams could not be ordered.
    pub fn read_on<'a>(&'a self, stream: &'a CudaStream) -> Result<Argument<'a>, AllocError> {
        self.as_slice().read_on(stream)
    }

    /// An argument for a kernel that writes the buffer, or reads and writes it: see [`Argument`].
    ///
    /// # Errors
    /// As [`Buffer::read_on`].
    pub fn write_on<'a>(&'a mut self, stream: &'a CudaStream) -> Result<Argument<'a>, AllocError> {
        self.as_slice_mut().write_on(stream)
    }

    /// The buffer as a slice of `cudarc`'s own, lent for work on `stream`. On other streams `cudarc` orders uses by events of its own,
    /// where it tracks them at all; of several that only read it remembers one.
    ///
    /// # Errors
    /// What the driver says.
    pub fn lend_on<'a>(&'a self, stream: &'a Arc<CudaStream>) -> Result<Lent<'a, T>, AllocError> {
        Lent::new(self, Use::Read, stream)
    }

    /// As [`Buffer::lend_on`], for work that writes too.
    ///
    /// # Errors
    /// What the driver says.
    pub fn lend_mut_on<'a>(&'a mut self, stream: &'a Arc<CudaStream>) -> Result<LentMut<'a, T>, AllocError> {
        Lent::new(self, Use::Write, stream).map(LentMut)
    }
}

/// The start and length of a range within `len` elements.
fn within(range: impl RangeBounds<usize>, len: usize) -> Option<(usize, usize)> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.checked_add(1)?,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.checked_add(1)?,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => len,
    };
    (start <= end && end <= len).then(|| (start, end - start))
}

impl<'a, T> Slice<'a, T> {
    /// Some of these elements; `None` when the range does not lie within them.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Option<Slice<'a, T>> {
        let (start, len) = within(range, self.len)?;
        Some(Slice { buffer: self.buffer, start: self.start + start, len })
    }

    /// As [`Buffer::read_on`].
    ///
    /// # Errors
    /// As [`Buffer::read_on`].
    pub fn read_on(self, stream: &'a CudaStream) -> Result<Argument<'a>, AllocError> {
        Argument::new(self.buffer, self.start, Use::Read, stream)
    }
}

impl<'a, T> SliceMut<'a, T> {
    /// Some of these elements; `None` when the range does not lie within them.
    pub fn slice_mut(self, range: impl RangeBounds<usize>) -> Option<SliceMut<'a, T>> {
        let (start, len) = within(range, self.len)?;
        Some(SliceMut { start: self.start + start, len, ..self })
    }

    /// The first `at` elements and the others, to be used at the same time; `None` when there are fewer.
    pub fn split_at(self, at: usize) -> Option<(SliceMut<'a, T>, SliceMut<'a, T>)> {
        let len = self.len.checked_sub(at)?;
        let part = |start, len| SliceMut { start, len, share: Share::Split, only: PhantomData, buffer: self.buffer };
        Some((part(self.start, at), part(self.start + at, len)))
    }

    /// As [`Buffer::write_on`].
    ///
    /// # Errors
    /// As [`Buffer::read_on`].
    pub fn write_on(self, stream: &'a CudaStream) -> Result<Argument<'a>, AllocError> {
        Argument::new(self.buffer, self.start, self.write(), stream)
    }

    fn read(&self) -> Use {
        match self.share {
            Share::Whole => Use::Read,
            Share::Split => Use::PartRead,
        }
    }

    fn write(&self) -> Use {
        match self.share {
            Share::Whole => Use::Write,
            Share::Split => Use::PartWrite,
        }
    }
}

macro_rules! device_slice {
    ($($type:ty),*) => {$(
        impl<T> DeviceSlice<T> for $type {
            fn len(&self) -> usize {
                self.len
            }

            fn stream(&self) -> &Arc<CudaStream> {
                &self.buffer().stream
            }
        }
    )*};
}

device_slice!(Buffer<T>, Slice<'_, T>, SliceMut<'_, T>);

impl<T> Buffer<T> {
    fn buffer(&self) -> &Buffer<T> {
        self
    }

    /// Orders the stream and says where the elements from `start` on are.
    fn begin<'a>(&'a self, start: usize, how: Use, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        (self.address(start), self.ordering.begin_or_leave_error(&self.block, how, stream))
    }
}

impl<T> Slice<'_, T> {
    fn buffer(&self) -> &Buffer<T> {
        self.buffer
    }
}

impl<T> SliceMut<'_, T> {
    fn buffer(&self) -> &Buffer<T> {
        self.buffer
    }
}

impl<T> DevicePtr<T> for Buffer<T> {
    fn device_ptr<'a>(&'a self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        self.begin(0, Use::Read, stream)
    }
}

impl<T> DevicePtrMut<T> for Buffer<T> {
    fn device_ptr_mut<'a>(&'a mut self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        self.begin(0, Use::Write, stream)
    }
}

impl<T> DevicePtr<T> for Slice<'_, T> {
    fn device_ptr<'a>(&'a self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        self.buffer.begin(self.start, Use::Read, stream)
    }
}

impl<T> DevicePtr<T> for SliceMut<'_, T> {
    fn device_ptr<'a>(&'a self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        self.buffer.begin(self.start, self.read(), stream)
    }
}

impl<T> DevicePtrMut<T> for SliceMut<'_, T> {
    fn device_ptr_mut<'a>(&'a mut self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        self.buffer.begin(self.start, self.write(), stream)
    }
}

/// A buffer as an argument of a kernel: `launch.arg(&argument)`. It is made for one stream and is to be kept until the kernel was
/// launched, on that stream; `cudarc` does not say on which stream a launch will be, so a plain `&Buffer` is no argument.
#[must_use = "the kernel is to be launched while this is kept"]
#[derive(Debug)]
pub struct Argument<'a> {
    address: sys::CUdeviceptr,
    _finish: SyncOnDrop<'a>,
}

impl<'a> Argument<'a> {
    fn new<T>(buffer: &'a Buffer<T>, start: usize, how: Use, stream: &'a CudaStream) -> Result<Self, AllocError> {
        let (finish, ordered) = buffer.ordering.begin(&buffer.block, how, stream);
        ordered?;
        Ok(Argument { address: buffer.address(start), _finish: finish })
    }
}

// SAFETY: what is pushed is the device address itself, which lives in the argument for as long as it is borrowed, as for a plain `u64`.
unsafe impl<'a, 'b: 'a, 'c: 'b> PushKernelArg<&'b Argument<'c>> for LaunchArgs<'a> {
    #[inline(always)]
    fn arg(&mut self, argument: &'b Argument<'c>) -> &mut Self {
        PushKernelArg::<&'b sys::CUdeviceptr>::arg(self, &argument.address)
    }
}

/// A buffer lent as a slice of `cudarc`'s own. Dropped or forgotten, it frees nothing.
#[derive(Debug)]
pub struct Lent<'a, T> {
    slice: ManuallyDrop<CudaSlice<T>>,
    _finish: SyncOnDrop<'a>,
}

/// As [`Lent`], to write too.
#[derive(Debug)]
pub struct LentMut<'a, T>(Lent<'a, T>);

impl<'a, T> Lent<'a, T> {
    fn new(buffer: &'a Buffer<T>, how: Use, stream: &'a Arc<CudaStream>) -> Result<Self, AllocError> {
        let (finish, ordered) = buffer.ordering.begin(&buffer.block, how, stream);
        ordered?;
        let context = stream.context();
        let foreign = context.check_err();
        // Where `cudarc` cannot make its events it panics: better to know before.
        let slice = context.new_event(None).map(|_event| {
            // SAFETY: the address is of `len` elements that the buffer owns and lends for 'a; the slice is never dropped, so nothing
            // frees the address.
            unsafe { stream.upgrade_device_ptr::<T>(buffer.block.address(), buffer.len) }
        });
        context.record_err(foreign);
        let slice = slice.map_err(|error: DriverError| {
            let (reason, code) = (error.to_string(), error.0 as i64);
            BackendError::Driver { call: "cuEventCreate", reason, code }
        })?;
        let mut slice = ManuallyDrop::new(slice);
        // What another stream does with it follows `stream` as of now, as far as `cudarc` tracks it.
        drop(slice.device_ptr_mut(stream));
        Ok(Lent { slice, _finish: finish })
    }

    /// The elements, to read.
    pub fn view(&self) -> CudaView<'_, T> {
        self.slice.as_view()
    }
}

impl<T> LentMut<'_, T> {
    /// The elements, to read.
    pub fn view(&self) -> CudaView<'_, T> {
        self.0.view()
    }

    /// The elements, to write.
    pub fn view_mut(&mut self) -> CudaViewMut<'_, T> {
        self.0.slice.as_view_mut()
    }
}

impl<T> Drop for Lent<'_, T> {
    fn drop(&mut self) {
        // SAFETY: the slice is taken once, here, and never used again.
        let slice = unsafe { ManuallyDrop::take(&mut self.slice) };
        // Orders its stream behind what others did with it, and lets go of the events, not of the memory.
        let _ = slice.leak();
    }
}
