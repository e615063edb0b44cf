//! Memory for those who have a wgpu device: blocks as bindings, recordings, and bytes there and back.
//!
//! ```no_run
//! # use larder::wgpu::api::{Device, Queue};
//! # fn adopt(device: &Device, queue: &Queue) -> Result<(), Box<dyn std::error::Error>> {
//! let gpu = larder::wgpu::allocator(device, queue, larder::Config::default())?;
//! let weights = gpu.alloc(1 << 20)?;
//! gpu.upload(&weights, &vec![1.0_f32; 1 << 18])?;
//!
//! let recording = gpu.recording()?; // before anything is recorded
//! let mut encoder = device.create_command_encoder(&Default::default());
//! let scratch = gpu.alloc(4096)?;
//! let _entry = larder::wgpu::api::BindGroupEntry { binding: 0, resource: scratch.binding()? };
//! drop(scratch); // not reused before the recording is submitted
//! recording.submit([encoder.finish()]);
//! # Ok(()) }
//! ```
//!
//! # When is memory reused
//! A block that is dropped is reused by whatever is submitted later, without waiting: the queue keeps the order. The allocator sees
//! no commands, so it must be told of those that are recorded and not submitted: a [`Recording`] is open while it lives, and a block
//! that is dropped meanwhile is kept until every recording that was open then has been submitted or abandoned. Without one, drop
//! blocks after the submission.
//!
//! # What shaders may bind
//! Blocks share buffers. Within one dispatch, wgpu refuses a buffer that is bound `read` in one place and `read_write` in another, and one
//! that is bound `read_write` and used for an indirect dispatch, wherever the ranges lie. So declare every storage binding
//! `read_write`, or place blocks with [`Request::apart_from`] and look with [`same_segment`]. Dynamic offsets make wgpu clear a
//! whole buffer at first use.
//!
//! # What keeps memory
//! A bind group over a block keeps the block's buffer, as wgpu has it. Drop it with the block: what the allocator returns, by
//! [`Allocator::purge`] say or to make room for a larger segment, goes back to the device only when no bind group and no clone of the
//! buffer is left.
//!
//! # What the program must not do
//! Callbacks given to wgpu (`map_async`, `on_submitted_work_done`) may run inside a call of this crate, which looks for completed work,
//! on the thread that made it and under its locks. They may drop blocks, and must call nothing else of this crate: to allocate,
//! trim, purge, tick, add a pool, upload or read there may wait for ever for the call that they are in. Neither may the last handle
//! of an allocator be dropped there. A panic of theirs comes out of that call.
//!
//! The `wgpu` crate that this one was built with is [`api`].

mod open;
mod transfer;

use std::sync::OnceLock;

use ::wgpu::{BindingResource, Buffer, BufferBinding, CommandBuffer, Device, Queue, SubmissionIndex};

use crate::allocator::{AllocError, Allocator, Block, Memory, OpenRecording, Request, sealed};
use crate::ids::RegionId;
use crate::policy::{Config, ConfigError};
use crate::units::Bytes;

pub use crate::backend::wgpu::{Wgpu as Backing, WgpuConfig};
pub use ::wgpu as api;
pub use open::{Choice, OpenError, adapters, best, open};
pub use transfer::{Part, TransferError};

/// Memory of a wgpu device.
#[derive(Clone, Copy, Debug)]
pub enum Wgpu {}

impl sealed::Sealed for Wgpu {}

impl Memory for Wgpu {
    type Kept = OnceLock<Place>;
}

/// Where a block lies, looked up once.
#[derive(Debug)]
pub struct Place {
    buffer: Buffer,
    region: RegionId,
    offset: u64,
    binding_max: u64,
}

/// An allocator over the caller's device and queue.
///
/// # Errors
/// A config that contradicts itself or the device; a device that is lost.
pub fn allocator(device: &Device, queue: &Queue, config: Config) -> Result<Allocator<Wgpu>, AllocError> {
    allocator_with(device, queue, WgpuConfig::default(), config)
}

/// As [`allocator`], with choices about the buffers.
///
/// # Errors
/// As [`allocator`].
pub fn allocator_with(
    device: &Device,
    queue: &Queue,
    wgpu: WgpuConfig,
    config: Config,
) -> Result<Allocator<Wgpu>, AllocError> {
    over(&Backing::new(device, queue, wgpu)?, config)
}

