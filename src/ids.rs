//! Names of things as small integers. Each prints short, so that a panic or a trail can be searched for it.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

id!(
    /// One address reservation, or one segment. Given by the backend; never given twice.
    RegionId(u32),
    "r"
);
id!(
    /// A stream of a device. Given by the backend; `StreamId(0)` is its default stream.
    StreamId(u16),
    "st"
);
id!(
    /// A pool of an allocator; `PoolId(0)` is the one that every allocator has.
    PoolId(u16),
    "p"
);
id!(
    /// A recorded event of a backend.
    EventId(u64),
    "e"
);

/// A block of a heap: the index of its record and the generation of that record.
///
/// A record's generation changes each time its block is freed, so an id names one allocation only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BlockId {
    /// Index of the record.
    pub index: u32,
    /// Generation of the record.
    pub generation: u32,
}

impl fmt::Debug for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{}.{}", self.index, self.generation)
    }
}

/// What work a stretch of free memory must wait for. Opaque to the heap, which only joins and copies it;
/// [`crate::fence::Clocks`] gives it meaning.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FenceId(pub(crate) u64);

impl FenceId {
    /// Nothing to wait for.
    pub const NONE: FenceId = FenceId(0);
    /// Set when the fence names several streams and lives in a table.
    pub(crate) const SHARED: u64 = 1 << 63;

    /// A fence of one's own, for those who implement [`Fences`]: `word` is theirs to choose below 2^63, and not 0.
    ///
    /// # Panics
    /// When `word` is not such a number.
    pub const fn alone(word: u64) -> FenceId {
        assert!(word > 0 && word < Self::SHARED);
        FenceId(word)
    }

    /// As [`FenceId::alone`], for a fence of several streams.
    ///
    /// # Panics
    /// As [`FenceId::alone`].
    pub const fn of_several(word: u64) -> FenceId {
        FenceId(Self::alone(word).0 | Self::SHARED)
    }

    /// The word that the fence was made of.
    pub const fn word(self) -> u64 {
        self.0 & !Self::SHARED
    }

    /// Whether more than one stream's work must be waited for.
    #[inline(always)]
    pub fn is_shared(self) -> bool {
        self.0 & Self::SHARED != 0
    }
}

/// Who wants memory behind a fence, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A stream, now, without any wait.
    Now(StreamId),
    /// Anybody, because all earlier work is complete.
    Completed,
    /// A stream, behind waits that will be put in place.
    AfterWait,
}

/// How free stretches' fences are tested and combined; the heap calls it and understands nothing of it.
///
/// Each [`FenceId`] has one owner: `join` and `release` end it, `copy` makes another.
pub trait Fences {
    /// Whether memory behind `fence` may be had in this way.
    fn passes(&self, fence: FenceId, access: Access) -> bool;
    /// A fence that waits for whatever `a` and `b` wait for. Both are ended.
    fn join(&mut self, a: FenceId, b: FenceId) -> FenceId;
    /// The same fence with what is complete left out. The old one is ended.
    fn simplify(&mut self, fence: FenceId) -> FenceId;
    /// A second fence that waits for the same.
    fn copy(&mut self, fence: FenceId) -> FenceId;
    /// Ends a fence.
    fn release(&mut self, fence: FenceId);
}

impl fmt::Debug for FenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => write!(f, "f-"),
            word if self.is_shared() => write!(f, "f*{}", word & !Self::SHARED),
            word => write!(f, "f{}:{}", word >> 48, word & ((1 << 48) - 1)),
        }
    }
}
