//! Requests that wait for somebody to free, in the order of their arrival.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// The queue of waiting requests.
#[derive(Default)]
pub(crate) struct Waiting {
    /// How many wait: a drop looks at this alone when nobody does.
    count: AtomicU32,
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    tickets: VecDeque<u64>,
    next: u64,
    /// Grows with every free while somebody waits.
    frees: u64,
}

impl Waiting {
    /// A block came back.
    #[inline]
    pub(crate) fn something_freed(&self) {
        if self.count.load(SeqCst) > 0 {
            self.queue.lock().frees += 1;
            self.wake.notify_all();
        }
    }

    /// Calls `attempt` whenever something was freed and this request is the oldest that waits, until it answers or the
    /// deadline is over. The first attempt is made at once when nobody is in front.
    pub(crate) fn until<T>(&self, deadline: Instant, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
        self.count.fetch_add(1, SeqCst);
        let mut queue = self.queue.lock();
        let ticket = queue.next;
        queue.next += 1;
        queue.tickets.push_back(ticket);
        let answer = loop {
            let seen = queue.frees;
            if queue.tickets.front() == Some(&ticket) {
                drop(queue);
                let answer = attempt();
                queue = self.queue.lock();
                if answer.is_some() {
                    break answer;
                }
            }
            let idle = queue.frees == seen;
            if idle && self.wake.wait_until(&mut queue, deadline).timed_out() {
                break None;
            }
            if Instant::now() >= deadline {
                break None;
            }
        };
        queue.tickets.retain(|other| *other != ticket);
        drop(queue);
        self.count.fetch_sub(1, SeqCst);
        // The next in line may have been passed over while this one was in front.
        self.wake.notify_all();
        answer
    }
}
