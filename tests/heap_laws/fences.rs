//! Fences that are counted: a fence is the highest counter of each stream that must be waited for, and every one that is
//! made must be ended once.

use larder::ids::{Access, FenceId, Fences, StreamId};

pub const STREAMS: usize = 5;

type Clock = [u32; STREAMS];

#[derive(Clone, Debug, Default)]
struct Entry {
    refs: u32,
    clock: Clock,
}

/// All fences of a heap, and what is complete.
#[derive(Debug, Default)]
pub struct Counted {
    entries: Vec<Entry>,
    vacant: Vec<u32>,
    now: Clock,
    done: Clock,
    pub refs: u64,
}

impl Counted {
    fn intern(&mut self, clock: Clock) -> FenceId {
        let clock: Clock = std::array::from_fn(|s| if clock[s] > self.done[s] { clock[s] } else { 0 });
        let named = clock.iter().filter(|c| **c > 0).count();
        if named == 0 {
            return FenceId::NONE;
        }
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.entries.push(Entry::default());
            (self.entries.len() - 1) as u32
        });
        self.entries[slot as usize] = Entry { refs: 1, clock };
        self.refs += 1;
        let word = u64::from(slot) + 1;
        if named > 1 { FenceId::of_several(word) } else { FenceId::alone(word) }
    }

    fn entry(&self, fence: FenceId) -> &Entry {
        let entry = &self.entries[fence.word() as usize - 1];
        assert!(entry.refs > 0, "{fence:?} is used after its end");
        entry
    }

    fn clock(&self, fence: FenceId) -> Clock {
        if fence == FenceId::NONE { Clock::default() } else { self.entry(fence).clock }
    }

    /// A use of a stream that is freed now: its fence and its counter.
    pub fn freed_on(&mut self, stream: usize) -> (FenceId, u32) {
        self.now[stream] += 1;
        let mut clock = Clock::default();
        clock[stream] = self.now[stream];
        (self.intern(clock), self.now[stream])
    }

    /// Completes a stream's work up to some point.
    pub fn complete(&mut self, stream: usize, back: u32) {
        let upto = self.now[stream].saturating_sub(back);
        self.done[stream] = self.done[stream].max(upto);
    }

    /// Whether a fence waits for a use, or the use is complete.
    pub fn covers(&self, fence: FenceId, stream: usize, counter: u32) -> bool {
        self.done[stream] >= counter || self.clock(fence)[stream] >= counter
    }

    /// Whether one use lets `access` pass.
    pub fn use_passes(&self, stream: usize, counter: u32, access: Access) -> bool {
        self.done[stream] >= counter
            || match access {
                Access::Now(StreamId(s)) => usize::from(s) == stream,
                Access::Completed => false,
                Access::AfterWait => true,
            }
    }

    /// How many streams must be waited for.
    pub fn waits(&self, fence: FenceId) -> usize {
        let clock = self.clock(fence);
        (0..STREAMS).filter(|s| clock[*s] > self.done[*s]).count()
    }
}

impl Fences for Counted {
    fn passes(&self, fence: FenceId, access: Access) -> bool {
        let clock = self.clock(fence);
        (0..STREAMS).all(|s| clock[s] == 0 || self.use_passes(s, clock[s], access))
    }

    fn join(&mut self, a: FenceId, b: FenceId) -> FenceId {
        let (one, two) = (self.clock(a), self.clock(b));
        self.release(a);
        self.release(b);
        self.intern(std::array::from_fn(|s| one[s].max(two[s])))
    }

    fn simplify(&mut self, fence: FenceId) -> FenceId {
        self.join(fence, FenceId::NONE)
    }

    fn copy(&mut self, fence: FenceId) -> FenceId {
        if fence != FenceId::NONE {
            self.entry(fence);
            self.entries[fence.word() as usize - 1].refs += 1;
            self.refs += 1;
        }
        fence
    }

    fn release(&mut self, fence: FenceId) {
        if fence == FenceId::NONE {
            return;
        }
        self.entry(fence);
        let slot = fence.word() as usize - 1;
        self.entries[slot].refs -= 1;
        self.refs -= 1;
        if self.entries[slot].refs == 0 {
            self.vacant.push(slot as u32);
        }
    }
}

/// Fences for heaps whose memory nobody waits for.
#[allow(dead_code, reason = "random programs have fences")]
pub struct NoFences;

impl Fences for NoFences {
    fn passes(&self, _: FenceId, _: Access) -> bool {
        true
    }
    fn join(&mut self, _: FenceId, _: FenceId) -> FenceId {
        FenceId::NONE
    }
    fn simplify(&mut self, fence: FenceId) -> FenceId {
        fence
    }
    fn copy(&mut self, fence: FenceId) -> FenceId {
        fence
    }
    fn release(&mut self, _: FenceId) {}
}
