//! A caching memory allocator for host and device memory.

pub mod backend;
pub mod ids;
pub mod trace;
pub mod units;
