//! A caching memory allocator for host and device memory.

pub mod backend;
pub mod fence;
pub mod heap;
pub mod ids;
pub mod policy;
pub mod snapshot;
pub mod stats;
pub mod units;
