//! Memory of this machine.
//!
//! Two backends over the same contract ([`crate::backend`]): [`System`] takes segments from the allocator of the program
//! and runs everywhere; [`Mmap`] reserves addresses and puts pages behind them as needed, on Unix: of the system's memory, or
//! of files in a folder (Linux), where there may be more. Neither knows streams:
//! what the CPU does is done when it returns, so every event is done when it is recorded.
//!
//! Both check every span against what they know of the region before they touch a byte, so that a caller's mistake is a
//! [`BackendError::Contract`](crate::backend::BackendError::Contract) and never an access to memory that is not there.
//! Both give all memory back when they are dropped.

#[cfg(unix)]
mod file;
pub mod limit;
#[cfg(unix)]
mod mapping;
#[cfg(unix)]
mod mmap;
#[cfg(unix)]
mod runs;
mod system;

pub use limit::default_limit;
#[cfg(unix)]
pub use mmap::{HugePages, Mmap, MmapConfig};
pub use system::System;