/// An allocator over a backend that the caller keeps a handle of, to look at from outside. A backend serves one allocator.
/// [`Config::segment_min`] counts where it is not its default; else [`WgpuConfig::segment_min`] if that is more.
///
/// # Errors
/// As [`allocator`].
pub fn over(backend: &Backing, mut config: Config) -> Result<Allocator<Wgpu>, AllocError> {
    let least = u64::from(backend.limits().min_storage_buffer_offset_alignment);
    if let Some(quantum) = config.quantum.filter(|quantum| *quantum < least) {
        let (low, high) = ("min_storage_buffer_offset_alignment", "quantum");
        let (low_value, high_value) = (least as f64, quantum as f64);
        return Err(ConfigError::Contradiction { low, low_value, high, high_value }.into());
    }
    if config.segment_min == Config::default().segment_min {
        config.segment_min = config.segment_min.max(backend.config().segment_min);
    }
    Allocator::over(Box::new(backend.clone()), config, None)
}

impl Allocator<Wgpu> {
    fn backing(&self) -> &Backing {
        self.core.backend_as().expect("the backend of this kind of memory")
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.backing().device()
    }

    /// Its queue.
    pub fn queue(&self) -> &Queue {
        self.backing().queue()
    }

    /// Says that commands are about to be recorded. Open it before the first of them; until it is submitted or dropped, no
    /// block that is dropped is reused.
    ///
    /// # Errors
    /// [`BackendError::TooLarge`](crate::backend::BackendError::TooLarge): some thousands are open.
    pub fn recording(&self) -> Result<Recording, AllocError> {
        Ok(Recording { open: OpenRecording::new(&self.core)?, queue: self.queue().clone() })
    }
}

/// Commands that are recorded and not submitted. Dropping it abandons them: they must not be submitted then.
#[must_use = "the recording is abandoned when this is dropped"]
pub struct Recording {
    open: OpenRecording,
    queue: Queue,
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording").finish_non_exhaustive()
    }
}

impl Recording {
    /// Submits the commands, as [`Queue::submit`] does, and closes the recording.
    pub fn submit(self, commands: impl IntoIterator<Item = CommandBuffer>) -> SubmissionIndex {
        let index = self.queue.submit(commands);
        drop(self.open);
        index
    }
}

/// Why a block cannot be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindingError {
    /// A block of no bytes has no buffer.
    #[error("a block of no bytes cannot be bound")]
    Empty,
    /// One binding cannot hold it: bind parts of it, or ask the device for more.
    #[error("a binding of {}: the device's max_storage_buffer_binding_size is {}", Bytes(*.size), Bytes(*.max))]
    TooLarge {
        /// Bytes of the binding.
        size: u64,
        /// The most that the device was requested with.
        max: u64,
    },
}

impl Block<Wgpu> {
    fn place(&self) -> Option<&Place> {
        let (core, span) = (self.core()?, || self.span());
        Some(self.kept().get_or_init(|| {
            let backing: &Backing = core.backend_as().expect("the backend of this kind of memory");
            let span = span().expect("a block with a core has a place");
            let buffer = backing.buffer(span.region).expect("the segment of a live block is live");
            let binding_max = backing.limits().max_storage_buffer_binding_size;
            Place { buffer, region: span.region, offset: span.offset, binding_max }
        }))
    }

    /// The whole block as a storage binding.
    ///
    /// # Errors
    /// A block of no bytes, or of more than a binding of this device can hold.
    pub fn binding(&self) -> Result<BindingResource<'_>, BindingError> {
        let place = self.place().ok_or(BindingError::Empty)?;
        let (size, max) = (self.binding_size(), place.binding_max);
        if size > max {
            return Err(BindingError::TooLarge { size, max });
        }
        let size = std::num::NonZeroU64::new(size);
        Ok(BindingResource::Buffer(BufferBinding { buffer: &place.buffer, offset: place.offset, size }))
    }

    /// The buffer that the block is a part of; other blocks are parts of it too. `None` for a block of no bytes. A clone of it keeps its
    /// memory from the device even when the allocator has given it back; see [the module](self).
    pub fn buffer(&self) -> Option<&Buffer> {
        self.place().map(|place| &place.buffer)
    }

    /// Bytes from the start of the buffer: a multiple of what bindings may start at. 0 for a block of no bytes.
    pub fn offset(&self) -> u64 {
        self.place().map_or(0, |place| place.offset)
    }

    /// Bytes of a binding: what was asked for, rounded up to whole words of 4 bytes.
    pub fn binding_size(&self) -> u64 {
        self.len().next_multiple_of(crate::backend::wgpu::WORD)
    }
}

/// Whether two blocks are parts of one buffer. A block of no bytes is part of none.
pub fn same_segment(a: &Block<Wgpu>, b: &Block<Wgpu>) -> bool {
    matches!((a.buffer(), b.buffer()), (Some(a), Some(b)) if a == b)
}

impl Request<'_, Wgpu> {
    /// The block is not to be a part of the same buffer as this one, so that a shader may read the one and write the other.
    pub fn apart_from(self, block: &Block<Wgpu>) -> Self {
        match block.place() {
            Some(place) => self.apart_from_region(place.region),
            None => self,
        }
    }
}
