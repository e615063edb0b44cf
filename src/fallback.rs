//! A place for a block in the first of several memories that has room: "this device, else that one, else the disk".
//!
//! One rule: a tier that is *out of memory*, or can never serve a request of this size, passes it on; any other error ends the
//! request, because it says that something is wrong and not that something is full. Each tier climbs its own ladder first; to
//! have a tier pass on at once what would wait there, give its allocator [`OnLimit::FailFast`](crate::policy::OnLimit).
//!
//! Knows allocators by their handles only. Invariants: tiers are tried in the order in which they were added; each request counts
//! once in every tier that was asked.

#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use crate::allocator::{AllocError, Allocator, Any, Block, Memory, Request};
use crate::backend::BackendError;
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};
use crate::units::Bytes;

/// Memories in the order in which they are asked. Cheap to clone; clones share the counts of the tiers that they had when they
/// were made.
///
/// ```
/// use larder::{Allocator, Config, Fallback, units::MIB};
///
/// let small = Allocator::host(Config::default().limit(16 * MIB))?;
/// let large = Allocator::host(Config::default().limit(64 * MIB))?;
/// let memory = Fallback::new("fast", &small).then("slow", &large);
///
/// let (first, second) = (memory.alloc(12 * MIB)?, memory.alloc(12 * MIB)?);
/// assert_eq!((first.tier, second.tier), ("fast", "slow"));
/// assert_eq!(memory.stats()[0].refused, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Fallback {
    tiers: Vec<Tier>,
}

#[derive(Clone)]
struct Tier {
    name: &'static str,
    allocator: Allocator<Any>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    served: AtomicU64,
    served_bytes: AtomicU64,
    refused: AtomicU64,
    refused_bytes: AtomicU64,
}

/// A block, and where it went.
#[derive(Debug)]
pub struct Placed {
    /// The block.
    pub block: Block<Any>,
    /// The tier that had room.
    pub tier: &'static str,
}

/// What became of the requests that reached a tier.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TierStats {
    /// Its name.
    pub name: &'static str,
    /// Requests that it served.
    pub served: u64,
    /// Their bytes, as asked for.
    pub served_bytes: u64,
    /// Requests that it passed on, or that failed here.
    pub refused: u64,
    /// Their bytes, as asked for.
    pub refused_bytes: u64,
}

/// Why no tier served a request: what each one that was asked said, in order.
#[derive(Clone, PartialEq)]
pub struct FallbackError {
    /// Bytes asked for.
    pub requested: u64,
    /// The tiers that were asked, with their errors. The last ended the request: either it was the last of all, or its error
    /// was none of those that pass a request on.
    pub tiers: Vec<(&'static str, AllocError)>,
}

impl Fallback {
    /// Asks this memory first, under a name.
    pub fn new<M: Memory>(name: &'static str, allocator: &Allocator<M>) -> Self {
        Fallback { tiers: Vec::new() }.then(name, allocator)
    }

    /// Asks this memory when all before it are full.
    #[must_use]
    pub fn then<M: Memory>(mut self, name: &'static str, allocator: &Allocator<M>) -> Self {
        self.tiers.push(Tier { name, allocator: allocator.erase(), counts: Arc::default() });
        self
    }

    /// A block in the first tier that has room.
    ///
    /// # Errors
    /// What every tier said that was asked.
    #[track_caller]
    pub fn alloc(&self, bytes: u64) -> Result<Placed, FallbackError> {
        self.alloc_with(bytes, |request| request)
    }

    /// As [`Fallback::alloc`], with the request completed for each tier by `complete`: alignment, tag, zeros, deadline. (Streams
    /// and pools belong to one allocator each.)
    ///
    /// # Errors
    /// As [`Fallback::alloc`].
    #[track_caller]
    pub fn alloc_with(
        &self,
        bytes: u64,
        complete: impl for<'a> Fn(Request<'a, Any>) -> Request<'a, Any>,
    ) -> Result<Placed, FallbackError> {
        let mut errors = Vec::new();
        for tier in &self.tiers {
            match complete(tier.allocator.request(bytes)).alloc() {
                Ok(block) => {
                    tier.counts.served.fetch_add(1, Relaxed);
                    tier.counts.served_bytes.fetch_add(bytes, Relaxed);
                    return Ok(Placed { block, tier: tier.name });
                }
                Err(error) => {
                    tier.counts.refused.fetch_add(1, Relaxed);
                    tier.counts.refused_bytes.fetch_add(bytes, Relaxed);
                    let passes_on = passes_on(&error);
                    errors.push((tier.name, error));
                    if !passes_on {
                        break;
                    }
                }
            }
        }
        Err(FallbackError { requested: bytes, tiers: errors })
    }

    /// The counts of every tier, in order. What the tiers hold is in the statistics of their allocators.
    pub fn stats(&self) -> Vec<TierStats> {
        let stats = |tier: &Tier| TierStats {
            name: tier.name,
            served: tier.counts.served.load(Relaxed),
            served_bytes: tier.counts.served_bytes.load(Relaxed),
            refused: tier.counts.refused.load(Relaxed),
            refused_bytes: tier.counts.refused_bytes.load(Relaxed),
        };
        self.tiers.iter().map(stats).collect()
    }

    /// The tiers' names and allocators, in order.
    pub fn tiers(&self) -> impl Iterator<Item = (&'static str, &Allocator<Any>)> {
        self.tiers.iter().map(|tier| (tier.name, &tier.allocator))
    }
}

/// Whether another memory may serve what this one did not.
fn passes_on(error: &AllocError) -> bool {
    use BackendError::{OutOfMemory, TooLarge};
    matches!(
        error,
        AllocError::OutOfMemory(_)
            | AllocError::TooLarge { .. }
            | AllocError::Backend(OutOfMemory { .. } | TooLarge { .. })
    )
}

impl fmt::Debug for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.tiers()).finish()
    }
}

impl fmt::Display for FallbackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no memory served {}", Bytes(self.requested))?;
        self.tiers.iter().try_for_each(|(name, error)| write!(f, "\n{name}: {error}"))
    }
}

/// As `{}`, so that an error that ends a program by `?` can be read.
impl fmt::Debug for FallbackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for FallbackError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.tiers.last().map(|(_, error)| error as _)
    }
}
