//! The order of the locks, and what a thread holds of them. Without debug assertions nothing of it is left.

#[cfg(debug_assertions)]
use std::cell::Cell;

/// The locks in the order in which one thread takes them: never one of a rank while it holds another of this rank or a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// One thread on the rungs behind the first search. May be held across driver calls.
    Slow,
    /// The handles of streams. May be held across driver calls.
    Handles,
    /// Open recordings.
    Recordings,
    /// Announced captures.
    Captures,
    /// A pool's limits.
    PoolConfig,
    /// The config.
    Config,
    /// What debug mode keeps. Held while it looks at bytes.
    Ledger,
    /// A pool's heap and clocks: arithmetic only, and no two pools' at once.
    State,
    /// The simulated device's own.
    Device,
    /// Lists and the like, each held for a few instructions.
    Leaf,
}

#[cfg(debug_assertions)]
crate::sync::thread_local! {
    /// The ranks that this thread holds, a bit for each.
    static HELD: Cell<u32> = const { Cell::new(0) };
}

/// A lock's rank, where it is known.
#[derive(Clone, Copy)]
pub(super) struct Ranked {
    #[cfg(debug_assertions)]
    rank: Rank,
}

/// The presence of a rank among those that this thread holds.
pub(super) struct Held {
    #[cfg(debug_assertions)]
    rank: Rank,
}

#[cfg(debug_assertions)]
impl Ranked {
    pub(super) fn new(rank: Rank) -> Self {
        Ranked { rank }
    }

    /// Before the lock is waited for: an order that can end in a deadlock is found without one.
    #[track_caller]
    pub(super) fn enter(self) -> Held {
        assert_free_from(self.rank);
        HELD.with(|held| held.set(held.get() | bit(self.rank)));
        Held { rank: self.rank }
    }
}

#[cfg(debug_assertions)]
impl Drop for Held {
    fn drop(&mut self) {
        HELD.with(|held| held.set(held.get() & !bit(self.rank)));
    }
}

#[cfg(debug_assertions)]
impl Held {
    /// # Panics
    /// When this thread holds another lock.
    #[track_caller]
    pub(super) fn assert_alone(&self) {
        let others = HELD.with(Cell::get) & !bit(self.rank);
        assert!(others == 0, "a wait with {:?} and other locks held: {}", self.rank, names(others));
    }
}

#[cfg(debug_assertions)]
fn bit(rank: Rank) -> u32 {
    1 << rank as u32
}

#[cfg(debug_assertions)]
fn names(held: u32) -> String {
    use Rank::{Captures, Config, Device, Handles, Leaf, Ledger, PoolConfig, Recordings, Slow, State};
    let all = [Slow, Handles, Recordings, Captures, PoolConfig, Config, Ledger, State, Device, Leaf];
    let names = all.iter().filter(|rank| held & bit(**rank) != 0).map(|rank| format!("{rank:?}"));
    names.collect::<Vec<_>>().join(", ")
}

/// # Panics
/// In debug builds, when this thread holds a lock of this rank or a later one.
#[cfg(debug_assertions)]
#[track_caller]
pub(crate) fn assert_free_from(rank: Rank) {
    let later = HELD.with(Cell::get) & !(bit(rank) - 1);
    assert!(later == 0, "{rank:?} is not allowed while this thread holds {}", names(later));
}

/// # Panics
/// In debug builds, when this thread holds any lock: users' code, which is called now, may want them all.
#[cfg(debug_assertions)]
#[track_caller]
pub(crate) fn assert_free_of_all() {
    assert_free_from(Rank::Slow);
}

#[cfg(not(debug_assertions))]
impl Ranked {
    #[inline]
    pub(super) fn new(_: Rank) -> Self {
        Ranked {}
    }

    #[inline]
    pub(super) fn enter(self) -> Held {
        Held {}
    }
}

#[cfg(not(debug_assertions))]
impl Held {
    #[inline]
    pub(super) fn assert_alone(&self) {}
}

#[cfg(not(debug_assertions))]
#[inline]
pub(crate) fn assert_free_from(_: Rank) {}

#[cfg(not(debug_assertions))]
#[inline]
pub(crate) fn assert_free_of_all() {}
