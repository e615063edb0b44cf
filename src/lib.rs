//! A caching memory allocator for host and device memory.

pub mod allocator;
pub mod backend;
pub mod diag;
pub mod fence;
pub mod heap;
pub mod ids;
pub mod native;
pub mod policy;
pub mod snapshot;
pub mod stats;
pub mod trace;
pub mod units;

pub use allocator::{AllocError, Allocator, Any, Block, Host, Memory, Request, Simulated, Stream, tag};
pub use policy::{Config, PoolConfig};
pub use snapshot::OomReport;
pub use stats::Stats;
