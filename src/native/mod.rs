//! Blocks as the owners of each kind of memory use them.

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
mod cudarc;
#[cfg(feature = "cuda")]
mod fill;
mod host;
#[cfg(feature = "cuda")]
mod ordering;
#[cfg(feature = "cuda")]
mod pinned;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use host::ViewError;
#[cfg(feature = "cuda")]
pub(crate) use host::{bytes, bytes_mut};
