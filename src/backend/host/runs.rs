//! Which bytes of a region are backed, as sorted runs. Knows no memory and no page.
//!
//! Invariants: every run is not empty; no two runs overlap or touch.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of integers as its maximal runs: start to end.
#[derive(Debug, Default)]
pub(super) struct Runs(BTreeMap<u64, u64>);

impl Runs {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all of `range` is in the set.
    pub(super) fn covers(&self, range: &Range<u64>) -> bool {
        self.0.range(..=range.start).next_back().is_some_and(|(_, end)| *end >= range.end)
    }

    /// Whether any of `range` is in the set.
    pub(super) fn touches(&self, range: &Range<u64>) -> bool {
        self.0.range(..range.end).next_back().is_some_and(|(_, end)| *end > range.start)
    }

    /// Adds a range of which nothing is in the set.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        assert!(!range.is_empty() && !self.touches(&range), "{range:?} is partly in {self:?}");
        let (mut start, mut end) = (range.start, range.end);
        if let Some((before, &stop)) = self.0.range(..start).next_back()
            && stop == start
        {
            start = *before;
        }
        if let Some(after) = self.0.remove(&end) {
            end = after;
        }
        self.0.insert(start, end);
    }

    /// Takes away a range of which all is in the set.
    pub(super) fn remove(&mut self, range: Range<u64>) {
        assert!(!range.is_empty() && self.covers(&range), "{range:?} is not all in {self:?}");
        let Some((&start, &end)) = self.0.range(..=range.start).next_back() else { return };
        self.0.remove(&start);
        if start < range.start {
            self.0.insert(start, range.start);
        }
        if range.end < end {
            self.0.insert(range.end, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_agree_with_a_bitmap() {
        let (mut runs, mut bits, mut seed) = (Runs::default(), [false; 40], 7_u64);
        let mut below = |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        for _ in 0..5_000 {
            let start = below(40);
            let range = start..start + 1 + below(40 - start);
            let slice = &mut bits[range.start as usize..range.end as usize];
            let (all, any) = (slice.iter().all(|bit| *bit), slice.contains(&true));
            assert_eq!((runs.covers(&range), runs.touches(&range)), (all, any), "{range:?} {runs:?}");
            if all {
                slice.fill(false);
                runs.remove(range);
            } else if !any {
                slice.fill(true);
                runs.insert(range);
            }
            let ends: Vec<(u64, u64)> = runs.0.iter().map(|(start, end)| (*start, *end)).collect();
            assert!(ends.iter().all(|(start, end)| start < end) && ends.windows(2).all(|two| two[0].1 < two[1].0));
            assert_eq!(runs.is_empty(), !bits.contains(&true));
        }
    }
}
