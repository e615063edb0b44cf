//! Locks, waits and atomics of the core, and the order in which its locks are taken.
//!
//! The one place from which the core takes them, for two ends. In debug builds every lock knows its [`Rank`], and a thread that takes
//! one out of order is stopped at once, whether or not another thread is there to meet it. And under `cfg(larder_shuttle)` all of
//! them are shuttle's, so that a test decides which thread goes on at each of them (`tests/shuttle.rs`). Else they are `parking_lot`'s
//! and std's, and cost what those cost.
//!
//! A lock in a `static` is `parking_lot`'s always: it outlives shuttle's threads. Nothing else is locked while one is held.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Instant;

mod again;
#[cfg(not(larder_shuttle))]
mod brief;
mod rank;
#[cfg(larder_shuttle)]
mod shuttled;

#[cfg(not(larder_shuttle))]
use parking_lot as base;
#[cfg(larder_shuttle)]
use shuttled as base;

pub(crate) use again::Again;
use rank::{Held, Ranked};
pub(crate) use rank::{Rank, assert_free_from, assert_free_of_all};
#[cfg(larder_shuttle)]
pub(crate) use shuttle::{hint::spin_loop, sync::atomic, thread_local};
#[cfg(not(larder_shuttle))]
pub(crate) use std::{hint::spin_loop, sync::atomic, thread_local};

/// A mutex with a rank.
pub(crate) struct Mutex<T> {
    rank: Ranked,
    inner: base::Mutex<T>,
}

/// A mutex with a rank whose sections are arithmetic only: nothing waits in them, and who waits for them is not woken.
pub(crate) struct BriefMutex<T> {
    rank: Ranked,
    inner: BaseBrief<T>,
}

#[cfg(not(larder_shuttle))]
type BaseBrief<T> = parking_lot::lock_api::Mutex<brief::Brief, T>;
#[cfg(larder_shuttle)]
type BaseBrief<T> = base::Mutex<T>;

#[cfg(not(larder_shuttle))]
type BaseBriefGuard<'a, T> = parking_lot::lock_api::MutexGuard<'a, brief::Brief, T>;
#[cfg(larder_shuttle)]
type BaseBriefGuard<'a, T> = base::MutexGuard<'a, T>;

/// The guard of a [`BriefMutex`].
pub(crate) type BriefGuard<'a, T> = Guard<BaseBriefGuard<'a, T>>;

impl<T> BriefMutex<T> {
    pub(crate) fn new(rank: Rank, value: T) -> Self {
        BriefMutex { rank: Ranked::new(rank), inner: BaseBrief::new(value) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> BriefGuard<'_, T> {
        let held = self.rank.enter();
        Guard { inner: self.inner.lock(), held }
    }
}

/// A read-write lock with a rank. One thread reads it once at a time: a second reading would wait behind a writer who waits for the first.
pub(crate) struct RwLock<T> {
    rank: Ranked,
    inner: base::RwLock<T>,
}

/// Held by whoever holds the lock.
pub(crate) struct Guard<G> {
    // Before `held`: the lock is free when its rank is.
    inner: G,
    held: Held,
}

/// The guard of a [`Mutex`].
pub(crate) type MutexGuard<'a, T> = Guard<base::MutexGuard<'a, T>>;

impl<T> Mutex<T> {
    pub(crate) fn new(rank: Rank, value: T) -> Self {
        Mutex { rank: Ranked::new(rank), inner: base::Mutex::new(value) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let held = self.rank.enter();
        Guard { inner: self.inner.lock(), held }
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let held = self.rank.enter();
        self.inner.try_lock().map(|inner| Guard { inner, held })
    }

    /// As [`Mutex::lock`], but waits until `deadline` at most.
    pub(crate) fn try_lock_until(&self, deadline: Instant) -> Option<MutexGuard<'_, T>> {
        let held = self.rank.enter();
        self.inner.try_lock_until(deadline).map(|inner| Guard { inner, held })
    }
}

impl<T> RwLock<T> {
    pub(crate) fn new(rank: Rank, value: T) -> Self {
        RwLock { rank: Ranked::new(rank), inner: base::RwLock::new(value) }
    }

    pub(crate) fn read(&self) -> Guard<base::RwLockReadGuard<'_, T>> {
        let held = self.rank.enter();
        Guard { inner: self.inner.read(), held }
    }

    pub(crate) fn write(&self) -> Guard<base::RwLockWriteGuard<'_, T>> {
        let held = self.rank.enter();
        Guard { inner: self.inner.write(), held }
    }
}

impl<G: Deref> Deref for Guard<G> {
    type Target = G::Target;

    #[inline]
    fn deref(&self) -> &G::Target {
        &self.inner
    }
}

impl<G: DerefMut> DerefMut for Guard<G> {
    #[inline]
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.inner
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex").finish_non_exhaustive()
    }
}

/// Where threads wait for a change of what a [`Mutex`] guards.
#[derive(Default)]
pub(crate) struct Condvar(base::Condvar);

impl Condvar {
    /// Waits without the lock for a notice, or until `deadline`. The lock is the only one that the thread holds.
    pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, deadline: Instant) {
        guard.held.assert_alone();
        self.0.wait_until(&mut guard.inner, deadline);
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// What may wait or come back to its caller, as a driver may: reached only by a thread that holds no lock of [`Rank::State`] or above.
pub(crate) struct Outside<T>(pub(crate) T);

impl<T: Deref> Deref for Outside<T> {
    type Target = T::Target;

    #[inline]
    fn deref(&self) -> &T::Target {
        assert_free_from(Rank::State);
        &self.0
    }
}

// Shuttle's locks work in its own runs only.
#[cfg(all(test, debug_assertions, not(larder_shuttle)))]
mod tests;
