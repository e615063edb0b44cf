//! The accounting: one definition of use for every kind of memory, and the meter that keeps it.
//!
//! | word | meaning |
//! |---|---|
//! | requested | bytes asked for by those who hold blocks |
//! | live | bytes of the blocks that a handle owns, and in debug mode of those in quarantine |
//! | pending | freed bytes that no stream may use without waiting for another |
//! | active | live + pending |
//! | reserved | physical bytes held from the backend |
//! | idle | reserved - active |
//! | padding | live - requested |
//!
//! Always `requested <= live <= active <= reserved`, at every instant that a reader can see: the meter is written under the
//! pool's state lock inside a sequence lock, and readers retry instead of locking.

#![forbid(unsafe_code)]

use crate::sync::Again;
use crate::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release, fence};

/// One quantity over time, in bytes (or a count).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Gauge {
    /// Now.
    pub current: u64,
    /// The most since creation or the last `reset_peak`.
    pub peak: u64,
    /// All that was ever added.
    pub allocated: u64,
    /// All that was ever taken away. `current = allocated - freed`.
    pub freed: u64,
}

/// What a pool (or a whole allocator) uses. See the module for the words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Stats {
    /// Bytes asked for.
    pub requested: Gauge,
    /// Bytes of owned blocks.
    pub live: Gauge,
    /// Freed bytes that wait for other streams.
    pub pending: Gauge,
    /// live + pending.
    pub active: Gauge,
    /// Physical bytes held from the backend.
    pub reserved: Gauge,
    /// Number of owned blocks.
    pub blocks: Gauge,
    /// Requests that went beyond the first search.
    pub misses: u64,
    /// Requests that ended in an out-of-memory error.
    pub failures: u64,
    /// Waits put between two streams, on the device.
    pub stream_waits: u64,
    /// Times the host waited for the device.
    pub host_waits: u64,
    /// Bytes of pages moved to other addresses.
    pub moved: u64,
    /// The most bytes of addresses in use at once: to the end of the last mapped page of each region.
    pub addresses_peak: u64,
}

impl Stats {
    /// reserved - active: what could serve requests without more memory.
    pub fn idle(&self) -> u64 {
        self.reserved.current - self.active.current
    }

    /// live - requested: what rounding to the quantum costs.
    pub fn padding(&self) -> u64 {
        self.live.current - self.requested.current
    }

    /// Sums of two pools' figures. Peaks add up too and so bound the true peak of the sum from above.
    pub fn plus(&self, other: &Stats) -> Stats {
        let gauge = |a: &Gauge, b: &Gauge| Gauge {
            current: a.current + b.current,
            peak: a.peak + b.peak,
            allocated: a.allocated + b.allocated,
            freed: a.freed + b.freed,
        };
        Stats {
            requested: gauge(&self.requested, &other.requested),
            live: gauge(&self.live, &other.live),
            pending: gauge(&self.pending, &other.pending),
            active: gauge(&self.active, &other.active),
            reserved: gauge(&self.reserved, &other.reserved),
            blocks: gauge(&self.blocks, &other.blocks),
            misses: self.misses + other.misses,
            failures: self.failures + other.failures,
            stream_waits: self.stream_waits + other.stream_waits,
            host_waits: self.host_waits + other.host_waits,
            moved: self.moved + other.moved,
            addresses_peak: self.addresses_peak + other.addresses_peak,
        }
    }
}

/// A word that one writer at a time changes and anybody reads.
#[derive(Debug, Default)]
struct Cell(AtomicU64);

impl Cell {
    #[inline(always)]
    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    #[inline(always)]
    fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    #[inline(always)]
    fn add(&self, value: u64) {
        self.set(self.get() + value);
    }

    #[inline(always)]
    fn raise(&self, value: u64) {
        if value > self.get() {
            self.set(value);
        }
    }
}

