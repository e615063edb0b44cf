//! Memory on its way back: idle pages and segments, trimming by size, watermark and age, and the user's hooks.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use super::core::{Core, Slow};
use super::history::Happening;
use super::pool::Pool;
use super::{pages, segments};
use crate::backend::{BackendError, Span};
use crate::ids::{Access, PoolId};
use crate::policy::Config;
use crate::snapshot::Action;
use crate::sync::{Mutex, Rank, assert_free_of_all, thread_local};
use crate::units::align_down;

/// What a reclaim hook is told: who needs memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Bytes of the request that cannot be served.
    pub bytes: u64,
    /// Its pool.
    pub pool: PoolId,
}

type Hook = Arc<dyn Fn(&Shortage) + Send + Sync>;

thread_local! {
    /// Whether this thread is inside a hook: a hook's own allocations do not call hooks.
    static IN_HOOK: Cell<bool> = const { Cell::new(false) };
}

/// The user's reclaim hooks.
pub(crate) struct Hooks {
    list: Mutex<Vec<(u64, Hook)>>,
}

/// Keeps a reclaim hook; dropping it takes the hook away.
#[must_use = "the hook goes when this guard is dropped"]
pub struct HookGuard {
    core: Arc<Core>,
    number: u64,
}

impl Drop for HookGuard {
    fn drop(&mut self) {
        let hook = {
            let mut list = self.core.hooks.list.lock();
            list.iter().position(|(number, _)| *number == self.number).map(|at| list.remove(at))
        };
        // What the hook owns is the user's and goes without the lock.
        assert_free_of_all();
        drop(hook);
    }
}

impl Default for Hooks {
    fn default() -> Self {
        Hooks { list: Mutex::new(Rank::Leaf, Vec::new()) }
    }
}

impl Hooks {
    pub(crate) fn add(core: &Arc<Core>, hook: Hook) -> HookGuard {
        let mut list = core.hooks.list.lock();
        let number = list.iter().map(|(number, _)| number + 1).max().unwrap_or(0);
        list.push((number, hook));
        HookGuard { core: core.clone(), number }
    }

    /// Whether nobody would be asked: there are no hooks, or this thread is inside one.
    pub(crate) fn is_silent(&self) -> bool {
        IN_HOOK.with(Cell::get) || self.list.lock().is_empty()
    }

    /// Calls every hook, holding no lock. Answers whether there was any; inside a hook there is none.
    pub(crate) fn call(&self, shortage: &Shortage) -> bool {
        let hooks: Vec<Hook> = self.list.lock().iter().map(|(_, hook)| hook.clone()).collect();
        if hooks.is_empty() || IN_HOOK.with(|inside| inside.replace(true)) {
            return false;
        }
        struct Leave;
        impl Drop for Leave {
            fn drop(&mut self) {
                IN_HOOK.with(|inside| inside.set(false));
            }
        }
        let _leave = Leave;
        assert_free_of_all();
        hooks.iter().for_each(|hook| hook(shortage));
        true
    }
}

impl Core {
    /// Returns idle memory of a pool whose work is complete: about `wanted` bytes of pages or segments. Answers the bytes.
    pub(crate) fn return_idle(&self, id: PoolId, wanted: u64, slow: &mut Slow) -> Result<u64, BackendError> {
        self.return_spare(id, wanted, u64::MAX, slow)
    }

    /// As [`Core::return_idle`], but never more than `spare` bytes: whole pages and segments within them.
    pub(crate) fn return_spare(
        &self,
        id: PoolId,
        wanted: u64,
        spare: u64,
        slow: &mut Slow,
    ) -> Result<u64, BackendError> {
        if self.pool(id).is_pinned() {
            return Ok(0);
        }
        match self.caps.page {
            None => segments::release_empty(self, id, wanted, spare),
            Some(page) => {
                // The driver may have refused before: an old address that is still mapped keeps the memory of its page.
                pages::unmap_retired(self, id, slow)?;
                self.return_pages(id, wanted.min(align_down(spare, page)))
            }
        }
    }

    fn return_pages(&self, id: PoolId, wanted: u64) -> Result<u64, BackendError> {
        let pool = self.pool(id);
        let held: Vec<(u32, Span)> = {
            let mut guard = pool.state.lock();
            let state = &mut *guard;
            let mut sources = Vec::new();
            let mut left = wanted;
            state.heap.sources(Access::Completed, &state.clocks, |source| {
                let page = state.heap.extent(state.heap.place(source.index).0).1.unwrap_or(1);
                let size = left.div_ceil(page).saturating_mul(page);
                let source = state.heap.shrink_source(source, size);
                left = left.saturating_sub(source.size);
                sources.push(source);
                left > 0
            });
            if wanted == 0 {
                sources.clear();
            }
            let mut hold = |source: &crate::heap::Source| {
                let index = state.heap.hold(source.index, source.start, source.size, &mut state.clocks);
                let (place, offset, size) = state.heap.place(index);
                (index, Span { region: state.heap.region(place), offset, size })
            };
            let held = sources.iter().map(&mut hold).collect();
            pool.meter.pending_is(state.heap.pending());
            held
        };
        let mut returned = 0;
        let mut result = Ok(());
        for (index, span) in held {
            if result.is_ok() {
                result = self.backend.unback(span);
            }
            let mut guard = pool.state.lock();
            let state = &mut *guard;
            if result.is_ok() {
                state.heap.forget_backing(index, &mut state.clocks);
                self.count_returned(pool, span.size);
                let address = state.bases[usize::from(state.heap.place(index).0)] + span.offset;
                state.happened(Happening::to_memory(Action::Return, span.size, address));
                returned += span.size;
            } else {
                state.heap.unhold(index, &mut state.clocks);
                pool.meter.pending_is(state.heap.pending());
            }
        }
        result.map(|()| returned)
    }

