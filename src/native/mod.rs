//! Blocks as the owners of each kind of memory use them.

#[cfg(feature = "cuda")]
pub mod cuda;
mod host;

pub use host::ViewError;
