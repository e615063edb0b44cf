//! The ladder: remedies tried one after another when the first search finds nothing, each leaving a line in the trail.
//!
//! A rung either serves the request, or says why not. After every rung that can have freed something, memory is searched
//! again. The rungs up to the host wait run under the slow lock; hooks and deadlines run with no lock held.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::core::{Core, Slow};
use super::error::AllocError;
use super::pages::{Filled, Filling, add_region, fill_window, is_overgrown};
use super::pool::{Grant, Need, Pool};
use super::report;
use crate::backend::BackendError;
use crate::ids::{Access, PoolId};
use crate::policy::{OnLimit, SEGMENT_SLACK, slack_room};
use crate::snapshot::{Outcome, Rung, Step};
use crate::stats::Count;

mod asking;

/// Serves a request that the first search could not, or says why it cannot be served.
#[cold]
#[inline(never)]
pub(super) fn climb(core: &Core, id: PoolId, need: &Need<'_>) -> Result<Grant, AllocError> {
    if let Some(error) = core.deferred.lock().take() {
        return Err(error.into());
    }
    let mut climb = Climb::new(core, id, need);
    match climb.whole() {
        Ok(Some(grant)) => Ok(grant),
        Ok(None) => Err(climb.out_of_memory()),
        Err(error) => {
            core.look_for_loss(&error);
            Err(error.into())
        }
    }
}

/// One request on its way up.
pub(super) struct Climb<'a> {
    pub core: &'a Core,
    pub id: PoolId,
    pub pool: &'a Pool,
    pub need: &'a Need<'a>,
    pub trail: Vec<Step>,
    slack: f64,
    /// Set while growth beyond it must wait for the hooks.
    soft_limit: Option<u64>,
    pub on_limit: OnLimit,
    /// Until when this request waits for unfinished work on the host: one time for all its waits.
    patience: Option<Instant>,
    /// Whether old addresses were waited for: once is enough.
    waited_for_addresses: bool,
    /// Whether the deadline was over before it was this request's turn.
    too_late: bool,
    /// Whether the stream is being captured: then memory is found or grown, and the driver is called for nothing else.
    pub captured: bool,
}

pub(super) type Climbed = Result<Option<Grant>, BackendError>;

impl<'a> Climb<'a> {
    fn new(core: &'a Core, id: PoolId, need: &'a Need<'a>) -> Self {
        let config = core.config.read();
        let pool = core.pool(id);
        {
            let _state = pool.state.lock();
            pool.meter.count(Count::Miss);
        }
        Climb {
            core,
            id,
            pool,
            need,
            trail: Vec::new(),
            slack: if core.caps.page.is_some() { config.slack } else { config.slack.min(SEGMENT_SLACK) },
            soft_limit: config.soft_limit,
            on_limit: config.on_limit,
            patience: None,
            waited_for_addresses: false,
            too_late: false,
            captured: false,
        }
    }

    fn whole(&mut self) -> Climbed {
        if self.fails_fast() && !self.ends_quarantine() {
            self.note(Rung::Grow, self.over_limit());
            return Ok(None);
        }
        if let Some(grant) = self.under_slow_lock()? {
            return Ok(Some(grant));
        }
        if self.ends_quarantine()
            && let Some(grant) = self.under_slow_lock()?
        {
            return Ok(Some(grant));
        }
        if self.too_late {
            self.note(Rung::Deadline, Outcome::TimedOut);
            return Ok(None);
        }
        if self.captured || self.stops_at_limit() {
            return Ok(None);
        }
        if let Some(grant) = self.hooks()? {
            return Ok(Some(grant));
        }
        self.deadline()
    }

    /// Whether the config wants an error at once and the figures say that only a free could help.
    fn fails_fast(&self) -> bool {
        self.on_limit == OnLimit::FailFast && self.core.forbids(self.id, self.need.size)
    }

    /// Whether a hard limit is in the way and the config wants no more tried than was.
    fn stops_at_limit(&self) -> bool {
        self.on_limit == OnLimit::FailFast && self.core.room(self.id).left < self.need.size
    }

    fn over_limit(&self) -> Outcome {
        Outcome::NeedsMore { needed: self.need.size, room: self.room() }
    }