    /// Returns idle memory of every pool until at most `keep` idle bytes are left in all. Answers the bytes returned.
    pub(crate) fn trim(&self, keep: u64) -> Result<u64, BackendError> {
        let mut slow = self.slow.lock();
        self.trimming(|| self.trim_under(keep, &mut slow))
    }

    /// Does what returns idle memory, under the slow lock, and writes down how much went back, however it ended.
    fn trimming(&self, trim: impl FnOnce() -> Result<u64, BackendError>) -> Result<u64, BackendError> {
        let gone = || self.pools().map(|pool| pool.meter.read().reserved.freed).sum::<u64>();
        let before = gone();
        let result = trim();
        let happening = Happening::to_memory(Action::Trim, gone() - before, 0);
        self.pool(PoolId(0)).state.lock().happened(happening);
        result
    }

    fn trim_under(&self, keep: u64, slow: &mut Slow) -> Result<u64, BackendError> {
        let ids = || (0..self.pools().count()).map(|at| PoolId(at as u16));
        for id in ids() {
            self.poll(id, slow)?;
            pages::unmap_retired(self, id, slow)?;
        }
        let mut returned = 0;
        for id in ids() {
            let idle: u64 = self.pools().map(|pool| pool.meter.read().idle()).sum();
            if idle <= keep {
                break;
            }
            returned += self.return_idle(id, idle - keep, slow)?;
        }
        self.backend.tidy();
        Ok(returned)
    }

    /// Waits for unfinished work, then returns everything that is idle.
    pub(crate) fn purge(&self) -> Result<u64, BackendError> {
        self.empty_quarantine();
        let mut slow = self.slow.lock();
        let until = self.patience();
        for at in 0..self.pools().count() {
            self.wait_for_all(PoolId(at as u16), &mut slow, until)?;
        }
        self.wait_unpinned(&mut slow, until)?;
        let returned = self.trimming(|| self.trim_under(0, &mut slow))?;
        for pool in self.pools() {
            let state = pool.state.lock();
            pool.meter.reset_crest();
            pool.meter.reset_addresses(state.addresses());
        }
        Ok(returned)
    }

    /// What time brings: idle memory above the high watermark, or not used for the time of decay, goes back.
    pub(crate) fn tick(&self, now: Duration) -> Result<u64, BackendError> {
        let mut slow = self.slow.lock();
        let config = self.config.read().clone();
        let due = config.decay.filter(|decay| slow.last_decay.is_none_or(|last| now.saturating_sub(last) >= *decay));
        // The first time nothing is known of what was used before.
        let first = due.is_some() && slow.last_decay.replace(now).is_none();
        if first {
            for pool in self.pools() {
                take_recent(pool);
            }
        }
        let decays = due.is_some() && !first;
        if !decays && self.excess(&config).is_none() {
            return Ok(0);
        }
        self.trimming(|| {
            let mut returned = if decays { self.decay(&mut slow)? } else { 0 };
            if let Some(excess) = self.excess(&config) {
                let idle: u64 = self.pools().map(|pool| pool.meter.read().idle()).sum();
                returned += self.trim_under(idle.saturating_sub(excess), &mut slow)?;
            }
            Ok(returned)
        })
    }

    /// Returns what was not used since the last time. Answers the bytes.
    fn decay(&self, slow: &mut Slow) -> Result<u64, BackendError> {
        let mut returned = 0;
        for (at, pool) in self.pools().enumerate() {
            let id = PoolId(at as u16);
            let recent = take_recent(pool);
            let unused = pool.meter.read().reserved.current.saturating_sub(recent);
            if unused > 0 {
                self.poll(id, slow)?;
                returned += self.return_idle(id, unused, slow)?;
            }
        }
        Ok(returned)
    }

    /// Bytes down to the low watermark, where more than the high one is reserved.
    fn excess(&self, config: &Config) -> Option<u64> {
        let limit = config.limit? as f64;
        let share = |part: f64| (limit * part) as u64;
        let reserved: u64 = self.pools().map(|pool| pool.meter.read().reserved.current).sum();
        (reserved > share(config.high_watermark)).then(|| reserved - share(config.low_watermark))
    }
}

/// The most that was in use of a pool since this was asked last.
fn take_recent(pool: &Pool) -> u64 {
    let _state = pool.state.lock();
    pool.meter.take_recent()
}

impl Drop for Core {
    /// The last owner is gone: everything goes back, after unfinished work. A device that is lost, or a wait that fails, leaves
    /// the memory to the backend's own end.
    fn drop(&mut self) {
        self.empty_quarantine();
        let mut slow = std::mem::take(&mut *self.slow.lock());
        slow.retired.resize_with(self.pools().count(), Vec::new);
        slow.retiring.drain(..).filter_map(|stream| stream.event).for_each(|event| self.backend.forget(event));
        let until = self.patience();
        if !matches!(self.wait_unpinned(&mut slow, until), Ok(true)) {
            return;
        }
        for at in 0..self.pools().count() {
            let id = PoolId(at as u16);
            if !matches!(self.wait_for_all(id, &mut slow, until), Ok(true)) {
                return;
            }
            let _ = self.return_idle(id, u64::MAX, &mut slow);
            let events = self.pool(id).state.lock().clocks.take_events();
            events.into_iter().for_each(|event| self.backend.forget(event));
            if self.caps.page.is_some() {
                let state = self.pool(id).state.lock();
                let regions: Vec<_> = state
                    .heap
                    .places()
                    .filter(|place| state.heap.top(*place) == 0)
                    .map(|place| state.heap.region(place))
                    .collect();
                drop(state);
                regions.into_iter().for_each(|region| drop(self.backend.release(region)));
            }
        }
    }
}
