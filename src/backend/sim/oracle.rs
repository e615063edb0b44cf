//! Who used which bytes last: the check that every reuse of physical bytes is ordered, and that no address is taken away
//! under unfinished work.
//!
//! Knows no page table and no queue: it is given physical runs and asks the [`Device`] about order. Costs nothing until the
//! first use is written down.
//!
//! Invariants (re-proved by [`Oracle::check`]):
//! * Stretches of a map do not overlap, and each has at least one use.
//! * A use is forgotten only when it is complete, or when uses ordered after it stand for it: one of the same owner, or two of
//!   different owners (one alone would not do: its own owner is not checked against it). Order is transitive, so whoever
//!   comes after all kept uses of other owners comes after all that ever were; and completion follows order, so bytes with
//!   an unfinished use have one that is kept.

use std::collections::BTreeMap;

use super::calls::{Stop, Violation, ViolationKind, broken};
use super::memory::{Run, show};
use super::work::Device;
use crate::backend::Span;
use crate::ids::{RegionId, StreamId};

/// A piece of device work that touched some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Use {
    /// `None` for the backend's own (`zero`).
    owner: Option<u64>,
    stream: StreamId,
    number: u64,
    /// Another owner with a use that is ordered after this one.
    heir: Option<Option<u64>>,
}

impl Use {
    fn new(owner: Option<u64>, stream: StreamId, number: u64) -> Self {
        Use { owner, stream, number, heir: None }
    }

    /// Whether this use must be kept beside a new one.
    fn outlives(&mut self, new: &Use, device: &Device) -> bool {
        if device.reached(self.stream, self.number) {
            return false;
        }
        if !device.ordered(new.stream, self.stream, self.number) {
            return true;
        }
        new.owner != self.owner && *self.heir.get_or_insert(new.owner) == new.owner
    }
}

#[derive(Clone, Debug)]
struct Stretch {
    end: u64,
    uses: Vec<Use>,
}

/// The last uses of every byte that has any.
#[derive(Debug, Default)]
struct UseMap {
    /// By first byte.
    stretches: BTreeMap<u64, Stretch>,
}

impl UseMap {
    /// Makes `at` a border between stretches.
    fn cut(&mut self, at: u64) {
        let Some((start, stretch)) = self.stretches.range_mut(..at).next_back() else { return };
        if stretch.end > at && *start < at {
            let right = stretch.clone();
            stretch.end = at;
            self.stretches.insert(at, right);
        }
    }

    /// Takes out everything in `[start, end)`.
    fn take(&mut self, start: u64, end: u64) -> Vec<(u64, Stretch)> {
        self.cut(start);
        self.cut(end);
        let keys: Vec<u64> = self.stretches.range(start..end).map(|(key, _)| *key).collect();
        keys.into_iter().filter_map(|key| Some((key, self.stretches.remove(&key)?))).collect()
    }

    /// Writes down a use of `[start, end)`, and forgets those that need not be kept beside it.
    fn add(&mut self, start: u64, end: u64, new: Use, device: &Device) {
        let mut next = start;
        let mut built: Vec<(u64, Stretch)> = Vec::new();
        let mut push = |start: u64, end: u64, uses: Vec<Use>| match built.last_mut() {
            Some((_, last)) if last.end == start && last.uses == uses => last.end = end,
            _ => built.push((start, Stretch { end, uses })),
        };
        for (from, mut stretch) in self.take(start, end) {
            if from > next {
                push(next, from, vec![new]);
            }
            next = stretch.end;
            stretch.uses.retain_mut(|old| old.outlives(&new, device));
            stretch.uses.push(new);
            push(from, stretch.end, stretch.uses);
        }
        if next < end {
            push(next, end, vec![new]);
        }
        self.stretches.extend(built);
    }

    /// The uses that touch `[start, end)`, each with the first byte in question.
    fn uses(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, Use)> + '_ {
        let before = self.stretches.range(..start).next_back().filter(|(_, stretch)| stretch.end > start);
        let all = before.into_iter().chain(self.stretches.range(start..end));
        all.flat_map(move |(from, stretch)| stretch.uses.iter().map(move |old| (start.max(*from), *old)))
    }

    fn check(&self) -> Result<(), String> {
        let mut last = 0;
        for (start, stretch) in &self.stretches {
            if *start < last || stretch.end <= *start || stretch.uses.is_empty() {
                return Err(format!("uses of bytes {start:#x}..{:#x} overlap others or are none", stretch.end));
            }
            last = stretch.end;
        }
        Ok(())
    }
}

/// Uses by physical byte, and by the address they went through.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    bytes: UseMap,
    addresses: BTreeMap<RegionId, UseMap>,
}

