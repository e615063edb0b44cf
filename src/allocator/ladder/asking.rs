//! The last rungs: what debug mode keeps, waits on the host, the user's hooks, and the request's deadline.

use std::time::Instant;

use super::{Climb, Climbed};
use crate::allocator::core::Slow;
use crate::allocator::reclaim::Shortage;
use crate::ids::PoolId;
use crate::snapshot::{Outcome, Rung};

/// How often hooks are called for one request while they keep freeing something.
const HOOK_ROUNDS: usize = 4;

/// Why a wait does not end.
const RECORDED: &str = "some work is recorded and not submitted";

impl Climb<'_> {
    /// Whether dropped blocks that debug mode kept came back.
    pub(super) fn ends_quarantine(&mut self) -> bool {
        let bytes = self.core.empty_quarantine();
        if bytes > 0 {
            self.note(Rung::Quarantine, Outcome::Freed { bytes });
        }
        bytes > 0
    }

    pub(super) fn host_wait(&mut self, slow: &mut Slow) -> Climbed {
        if !self.core.caps.streams {
            return Ok(None);
        }
        let until = self.patience();
        let before = self.pool.meter.read().idle();
        let mut unfinished = self.core.keeps_graphs(slow);
        let mut in_time = !unfinished || self.core.wait_unpinned(slow, until)?;
        for at in 0..self.core.pools().count() {
            let id = PoolId(at as u16);
            let streams: Vec<_> = self.core.pool(id).state.lock().clocks.streams().collect();
            let state = self.core.pool(id).state.lock();
            let busy = streams.iter().any(|stream| state.clocks.unfinished(*stream));
            drop(state);
            unfinished |= busy;
            in_time &= !busy || self.core.wait_for_all(id, slow, until)?;
        }
        if !unfinished {
            return Ok(None);
        }
        let bytes = self.pool.meter.read().idle().saturating_sub(before);
        let outcome = match in_time {
            true => Outcome::Freed { bytes },
            false if self.core.something_is_recorded() => Outcome::NotApplicable { reason: RECORDED },
            false => Outcome::TimedOut,
        };
        self.note(Rung::HostWait, outcome);
        // Some of the work may be complete even when not all of it was in time.
        self.up_to_limit(slow)
    }

    /// Until when this request waits on the host, in all.
    pub(in crate::allocator) fn patience(&mut self) -> Instant {
        let patience = *self.patience.get_or_insert_with(|| self.core.patience());
        self.need.deadline.map_or(patience, |deadline| patience.min(deadline))
    }

    pub(super) fn hooks(&mut self) -> Climbed {
        for _ in 0..HOOK_ROUNDS {
            let before = self.freed_in_all();
            if !self.core.hooks.call(&Shortage { bytes: self.need.size, pool: self.id }) {
                // Nobody is left to ask: what the soft limit kept back is given after all.
                return if self.soft_limit.take().is_some() { self.under_slow_lock() } else { Ok(None) };
            }
            // What they dropped is wanted, not kept.
            self.core.empty_quarantine();
            let bytes = self.freed_in_all() - before;
            self.note(Rung::Hooks, Outcome::Freed { bytes });
            self.soft_limit = None;
            if let Some(grant) = self.under_slow_lock()? {
                return Ok(Some(grant));
            }
            if bytes == 0 {
                return Ok(None);
            }
        }
        Ok(None)
    }

    fn freed_in_all(&self) -> u64 {
        self.core.pools().map(|pool| pool.meter.read().live.freed).sum()
    }

    pub(super) fn deadline(&mut self) -> Climbed {
        let Some(deadline) = self.need.deadline else { return Ok(None) };
        if deadline <= Instant::now() {
            self.note(Rung::Deadline, Outcome::TimedOut);
            return Ok(None);
        }
        let core = self.core;
        let kept = self.trail.len();
        let answer = core.waiting.until(deadline, || {
            self.trail.truncate(kept);
            // What others dropped meanwhile.
            core.empty_quarantine();
            self.under_slow_lock().transpose()
        });
        match answer {
            Some(answer) => answer.map(Some),
            None => {
                self.note(Rung::Deadline, Outcome::TimedOut);
                Ok(None)
            }
        }
    }
}
