//! Blocks as the owners of each kind of memory use them.

mod host;

pub use host::ViewError;