/// A gauge as it is kept: what was freed follows from the two.
#[derive(Debug, Default)]
struct Track {
    allocated: Cell,
    current: Cell,
    peak: Cell,
}

impl Track {
    #[inline(always)]
    fn current(&self) -> u64 {
        self.current.get()
    }

    /// Answers what is current. The peak is the caller's to raise.
    #[inline(always)]
    fn give(&self, amount: u64) -> u64 {
        self.allocated.add(amount);
        self.current.add(amount);
        self.current.get()
    }

    #[inline(always)]
    fn add(&self, amount: u64) {
        self.peak.raise(self.give(amount));
    }

    #[inline(always)]
    fn take(&self, amount: u64) {
        self.current.set(self.current.get() - amount);
    }

    fn gauge(&self) -> Gauge {
        let (allocated, current) = (self.allocated.get(), self.current.get());
        Gauge { current, peak: self.peak.get(), allocated, freed: allocated.wrapping_sub(current) }
    }
}

/// Occasions that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// A request went beyond the first search.
    Miss,
    /// A request ended in an out-of-memory error.
    Failure,
    /// A wait was put between two streams.
    StreamWait,
    /// The host waited.
    HostWait,
    /// So many bytes of pages were moved.
    Moved(u64),
}

/// Keeps the figures of one pool. Written by whoever holds the pool's state lock; read by anybody.
#[derive(Debug, Default)]
pub struct Meter {
    sequence: AtomicU64,
    requested: Track,
    live: Track,
    blocks: Track,
    pending: Track,
    reserved: Track,
    active_peak: Cell,
    /// The most that was ever live, whatever is reset for readers: the ladder's slack counts from it.
    crest: Cell,
    /// The most that was active since the last `tick` looked.
    recent: Cell,
    /// While live + pending is at most this, none of the peaks of live and active bytes rises. Never more than the least of them.
    calm: Cell,
    misses: Cell,
    failures: Cell,
    stream_waits: Cell,
    host_waits: Cell,
    moved: Cell,
    addresses_peak: Cell,
}

impl Meter {
    #[inline(always)]
    fn write(&self, change: impl FnOnce(&Meter)) {
        let sequence = self.sequence.load(Relaxed);
        self.sequence.store(sequence + 1, Relaxed);
        fence(Release);
        change(self);
        self.sequence.store(sequence + 2, Release);
    }

    /// A block was given out. `pending` is what the heap says now.
    #[inline(always)]
    pub fn gave(&self, requested: u64, live: u64, pending: u64) {
        self.write(|meter| {
            meter.settle_pending(pending);
            meter.requested.add(requested);
            meter.blocks.add(1);
            let live = meter.live.give(live);
            if live + pending > meter.calm.get() {
                meter.rise(live, live + pending);
            }
        });
    }

    #[cold]
    fn rise(&self, live: u64, active: u64) {
        let peaks = [(&self.live.peak, live), (&self.crest, live), (&self.active_peak, active), (&self.recent, active)];
        peaks.iter().for_each(|(peak, value)| peak.raise(*value));
        self.calm.set(peaks.iter().map(|(peak, _)| peak.get()).min().unwrap_or(0));
    }

    /// A block came back.
    #[inline(always)]
    pub fn took_back(&self, requested: u64, live: u64, pending: u64) {
        self.write(|meter| {
            meter.requested.take(requested);
            meter.blocks.take(1);
            meter.live.take(live);
            meter.settle_pending(pending);
        });
    }

    /// How many blocks were ever given out.
    #[inline(always)]
    pub fn allocations(&self) -> u64 {
        self.blocks.allocated.get()
    }

    /// How many blocks are live.
    pub fn live_blocks(&self) -> u64 {
        self.blocks.current()
    }

    /// Whether nothing is live.
    #[inline(always)]
    pub fn is_idle(&self) -> bool {
        self.blocks.current() == 0
    }

