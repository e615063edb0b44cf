//! Who touched which physical bytes last: enough to say whether the next touch is ordered after all that matter.
//!
//! Invariant: stretches do not overlap; `write` is the last write of every byte of a stretch and `reads` are reads since then, one
//! for each queue.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::clock::{Clock, QueueId};

/// One touch.
#[derive(Clone, Debug, PartialEq)]
pub struct Stamp {
    pub queue: QueueId,
    pub tick: u64,
    pub what: &'static str,
}

impl Stamp {
    fn before(&self, clock: &Clock) -> bool {
        clock.at(self.queue) >= self.tick
    }
}

#[derive(Clone, Debug)]
struct Stretch {
    end: u64,
    write: Option<Stamp>,
    reads: Vec<Stamp>,
}

/// The touches of one physical allocation.
#[derive(Debug, Default)]
pub struct History(BTreeMap<u64, Stretch>);

impl History {
    /// Adds a touch; answers the earlier ones that it is not ordered after, each with the bytes that both touch.
    pub fn touch(&mut self, bytes: Range<u64>, write: bool, stamp: &Stamp, clock: &Clock) -> Vec<(Range<u64>, Stamp)> {
        self.split(bytes.start);
        self.split(bytes.end);
        self.cover(bytes.clone());
        let mut conflicts = Vec::new();
        for (start, stretch) in self.0.range_mut(bytes.clone()) {
            let reads = if write { stretch.reads.as_slice() } else { &[] };
            for earlier in stretch.write.iter().chain(reads).filter(|earlier| !earlier.before(clock)) {
                conflicts.push((*start..stretch.end, earlier.clone()));
            }
            if !write {
                stretch.reads.retain(|earlier| earlier.queue != stamp.queue && !earlier.before(clock));
                stretch.reads.push(stamp.clone());
            }
        }
        if write {
            let starts: Vec<u64> = self.0.range(bytes.clone()).map(|(start, _)| *start).collect();
            starts.iter().for_each(|start| drop(self.0.remove(start)));
            self.0.insert(bytes.start, Stretch { end: bytes.end, write: Some(stamp.clone()), reads: Vec::new() });
        }
        conflicts
    }

    /// Makes `at` the start of a stretch if it lies within one.
    fn split(&mut self, at: u64) {
        let Some((_, left)) = self.0.range_mut(..at).next_back() else { return };
        if left.end > at {
            let right = left.clone();
            left.end = at;
            self.0.insert(at, right);
        }
    }

    /// Fills what no stretch covers.
    fn cover(&mut self, bytes: Range<u64>) {
        let mut gaps = Vec::new();
        let mut at = bytes.start;
        for (start, stretch) in self.0.range(bytes.clone()) {
            if *start > at {
                gaps.push(at..*start);
            }
            at = stretch.end;
        }
        if at < bytes.end {
            gaps.push(at..bytes.end);
        }
        for gap in gaps {
            self.0.insert(gap.start, Stretch { end: gap.end, write: None, reads: Vec::new() });
        }
    }
}