    /// Rungs 1 to 9.
    fn under_slow_lock(&mut self) -> Climbed {
        let mut slow = match self.need.deadline {
            Some(deadline) => match self.core.slow.try_lock_until(deadline) {
                Some(slow) => slow,
                None => {
                    self.too_late = true;
                    return Ok(None);
                }
            },
            None => self.core.slow.lock(),
        };
        self.pool.state.lock().because_of(Some(self.need));
        let climbed = self.rungs(&mut slow);
        self.pool.state.lock().because_of(None);
        climbed
    }

    fn rungs(&mut self, slow: &mut Slow) -> Climbed {
        self.captured = self.core.is_captured(self.need.stream)?;
        if self.captured {
            return self.while_captured(slow);
        }
        if let Some(grant) = self.up_to_limit(slow)? {
            return Ok(Some(grant));
        }
        if self.soft_limit.is_some() {
            if !self.stops_at_limit() && !self.core.hooks.is_silent() {
                // What the soft limit keeps back is given when the hooks have been asked, before anything waits.
                return Ok(None);
            }
            self.soft_limit = None;
            if let Some(grant) = self.grow(slow)? {
                return Ok(Some(grant));
            }
        }
        // No wait makes room for what the limit forbids beside all that is live.
        let hopeless = self.stops_at_limit() || self.core.forbids(self.id, self.need.size);
        if hopeless { Ok(None) } else { self.host_wait(slow) }
    }

    /// All that may be tried for a stream under capture.
    fn while_captured(&mut self, slow: &mut Slow) -> Climbed {
        for rung in [Self::reuse, Self::grow_within_slack, Self::grow] {
            if let Some(grant) = rung(self, slow)? {
                return Ok(Some(grant));
            }
        }
        Ok(None)
    }

    /// Rungs 1 to 8.
    fn up_to_limit(&mut self, slow: &mut Slow) -> Climbed {
        let rungs = [Self::reuse, Self::poll, Self::grow_within_slack, Self::remap, Self::wait, Self::grow];
        for rung in rungs {
            if let Some(grant) = rung(self, slow)? {
                return Ok(Some(grant));
            }
        }
        if let Some(grant) = self.other_pools(slow)? {
            return Ok(Some(grant));
        }
        self.return_idle(slow)
    }

    /// A line of the trail; what was said on an earlier way up is said once, at its last place.
    pub(super) fn note(&mut self, rung: Rung, outcome: Outcome) {
        let step = Step { rung, outcome };
        self.trail.retain(|said| *said != step);
        self.trail.push(step);
    }

    pub(super) fn now(&self) -> Access {
        Access::Now(self.need.stream)
    }

    /// Bytes that may be added under the limits.
    pub(super) fn room(&self) -> u64 {
        let room = self.core.room(self.id).left;
        let soft = self.soft_limit.map_or(u64::MAX, |soft| soft.saturating_sub(self.core.reserved.load(Relaxed)));
        room.min(soft)
    }

    /// The most that was ever live, this request included.
    pub(super) fn crest(&self) -> u64 {
        self.pool.meter.crest().max(self.pool.meter.read().live.current + self.need.size)
    }

    /// Bytes that may be added within the slack.
    pub(super) fn slack_room(&self) -> u64 {
        slack_room(self.slack, self.crest(), self.pool.meter.read().reserved.current)
    }

    // ---- 1 and 2 ---------------------------------------------------------------------------------------------------------

    /// Every free block that fits and may be had in this way, not only the likely ones.
    pub(super) fn search(&mut self, access: Access) -> Option<Grant> {
        let mut guard = self.pool.state.lock();
        let state = &mut *guard;
        let index = state.take_thorough(self.need, access)?;
        Some(state.grant(index, self.need, &self.pool.meter))
    }

    fn largest_free(&self) -> u64 {
        self.pool.state.lock().heap.largest_free()
    }

    fn reuse(&mut self, _: &mut Slow) -> Climbed {
        let grant = self.search(self.now());
        if grant.is_none() {
            let largest_free = self.largest_free();
            self.note(Rung::Reuse, Outcome::NoFit { largest_free });
        }
        Ok(grant)
    }

