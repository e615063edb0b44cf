//! CUDA memory for those who have a [`CudaContext`] in hand: device memory, and page-locked host memory.
//!
//! ```no_run
//! use larder::{Config, cuda};
//!
//! let context = cuda::probe()?.context(0)?; // or one of your own
//! let gpu = cuda::allocator(&context, Config::default())?;
//! let stream = context.new_stream()?;
//! let s = gpu.stream_of(&stream)?; // keep it as long as the stream is used with this memory
//!
//! let mut x = gpu.buffer_on::<f32>(&s, 1 << 20)?;
//! stream.memcpy_htod(&vec![1.0; 1 << 20], &mut x)?;
//! let back = stream.clone_dtoh(&x)?;
//! drop(x); // used again in the order of the stream; nobody waits
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Streams
//! [`Stream`] number 0 is the context's default stream (the null stream). A stream of yours is known to an allocator after
//! [`Allocator::stream_of`], as long as you keep what it answers; device memory and pinned memory each have to be told. On a stream that
//! is not known everything works too, but whatever is done with a buffer there is waited for at once. The default stream of each
//! thread (`per_thread_stream`) is another stream on each thread under one handle, and is refused.
//!
//! # Memory
//! One allocator for each device is enough: clones and pools share what is free. Device memory comes by the page where the device has virtual memory: free pages are moved together instead of being stranded between
//! blocks, without a copy and without a wait, by mapping them at a second address while work on the first is unfinished. CUDA defines
//! that for accesses that streams or events order; whoever has kernels that never end sets [`Config::alias`] to `false`, and pages move
//! when their work is complete. Without virtual memory, or with [`CudaConfig::plain`], it comes in segments.
//!
//! # Graphs
//! What is allocated while a stream is captured is used by the graph at each launch, so its addresses must stay what they are:
//!
//! ```no_run
//! # use larder::{Config, cuda};
//! # use cuda::cudarc::driver::sys::{CUgraphInstantiate_flags_enum as Flags, CUstreamCaptureMode_enum as Mode};
//! # let context = cuda::probe()?.context(0)?;
//! # let gpu = cuda::allocator(&context, Config::default())?;
//! # let stream = context.new_stream()?;
//! let s = gpu.stream_of(&stream)?;
//! let capture = gpu.capture(&s)?; // from now on, requests on `s` are served from a pool of the capture's own
//! stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_GLOBAL)?;
//! let mut scratch = gpu.buffer_on::<f32>(&s, 4096)?; // grows if it must: that ends no capture
//! stream.memset_zeros(&mut scratch)?;
//! drop(scratch); // free for later requests of this capture, and for nobody else
//! let graph = stream.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)?;
//! let memory = capture.end(); // keeps the pool's pages where they are
//! graph.iter().try_for_each(|graph| graph.launch())?;
//! drop((graph, memory)); // the graph first
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Announce a capture before it begins: an event that the allocator records on a stream at the very moment its capture begins would
//! become part of the graph. A stream that joins the capture by an event is announced with [`Capture::join`](crate::allocator::Capture::join);
//! while a capture is announced, requests on streams that joined it otherwise are refused.
//!
//! Make the first stream of a context, [`Allocator::stream`] included, while nothing is captured: `cudarc` waits for the whole context
//! then, so that work from before, which it did not track, is over, and that ends a capture. As long as `cudarc` has a stream, further
//! ones end none. Only a capture of a stream that `cudarc` did not make can be under way before it has one.
//!
//! A launch is not seen by a buffer. Once a use of it was captured, every later use follows what the captured stream was given until then,
//! which is where `cudarc` launches a graph; that the launch itself follows what other streams do with the buffer is for the caller to see to
//! (`CudaStream::join`).
//!
//! Page-locked memory is looked at by the CPU, and a launch under a view would be undefined behaviour. So copies from and to a
//! [`PinnedBuffer`] are not captured: they copy nothing and leave an error with the context, unless its owner promised to keep views and
//! launches apart ([`PinnedBuffer::allow_captures`], unsafe). It is used again only when the work on it is known to be complete, which
//! nothing can tell during a capture: what is dropped meanwhile is free for nobody, not even for the same capture, until that has ended.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};

use crate::allocator::core::Core;
use crate::allocator::{AllocError, Allocator, Block, Memory, Stream, sealed};
use crate::backend::BackendError;
use crate::backend::cuda::{CudaDevice, PinnedHost, Streams};
use crate::backend::host::default_limit;
use crate::ids::StreamId;
use crate::policy::Config;

pub use super::cudarc::{Argument, Buffer, Lent, LentMut, Slice, SliceMut};
pub use super::pinned::PinnedBuffer;
pub use crate::backend::cuda::{CudaConfig, CudaUnavailable, DeviceInfo, PinnedConfig, Probe, probe};
/// The `cudarc` whose types are meant here.
pub use cudarc;

/// Memory of a CUDA device.
#[derive(Clone, Copy, Debug)]
pub enum Cuda {}

/// Page-locked memory of the host, which CUDA devices copy from and to by themselves.
#[derive(Clone, Copy, Debug)]
pub enum Pinned {}

impl sealed::Sealed for Cuda {}
impl sealed::Sealed for Pinned {}

impl Memory for Cuda {
    type Kept = ();
}

