//! Blocks as the owners of each kind of memory use them.

mod host;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use host::ViewError;
