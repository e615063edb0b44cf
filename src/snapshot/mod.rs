//! What an allocator looks like at one instant, what happened to it, and why a request failed: plain, versioned data.
//!
//! Everything here is copied under a lock and read outside of it. Text is made by `Display`; other forms are functions
//! of the same data elsewhere.

#![forbid(unsafe_code)]

mod history;
mod leaks;
mod misuse;
mod oom;

use std::fmt;

use crate::backend::Budget;
use crate::ids::{BlockId, PoolId, RegionId, StreamId};
use crate::stats::Stats;

pub use history::{Action, Event, History, Window};
pub use leaks::{LeakGroup, Leaks};
pub use misuse::{Misuse, Wrong};
pub use oom::{OomReport, Outcome, RequestRecord, Rung, Step, Verdict};

/// Version of the plain data in this module. It grows when a field changes its meaning or goes away.
pub const VERSION: u32 = 1;

/// A place in the source that asked for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Site {
    /// File.
    pub file: &'static str,
    /// Line.
    pub line: u32,
}

impl From<&'static std::panic::Location<'static>> for Site {
    fn from(location: &'static std::panic::Location<'static>) -> Self {
        Site { file: location.file(), line: location.line() }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What a block is, for readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum BlockState {
    /// Backed and owned by nobody.
    Free,
    /// Owned by a handle.
    Live,
    /// Free, but every stream would have to wait for another.
    Pending,
    /// Being moved or given back.
    Held,
    /// Nothing behind it.
    Unbacked,
    /// The old address of moved pages, not yet unmapped.
    Retired,
}

/// One block.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct BlockRecord {
    /// Its id.
    pub id: BlockId,
    /// Bytes from the start of its region.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub state: BlockState,
    /// Bytes asked for (live blocks; 0 otherwise).
    pub requested: u64,
    /// The stream it was allocated on (live blocks).
    pub stream: StreamId,
    /// Streams that use it too (live), or whose work it waits for (free).
    pub waits_for: Vec<StreamId>,
    /// Label of a live block; empty when it has none.
    pub tag: String,
    /// Who asked for it (live blocks).
    pub site: Option<Site>,
}

/// One region with its blocks in the order of their addresses.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RegionRecord {
    /// Its id.
    pub id: RegionId,
    /// The address of offset 0.
    pub base: u64,
    /// Bytes of addresses.
    pub size: u64,
    /// Bytes of a page; `None` for a segment.
    pub page: Option<u64>,
    /// Its blocks.
    pub blocks: Vec<BlockRecord>,
}

/// One pool.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PoolRecord {
    /// Its id.
    pub id: PoolId,
    /// Its name.
    pub name: String,
    /// The most it may hold, if there is a limit.
    pub limit: Option<u64>,
    /// Its figures.
    pub stats: Stats,
    /// Free bytes that cannot be returned at the page, because their page or segment holds something live.
    pub stranded: u64,
    /// Size of its largest free block.
    pub largest_free: u64,
    /// Bytes by tag, largest first.
    pub tags: Vec<TagRecord>,
    /// Its regions.
    pub regions: Vec<RegionRecord>,
}

/// What blocks with one tag hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TagRecord {
    /// The label; empty for blocks without one.
    pub tag: String,
    /// Bytes of live blocks.
    pub live: u64,
    /// Number of live blocks.
    pub blocks: u64,
}

/// Everything that an allocator holds.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Snapshot {
    /// [`VERSION`].
    pub version: u32,
    /// The backend's name.
    pub backend: String,
    /// The most that may be reserved, if there is a limit.
    pub limit: Option<u64>,
    /// What the device says, if it says anything.
    pub budget: Option<Budget>,
    /// Bytes that the backend, or an allocator below it, holds from the device besides what is reserved here.
    pub beneath: u64,
    /// Sums over the pools.
    pub stats: Stats,
    /// The pools.
    pub pools: Vec<PoolRecord>,
    /// What happened, where the config keeps a history.
    pub history: Option<History>,
}
