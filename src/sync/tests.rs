//! A thread that takes locks out of order is stopped, whether or not it would have met another.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Condvar, Mutex, Outside, Rank, RwLock, assert_free_of_all};

fn stopped(work: impl FnOnce()) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(work)).err()?;
    Some(panic.downcast_ref::<String>().cloned().unwrap_or_default())
}

#[test]
fn ranks_only_rise() {
    let (slow, state, leaf) = (Mutex::new(Rank::Slow, 0), Mutex::new(Rank::State, 1), Mutex::new(Rank::Leaf, 2));
    let sum = *slow.lock() + *state.lock() + *leaf.lock();
    assert_eq!(sum, 3);
    let held = state.lock();
    let said = stopped(|| drop(slow.lock()));
    assert_eq!(said.as_deref(), Some("Slow is not allowed while this thread holds State"));
    assert!(stopped(|| drop(slow.try_lock())).is_some(), "where it would not wait, too");
    assert!(stopped(|| drop(leaf.lock())).is_none());
    drop(held);
    assert!(stopped(|| drop(slow.lock())).is_none(), "what was taken is given back");
}

#[test]
fn two_of_one_rank_are_not_held_together() {
    let (one, other) = (Mutex::new(Rank::State, ()), Mutex::new(Rank::State, ()));
    let held = one.lock();
    assert!(stopped(|| drop(other.lock())).is_some());
    drop(held);
    let config = RwLock::new(Rank::Config, 7);
    let read = config.read();
    assert!(stopped(|| drop(config.read())).is_some(), "a second reading would wait behind a writer");
    assert_eq!(*read, 7);
}

#[test]
fn what_a_thread_holds_is_its_own() {
    let state = Mutex::new(Rank::State, ());
    let slow = Mutex::new(Rank::Slow, ());
    let held = state.lock();
    std::thread::scope(|scope| {
        scope.spawn(|| drop(slow.lock())).join().unwrap();
    });
    drop(held);
}

#[test]
fn drivers_users_and_waits_find_no_lock_held_that_is_not_theirs() {
    let (slow, state) = (Mutex::new(Rank::Slow, ()), Mutex::new(Rank::State, ()));
    let driver = Outside(Box::new(5));
    let held = slow.lock();
    assert!(stopped(|| assert_eq!(*driver, 5)).is_none());
    assert!(stopped(assert_free_of_all).is_some());
    let (leaf, wake) = (Mutex::new(Rank::Leaf, ()), Condvar::default());
    let said = stopped(|| wake.wait_until(&mut leaf.lock(), std::time::Instant::now()));
    assert_eq!(said.as_deref(), Some("a wait with Leaf and other locks held: Slow"));
    drop(held);
    let held = state.lock();
    assert!(stopped(|| assert_eq!(*driver, 5)).is_some());
    drop(held);
    assert!(stopped(assert_free_of_all).is_none());
}