    fn poll(&mut self, slow: &mut Slow) -> Climbed {
        if !self.core.caps.streams {
            return Ok(None);
        }
        let before = self.pool.meter.read().pending.current;
        self.core.poll(self.id, slow)?;
        let grant = self.search(self.now());
        if grant.is_none() {
            let bytes = before.saturating_sub(self.pool.meter.read().pending.current);
            self.note(Rung::Poll, Outcome::Freed { bytes });
        }
        Ok(grant)
    }

    // ---- 3 to 6: more memory, or the same memory elsewhere ------------------------------------------------------------------

    fn grow_within_slack(&mut self, slow: &mut Slow) -> Climbed {
        let room = self.slack_room().min(self.room());
        if self.core.caps.page.is_some() {
            return self.fill(slow, Rung::GrowWithinSlack, Filling { window: self.now(), moves: None, grow_max: room });
        }
        self.grow_segment(slow, Rung::GrowWithinSlack, room)
    }

    fn remap(&mut self, slow: &mut Slow) -> Climbed {
        if !self.core.caps.remap {
            return Ok(None);
        }
        let alias = self.core.caps.alias;
        let moves = if alias { self.now() } else { Access::Completed };
        let grow_max = self.slack_room().min(self.room());
        let how = Filling { window: self.now(), moves: Some(moves), grow_max };
        let grant = self.fill(slow, Rung::Remap, how)?;
        let may_wait = self.core.caps.streams && self.core.config.read().wait_to_move && !self.stops_at_limit();
        if grant.is_some() || alias || !may_wait {
            return Ok(grant);
        }
        let until = self.patience();
        self.core.wait_for_all(self.id, slow, until)?;
        self.fill(slow, Rung::Remap, how)
    }

    /// Reuse and remap again, of memory that another stream's work still uses, behind waits on the device.
    fn wait(&mut self, slow: &mut Slow) -> Climbed {
        if self.core.caps.host_ordered || !self.core.caps.streams {
            return Ok(None);
        }
        if let Some(grant) = self.reuse_behind_wait()? {
            return Ok(Some(grant));
        }
        if !self.core.caps.remap {
            return Ok(None);
        }
        let moves = if self.core.caps.alias { Access::AfterWait } else { Access::Completed };
        let grow_max = self.slack_room().min(self.room());
        self.fill(slow, Rung::Wait, Filling { window: Access::AfterWait, moves: Some(moves), grow_max })
    }

    fn reuse_behind_wait(&mut self) -> Climbed {
        let (index, pairs) = {
            let mut guard = self.pool.state.lock();
            let state = &mut *guard;
            let apart = state.slots_apart(self.need);
            let (size, align) = (self.need.size, self.need.align);
            let taken = state.heap.hold_fewest(size, align, &mut state.clocks, |clocks, place, fence| {
                let possible = clocks.is_reachable(fence) && !apart.contains(&place);
                possible.then(|| clocks.missing(fence, self.need.stream).len())
            });
            let Some(index) = taken else {
                let largest_free = state.heap.largest_free();
                self.note(Rung::Wait, Outcome::NoFit { largest_free });
                return Ok(None);
            };
            let fence = state.heap.fence(index);
            self.pool.meter.pending_is(state.heap.pending());
            (index, state.clocks.missing(fence, self.need.stream))
        };
        let waited = self.core.wait_between(self.pool, self.need.stream, &pairs);
        let mut guard = self.pool.state.lock();
        let state = &mut *guard;
        match waited {
            Ok(()) => {
                let index = state.heap.own_held(index, &mut state.clocks);
                Ok(Some(state.grant(index, self.need, &self.pool.meter)))
            }
            Err(error) => {
                state.heap.unhold(index, &mut state.clocks);
                self.pool.meter.pending_is(state.heap.pending());
                if error.is_refusal() { Ok(None) } else { Err(error) }
            }
        }
    }

    /// Up to the limit and the device: as few new pages as possible beside all that can move, or a segment.
    fn grow(&mut self, slow: &mut Slow) -> Climbed {
        let room = self.room();
        if self.core.caps.page.is_none() {
            return self.grow_segment(slow, Rung::Grow, room);
        }
        if self.captured {
            return self.fill(slow, Rung::Grow, Filling { window: self.now(), moves: None, grow_max: room });
        }
        let caps = &self.core.caps;
        let waits = caps.streams && !caps.host_ordered;
        let window = if waits && caps.remap { Access::AfterWait } else { self.now() };
        let moves = match (caps.remap, caps.alias) {
            (false, _) => None,
            (true, true) => Some(window),
            (true, false) => Some(Access::Completed),
        };
        self.fill(slow, Rung::Grow, Filling { window, moves, grow_max: room })
    }