    /// Fences changed without a block coming or going.
    pub fn pending_is(&self, pending: u64) {
        self.write(|meter| meter.settle_pending(pending));
    }

    #[inline(always)]
    fn settle_pending(&self, pending: u64) {
        let current = self.pending.current();
        if pending != current {
            self.change_pending(pending, current);
        }
    }

    #[cold]
    fn change_pending(&self, pending: u64, current: u64) {
        match pending.checked_sub(current) {
            Some(more) => {
                self.pending.add(more);
            }
            None => self.pending.take(current - pending),
        }
        self.active_peak.raise(self.live.current() + pending);
    }

    /// The backend gave so many bytes.
    pub fn reserved(&self, bytes: u64) {
        self.write(|meter| {
            meter.reserved.add(bytes);
        });
    }

    /// So many bytes went back to the backend.
    pub fn returned(&self, bytes: u64) {
        self.write(|meter| meter.reserved.take(bytes));
    }

    /// Addresses in use now.
    pub fn addresses(&self, bytes: u64) {
        self.write(|meter| meter.addresses_peak.raise(bytes));
    }

    /// Counts an occasion.
    pub fn count(&self, count: Count) {
        self.write(|meter| match count {
            Count::Miss => meter.misses.add(1),
            Count::Failure => meter.failures.add(1),
            Count::StreamWait => meter.stream_waits.add(1),
            Count::HostWait => meter.host_waits.add(1),
            Count::Moved(bytes) => meter.moved.add(bytes),
        });
    }

    /// The most that was ever live since the last [`Meter::reset_crest`].
    pub fn crest(&self) -> u64 {
        self.crest.get()
    }

    /// The crest is what is live now: what was reserved for it may have gone back.
    pub fn reset_crest(&self) {
        self.write(|meter| {
            meter.crest.set(meter.live.current());
            meter.calm.set(0);
        });
    }

    /// The most that was active since the last call, and starts anew.
    pub fn take_recent(&self) -> u64 {
        let recent = self.recent.get();
        self.write(|meter| {
            meter.recent.set(meter.live.current() + meter.pending.current());
            meter.calm.set(0);
        });
        recent
    }

    /// Sets every peak to what is current.
    pub fn reset_peak(&self) {
        self.write(|meter| {
            for track in [&meter.requested, &meter.live, &meter.blocks, &meter.pending, &meter.reserved] {
                track.peak.set(track.current());
            }
            meter.active_peak.set(meter.live.current() + meter.pending.current());
            meter.calm.set(0);
        });
    }

    /// As [`Meter::reset_peak`], for the addresses.
    pub fn reset_addresses(&self, bytes: u64) {
        self.write(|meter| meter.addresses_peak.set(bytes));
    }

    /// The figures, all of one instant. Takes no lock; where a writer was interrupted, waits for it.
    pub fn read(&self) -> Stats {
        let mut again = Again::default();
        loop {
            let before = self.sequence.load(Acquire);
            if before.is_multiple_of(2) {
                let stats = self.read_now();
                fence(Acquire);
                if self.sequence.load(Relaxed) == before {
                    return stats;
                }
            }
            again.later();
        }
    }

    fn read_now(&self) -> Stats {
        let (live, pending) = (self.live.gauge(), self.pending.gauge());
        Stats {
            requested: self.requested.gauge(),
            live,
            pending,
            active: Gauge {
                current: live.current.wrapping_add(pending.current),
                peak: self.active_peak.get(),
                allocated: live.allocated.wrapping_add(pending.allocated),
                freed: live.freed.wrapping_add(pending.freed),
            },
            reserved: self.reserved.gauge(),
            blocks: self.blocks.gauge(),
            misses: self.misses.get(),
            failures: self.failures.get(),
            stream_waits: self.stream_waits.get(),
            host_waits: self.host_waits.get(),
            moved: self.moved.get(),
            addresses_peak: self.addresses_peak.get(),
        }
    }
}
