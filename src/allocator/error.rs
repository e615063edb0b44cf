//! Why an allocation did not happen.

use crate::backend::BackendError;
use crate::ids::PoolId;
use crate::policy::ConfigError;
use crate::snapshot::OomReport;
use crate::units::Bytes;

/// Why an allocation did not happen. Small: the report of an out-of-memory error is boxed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocError {
    /// Memory ran out; the report says how it came and what would help.
    #[error("{0}")]
    OutOfMemory(Box<OomReport>),
    /// The request can never be served here, whatever is free.
    #[error("{requested} bytes ({}) asked for: the most in one block is {max} bytes ({})", Bytes(*.requested), Bytes(*.max))]
    TooLarge {
        /// Bytes asked for.
        requested: u64,
        /// The most in one block.
        max: u64,
    },
    /// The alignment is not a power of two, or above what the memory can promise.
    #[error("alignment {align}: must be a power of two of at most {max}")]
    BadAlignment {
        /// What was asked for.
        align: u64,
        /// The most.
        max: u64,
    },
    /// There is no such pool.
    #[error("there is no pool {pool}; this allocator has {pools}")]
    UnknownPool {
        /// What was asked for.
        pool: PoolId,
        /// Number of pools.
        pools: usize,
    },
    /// An allocator has so many pools at most.
    #[error("an allocator has at most {max} pools")]
    TooManyPools {
        /// The most.
        max: usize,
    },
    /// The pool is that of a captured graph, which uses its memory at each launch.
    #[error("pool {pool} belongs to a captured graph: what lies there is the graph's alone")]
    GraphPool {
        /// The pool.
        pool: PoolId,
    },
    /// The stream belongs to another allocator.
    #[error("the stream belongs to another allocator")]
    ForeignStream,
    /// The config contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The backend failed in a way that more memory would not mend.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl AllocError {
    /// The report, when memory ran out.
    pub fn report(&self) -> Option<&OomReport> {
        match self {
            AllocError::OutOfMemory(report) => Some(report),
            _ => None,
        }
    }
}
