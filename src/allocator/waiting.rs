//! Requests that wait for somebody to free, in the order of their arrival.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicU32, Ordering::SeqCst};
use crate::sync::{Condvar, Mutex, Rank};

/// How long a waiting request sleeps at most before it looks again: work may complete, limits may be raised and memory may be returned
/// without anybody freeing a block.
const GLANCE: Duration = Duration::from_millis(5);

/// The queue of waiting requests.
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

impl Default for Waiting {
    fn default() -> Self {
        let queue = Mutex::new(Rank::Leaf, Queue::default());
        Waiting { count: AtomicU32::new(0), queue, wake: Condvar::default() }
    }
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
            let now = Instant::now();
            if now >= deadline {
                break None;
            }
            if queue.frees == seen {
                self.wake.wait_until(&mut queue, deadline.min(now + GLANCE));
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