impl Memory for Pinned {
    type Kept = ();
}

/// Memory that streams of CUDA use.
pub(super) trait OnStreams: Memory {
    fn streams(core: &Core) -> &dyn Streams;
}

impl OnStreams for Cuda {
    fn streams(core: &Core) -> &dyn Streams {
        device(core)
    }
}

impl OnStreams for Pinned {
    fn streams(core: &Core) -> &dyn Streams {
        core.backend_as::<PinnedHost>().expect("memory of this kind comes from this backend")
    }
}

/// The device that memory of the kind [`Cuda`] comes from.
pub(super) fn device(core: &Core) -> &CudaDevice {
    core.backend_as().expect("memory of this kind comes from this backend")
}

/// An allocator of a device's memory, over a context of the caller's. Without a limit in the config it is all of the device's memory;
/// the device says itself when it has less.
///
/// # Errors
/// A config that contradicts itself or does not suit the device; a driver that fails.
pub fn allocator(context: &Arc<CudaContext>, config: Config) -> Result<Allocator<Cuda>, AllocError> {
    allocator_with(context, CudaConfig::default(), config)
}

/// As [`allocator`], with choices about pages, peers and export. The page of `config`, where set, is the device's too.
///
/// # Errors
/// As [`allocator`], and what the device cannot do.
pub fn allocator_with(
    context: &Arc<CudaContext>,
    mut cuda: CudaConfig,
    config: Config,
) -> Result<Allocator<Cuda>, AllocError> {
    config.validate()?;
    cuda.page = config.page.or(cuda.page);
    let device = CudaDevice::new(context, &cuda)?;
    let total = device.total();
    Allocator::over(Box::new(device), config, Some(total))
}

/// An allocator of page-locked host memory for copies from and to the context's device. Without a limit in the config it is half of
/// what [`Allocator::host`] would take: such memory cannot be swapped out.
///
/// # Errors
/// A config that contradicts itself; a driver that fails.
pub fn pinned(context: &Arc<CudaContext>, config: Config) -> Result<Allocator<Pinned>, AllocError> {
    pinned_with(context, PinnedConfig::default(), config)
}

/// As [`pinned`], with choices about how the CPU sees it.
///
/// # Errors
/// As [`pinned`].
pub fn pinned_with(
    context: &Arc<CudaContext>,
    pinned: PinnedConfig,
    config: Config,
) -> Result<Allocator<Pinned>, AllocError> {
    config.validate()?;
    Allocator::over(Box::new(PinnedHost::new(context, pinned)?), config, Some(default_limit() / 2))
}

/// What both kinds of allocator do with streams.
macro_rules! with_streams {
    ($kind:ident) => {
        impl Allocator<$kind> {
            /// The context that the memory belongs to.
            pub fn context(&self) -> &Arc<CudaContext> {
                $kind::streams(&self.core).context()
            }

            /// The number of the device.
            pub fn device(&self) -> usize {
                self.context().ordinal()
            }

            /// A stream of the caller's, as this allocator knows it. Brought again, it is the same [`Stream`] as long as somebody
            /// keeps that; the `CudaStream` is kept alive meanwhile.
            ///
            /// # Errors
            /// [`AllocError::ForeignStream`]: it belongs to another context. [`BackendError::Unsupported`]: it is the default stream
            /// of each thread.
            #[must_use = "the stream is known only as long as this, or a buffer on it, is kept"]
            pub fn stream_of(&self, stream: &Arc<CudaStream>) -> Result<Stream, AllocError> {
                adopt(&self.core, $kind::streams(&self.core), stream)
            }

            /// The CUDA stream behind a stream of this allocator, its own streams included.
            ///
            /// # Errors
            /// [`AllocError::ForeignStream`]: it is another allocator's.
            pub fn cuda_stream(&self, stream: &Stream) -> Result<Arc<CudaStream>, AllocError> {
                if !stream.belongs_to(&self.core) {
                    return Err(AllocError::ForeignStream);
                }
                Ok($kind::streams(&self.core).stream(stream.id())?)
            }
        }

        impl Block<$kind> {
            /// The number of its device; `None` for a block of no bytes.
            pub fn device(&self) -> Option<usize> {
                self.core().map(|core| $kind::streams(core).context().ordinal())
            }
        }
    };
}

with_streams!(Cuda);
with_streams!(Pinned);

impl Block<Cuda> {
    /// Its address on the device. Whoever gives work that uses it to another stream than the block was made for says so with
    /// [`Block::used_on`].
    pub fn ptr(&self) -> cudarc::driver::sys::CUdeviceptr {
        self.address()
    }
}

/// `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD`.
const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

fn adopt(core: &Arc<Core>, streams: &dyn Streams, stream: &Arc<CudaStream>) -> Result<Stream, AllocError> {
    if stream.context() != streams.context() {
        return Err(AllocError::ForeignStream);
    }
    match stream.cu_stream() as usize {
        PER_THREAD => {
            let call = "the default stream of each thread";
            Err(BackendError::Unsupported { call, backend: core.caps.name }.into())
        }
        LEGACY => Ok(Stream::new(core.clone(), StreamId(0))),
        _ => Ok(core.adopt_stream(|id| streams.is_stream(id, stream), || streams.add_stream(stream.clone()))?),
    }
}
