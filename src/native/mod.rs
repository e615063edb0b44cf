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

pub use host::ViewError;
