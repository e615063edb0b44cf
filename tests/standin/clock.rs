//! Vector clocks: what is known to have happened. A queue is a stream, a lane of a launched graph, or the host.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// A queue; never given twice.
pub type QueueId = u32;

/// The host, all its threads.
pub const HOST: QueueId = 0;

/// The operations of each queue that are known to have happened: all up to the number.
#[derive(Clone, Debug, Default)]
pub struct Clock(BTreeMap<QueueId, u64>);

impl Clock {
    pub fn at(&self, queue: QueueId) -> u64 {
        self.0.get(&queue).copied().unwrap_or(0)
    }

    pub fn set(&mut self, queue: QueueId, tick: u64) {
        self.0.insert(queue, tick);
    }

    pub fn advance(&mut self, queue: QueueId) -> u64 {
        let tick = self.0.entry(queue).or_insert(0);
        *tick += 1;
        *tick
    }

    pub fn join(&mut self, other: &Clock) {
        for (queue, tick) in &other.0 {
            let mine = self.0.entry(*queue).or_insert(0);
            *mine = (*mine).max(*tick);
        }
    }

    /// Whether everything that `other` knows is known here.
    pub fn covers(&self, other: &Clock) -> bool {
        other.0.iter().all(|(queue, tick)| self.at(*queue) >= *tick)
    }
}

/// A point in a queue: reached when its clock is set, which then says what had happened.
#[derive(Debug)]
pub struct Point {
    pub queue: QueueId,
    pub clock: OnceLock<Clock>,
}

/// A point, held by the queue that reaches it and by all that wait for it.
pub type Marker = Arc<Point>;

impl Point {
    pub fn new(queue: QueueId) -> Marker {
        Arc::new(Point { queue, clock: OnceLock::new() })
    }

    pub fn reached(&self) -> bool {
        self.clock.get().is_some()
    }
}