    fn fill(&mut self, slow: &mut Slow, rung: Rung, how: Filling) -> Climbed {
        if !self.waited_for_addresses
            && !self.captured
            && self.on_limit == OnLimit::Climb
            && is_overgrown(self.core, self.id, self.need.size, slow)
        {
            self.waited_for_addresses = true;
            let until = self.patience();
            self.core.wait_for_all(self.id, slow, until)?;
        }
        let mut filled = fill_window(self.core, self.id, self.need, slow, how)?;
        if rung == Rung::Grow && matches!(filled, Filled::NoWindow) {
            filled = match add_region(self.core, self.id, self.need.size) {
                Ok(()) => fill_window(self.core, self.id, self.need, slow, how)?,
                Err(error) if error.is_out_of_memory() => Filled::Refused(error),
                Err(error) => return Err(error),
            };
        }
        let outcome = match filled {
            Filled::Served(grant) => return Ok(Some(grant)),
            Filled::NoWindow => Outcome::NotApplicable { reason: "no stretch of addresses is long enough" },
            Filled::TooFew { needed, .. } if how.moves.is_none() => Outcome::NeedsMore { needed, room: how.grow_max },
            Filled::TooFew { needed, found } => Outcome::TooFewPages { needed, found },
            Filled::Refused(error) => Outcome::Refused { reason: error.to_string() },
        };
        let refused = matches!(outcome, Outcome::Refused { .. });
        self.note(rung, outcome);
        // What a refused call left half done may serve already.
        Ok(if refused { self.search(self.now()) } else { None })
    }

    // ---- 7 and 8: what is idle goes back, then growth again -------------------------------------------------------------------

    fn other_pools(&mut self, slow: &mut Slow) -> Climbed {
        let room = self.core.room(self.id);
        if self.core.forbids(self.id, self.need.size) || (room.of_pool && room.left == 0) {
            // Nothing that others give back would be allowed here.
            return Ok(None);
        }
        // What the limit leaves is not taken from others; where the device is full, all of it must come from them.
        loop {
            let missing = match self.need.size.saturating_sub(self.room()) {
                0 => self.need.size,
                missing => missing,
            };
            let bytes = self.take_from_others(slow, missing)?;
            if bytes == 0 {
                return Ok(None);
            }
            self.note(Rung::OtherPools, Outcome::Freed { bytes });
            let grant = self.grow(slow)?;
            // Under the pool's own limit more from others would not help.
            if grant.is_some() || room.of_pool {
                return Ok(grant);
            }
        }
    }

    /// Returns about `wanted` idle bytes of other pools. Answers the bytes.
    fn take_from_others(&mut self, slow: &mut Slow, wanted: u64) -> Result<u64, BackendError> {
        let mut bytes = 0;
        for at in 0..self.core.pools().count() {
            let other = PoolId(at as u16);
            let pool = self.core.pool(other);
            let stats = pool.meter.read();
            let spare = stats.reserved.current.saturating_sub(pool.config.read().guarantee).min(stats.idle());
            if bytes < wanted && other != self.id && spare > 0 {
                self.core.poll(other, slow)?;
                bytes += self.core.return_spare(other, wanted - bytes, spare, slow)?;
            }
        }
        Ok(bytes)
    }

    fn return_idle(&mut self, slow: &mut Slow) -> Climbed {
        if self.core.caps.remap || self.core.forbids(self.id, self.need.size) {
            // Free pages have moved already, or whatever comes back may not be used.
            return Ok(None);
        }
        let bytes = self.core.return_idle(self.id, u64::MAX, slow)?;
        self.note(Rung::ReturnIdle, Outcome::Freed { bytes });
        if bytes == 0 { Ok(None) } else { self.grow(slow) }
    }

    fn out_of_memory(self) -> AllocError {
        {
            let mut state = self.pool.state.lock();
            self.pool.meter.count(Count::Failure);
            state.ran_out(self.need);
        }
        AllocError::OutOfMemory(Box::new(report::out_of_memory(self)))
    }
}
