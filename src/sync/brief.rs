//! A lock for sections that are arithmetic, given back with a plain store.
//!
//! A lock that wakes who waits has to ask for waiters when it is given back, with an atomic read-modify-write that stands until
//! every store of the section has left the processor: about as long as the section itself. Here nobody is woken. Who finds the
//! lock taken looks again: at once, then after ever longer pauses, then after letting others run, then after naps, so that a
//! holder that was interrupted gets the processor whatever the priorities are. Who comes in between is served first; while
//! two contend, one is served many times in a row and its memory stays in its cache.

#![allow(unsafe_code)] // a raw lock promises exclusion

use parking_lot::lock_api::{GuardNoSend, RawMutex};

use super::Again;
use super::atomic::{AtomicBool, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

/// See the module.
pub(crate) struct Brief {
    taken: AtomicBool,
}

impl Brief {
    #[cold]
    #[inline(never)]
    fn lock_later(&self) {
        let mut again = Again::default();
        loop {
            again.later();
            if !self.taken.load(Relaxed) && self.try_lock() {
                return;
            }
        }
    }
}

// SAFETY: of the threads that find `taken` false one sets it, in one step, and then it is held until `unlock`, which only the
// holder may call; the setting acquires what the holder before released.
unsafe impl RawMutex for Brief {
    #[allow(clippy::declare_interior_mutable_const)] // the trait's way to make one
    const INIT: Self = Brief { taken: AtomicBool::new(false) };

    type GuardMarker = GuardNoSend;

    #[inline(always)]
    fn lock(&self) {
        if !self.try_lock() {
            self.lock_later();
        }
    }

    #[inline(always)]
    fn try_lock(&self) -> bool {
        self.taken.compare_exchange(false, true, Acquire, Relaxed).is_ok()
    }

    #[inline(always)]
    unsafe fn unlock(&self) {
        self.taken.store(false, Release);
    }
}