/// What orders one owner's uses behind another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Streams, events, completion.
    Streams,
    /// Completion only: memory that the CPU touches.
    Completion,
}

impl Oracle {
    /// What a use of `runs` (the bytes behind `span`) by `owner` on `stream` now is not ordered after.
    pub(super) fn conflicts(
        &self,
        device: &Device,
        (owner, stream, span): (u64, StreamId, Span),
        runs: &[Run],
        rule: Rule,
    ) -> Vec<Violation> {
        let late = self.others(owner, runs, |old| match rule {
            Rule::Streams => device.ordered(stream, old.stream, old.number),
            Rule::Completion => device.reached(old.stream, old.number),
        });
        late.into_iter()
            .map(|(at, old)| late_use(&format!("{stream}"), owner, span, at, old, ViolationKind::Order))
            .collect()
    }

    /// What a CPU access by `owner` now is not ordered after.
    pub(super) fn host_conflicts(&self, device: &Device, owner: u64, span: Span, runs: &[Run]) -> Vec<Violation> {
        let late = self.others(owner, runs, |old| device.reached(old.stream, old.number));
        late.into_iter().map(|(at, old)| late_use("the CPU", owner, span, at, old, ViolationKind::HostOrder)).collect()
    }

    /// Uses of other owners that `fine` does not accept, each once, with the offset where it was met.
    fn others(&self, owner: u64, runs: &[Run], fine: impl Fn(&Use) -> bool) -> Vec<(u64, Use)> {
        let mut found: Vec<(u64, Use)> = Vec::new();
        for run in runs {
            for (at, old) in self.bytes.uses(run.physical, run.physical + run.size) {
                let new = old.owner != Some(owner)
                    && found.iter().all(|(_, seen)| (seen.stream, seen.number) != (old.stream, old.number));
                if new && !fine(&old) {
                    found.push((run.offset + (at - run.physical), old));
                }
            }
        }
        found
    }

    /// Writes down a use of `span` and the bytes behind it.
    pub(super) fn used(
        &mut self,
        device: &Device,
        owner: u64,
        stream: StreamId,
        number: u64,
        span: Span,
        runs: &[Run],
    ) {
        let new = Use::new(Some(owner), stream, number);
        for run in runs {
            self.bytes.add(run.physical, run.physical + run.size, new, device);
        }
        self.address_used(device, new, span);
    }

    /// Writes down the backend's own use of `span`: it holds the address, and is no owner's.
    pub(super) fn zeroed(&mut self, device: &Device, stream: StreamId, number: u64, span: Span) {
        self.address_used(device, Use::new(None, stream, number), span);
    }

    fn address_used(&mut self, device: &Device, new: Use, span: Span) {
        self.addresses.entry(span.region).or_default().add(span.offset, span.offset + span.size, new, device);
    }

    /// Rule 3: that no work through `span` is unfinished.
    pub(super) fn finished(&self, device: &Device, span: Span) -> Result<(), Stop> {
        let Some(map) = self.addresses.get(&span.region) else { return Ok(()) };
        let mut uses = map.uses(span.offset, span.offset + span.size);
        match uses.find(|(_, old)| !device.reached(old.stream, old.number)) {
            None => Ok(()),
            Some((at, old)) => {
                let (span, who) = (show(span), name(old.owner));
                let text =
                    format!("{span} is taken away, and work of {who} on {} at {at:#x} is unfinished", old.stream);
                Err(broken(ViolationKind::Unfinished, text))
            }
        }
    }

    /// These addresses lead nowhere now.
    pub(super) fn unmapped(&mut self, span: Span) {
        if let Some(map) = self.addresses.get_mut(&span.region) {
            map.take(span.offset, span.offset + span.size);
        }
    }

    /// This region is gone.
    pub(super) fn released(&mut self, region: RegionId) {
        self.addresses.remove(&region);
    }

    /// These bytes went back to the device, which ends their history.
    pub(super) fn freed(&mut self, runs: &[Run]) {
        if !self.bytes.stretches.is_empty() {
            for run in runs {
                self.bytes.take(run.physical, run.physical + run.size);
            }
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        self.bytes.check()?;
        self.addresses.values().try_for_each(UseMap::check)
    }
}

fn name(owner: Option<u64>) -> String {
    owner.map_or_else(|| "the backend".to_string(), |owner| format!("owner {owner}"))
}

fn late_use(by: &str, owner: u64, span: Span, at: u64, old: Use, kind: ViolationKind) -> Violation {
    let text = format!(
        "owner {owner} uses {} on {by}, and nothing orders it after piece {} of {} by {} on the bytes at {at:#x}",
        show(span),
        old.number,
        old.stream,
        name(old.owner),
    );
    Violation { kind, text }
}
