//! A simulated device: capacity, pages, segments, streams and completion under the test's control, and every rule of the
//! backend contract checked.
//!
//! It has no bytes: addresses and physical memory are numbers, so a device of terabytes costs what its page tables cost. It
//! knows nothing of blocks or allocators; an *owner* is any number by which the caller tells its allocations apart.
//! It never panics: a broken rule is written down ([`Sim::violations`]) and answered with [`BackendError::Contract`], and
//! changes nothing (but [`Sim::work`], which happened even when it should not have).
//!
//! Invariants: the answer to a call is a function of the configuration and the calls before it (no clock, no chance); a call
//! looks at, in this order, a lost device, what is supported, the contract, planned failures, room.
//! [`Sim::check`] recomputes the invariants of memory, streams and uses, which stand in their files.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Backend, BackendError, Budget, Capabilities, Region, Span};
use crate::ids::{EventId, RegionId, StreamId};
use crate::sync::{Mutex, Rank};
use crate::units::{MIB, TIB};

mod calls;
mod memory;
mod oracle;
mod state;
#[cfg(test)]
mod tests;
mod work;

pub use calls::{Call, SimCounters, Violation, ViolationKind};
pub use work::Lag;

use calls::{Once, Stop, broken};
use state::State;

const NAME: &str = "sim";

/// What kind of memory the device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimMemory {
    /// Paged; `remap` leaves the old address mapped.
    Alias,
    /// Paged; `remap` unmaps the old address.
    Remap,
    /// Paged, without `remap`.
    Paged,
    /// In segments.
    Segments,
}

/// What orders the device's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimStreams {
    /// Nothing: all work is complete at once.
    None,
    /// A single queue: every number of a stream means it, and no stream can be opened.
    One,
    /// As many streams as are opened, any of which may be captured ([`Sim::capture`]).
    Many,
}

/// What device to simulate. Plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimConfig {
    /// Physical bytes.
    pub capacity: u64,
    /// Kind of memory.
    pub memory: SimMemory,
    /// Bytes of a page; taken up to a power of two.
    pub page: u64,
    /// The quantum that the device advises; taken up to a power of two.
    pub quantum: u64,
    /// Bytes of the largest reservation or segment.
    pub region_max: u64,
    /// When work is complete.
    pub lag: Lag,
    /// Whether to say that the CPU touches the memory; then bytes change owner only after completion.
    pub host_ordered: bool,
    /// Its streams.
    pub streams: SimStreams,
    /// Bytes that somebody else uses; see [`Sim::set_foreign`].
    pub foreign: u64,
}

impl Default for SimConfig {
    fn default() -> Self {
        SimConfig {
            capacity: TIB,
            memory: SimMemory::Alias,
            page: 2 * MIB,
            quantum: 512,
            region_max: 16 * TIB,
            lag: Lag::Events(0),
            host_ordered: false,
            streams: SimStreams::Many,
            foreign: 0,
        }
    }
}

/// The simulated device. Clones are the same device.
#[derive(Clone)]
pub struct Sim {
    shared: Arc<Shared>,
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

type Meanwhile = Arc<dyn Fn(Call) + Send + Sync>;

struct Shared {
    config: SimConfig,
    state: Mutex<State>,
    meanwhile: Mutex<Option<Meanwhile>>,
    /// Regions with a call on its way, for rule 5. Held for an instant, before `state` and never with it.
    inside: Mutex<Vec<RegionId>>,
}

impl Sim {
    /// A device as described.
    pub fn new(config: SimConfig) -> Self {
        let power = |size: u64| size.checked_next_power_of_two().unwrap_or(1 << 63);
        let config = SimConfig { page: power(config.page), quantum: power(config.quantum), ..config };
        let state = State::new(config);
        let (state, inside) = (Mutex::new(Rank::Device, state), Mutex::new(Rank::Leaf, Vec::new()));
        Sim { shared: Arc::new(Shared { config, state, inside, meanwhile: Mutex::new(Rank::Leaf, None) }) }
    }

    // ---- time and completion

    /// Moves the logical clock on.
    pub fn advance(&self, n: u64) {
        self.shared.state.lock().device.advance(n);
    }

    /// The logical clock.
    pub fn now(&self) -> u64 {
        self.shared.state.lock().device.now()
    }

    /// Completes the next `n` pieces of a stream (work, zeros and markers; a wait is not counted) in order; gives how many it
    /// did. It stops at the end of the queue and at a `stream_wait` on an event that is not done.
    pub fn complete(&self, stream: StreamId, n: u64) -> u64 {
        let mut state = self.shared.state.lock();
        let result = state.device.complete(stream, n);
        state.noted("complete", result).unwrap_or(0)
    }

    /// Completes everything issued so far on every stream.
    pub fn complete_all(&self) {
        self.shared.state.lock().device.complete_all();
    }

    /// Pieces of a stream that are not complete, waits not counted.
    pub fn queued(&self, stream: StreamId) -> u64 {
        self.shared.state.lock().device.queued(stream)
    }

    /// Says that a stream is captured from now on, or no longer: work given to it is no concern of the device then.
    pub fn capture(&self, stream: StreamId, captured: bool) {
        self.shared.state.lock().device.capture(stream, captured);
    }

    /// Does this at the start of every call that can fail, on the calling thread and before the device looks at the call: a driver
    /// that takes its time, or what others do meanwhile. It takes the place of what was said before.
    pub fn meanwhile(&self, what: impl Fn(Call) + Send + Sync + 'static) {
        *self.shared.meanwhile.lock() = Some(Arc::new(what));
    }

    // ---- uses

    /// Device work by allocation `owner` on `stream` that touches `span` (any bytes, not only whole pages). The addresses are
    /// translated now. Refused, and not queued, when it is not backed; queued and refused when it is not ordered after
    /// another owner's use of the same physical bytes.
    pub fn work(&self, stream: StreamId, owner: u64, span: Span) -> Result<(), BackendError> {
        let mut state = self.shared.state.lock();
        let result = state.present().and_then(|()| state.work(stream, owner, span));
        state.noted("work", result)
    }

    /// A CPU access by allocation `owner` to `span`, now.
    pub fn host_touch(&self, owner: u64, span: Span) -> Result<(), BackendError> {
        let mut state = self.shared.state.lock();
        let result = state.present().and_then(|()| state.host_touch(owner, span));
        state.noted("host_touch", result)
    }

    // ---- failures

    /// The `k`-th call of this kind from now (1 is the next) fails.
    pub fn fail_at(&self, call: Call, k: u64, error: BackendError) {
        self.shared.state.lock().faults.plan(call, k, Once::Yes, error);
    }

    /// The `k`-th call of this kind from now and all after it fail.
    pub fn fail_from(&self, call: Call, k: u64, error: BackendError) {
        self.shared.state.lock().faults.plan(call, k, Once::No, error);
    }

    /// Takes back all planned failures. A lost device stays lost.
    pub fn fail_clear(&self) {
        self.shared.state.lock().faults.clear();
    }

    /// The device is gone: every later call fails, `forget` and `close_stream` do nothing.
    pub fn lose(&self, reason: &str) {
        self.shared.state.lock().lost.get_or_insert_with(|| reason.to_string());
    }

    /// Sets how many bytes somebody else uses.
    pub fn set_foreign(&self, bytes: u64) {
        self.shared.state.lock().config.foreign = bytes;
    }

    // ---- what was seen

    /// What happened so far, and what is held now.
    pub fn counters(&self) -> SimCounters {
        self.shared.state.lock().counted()
    }

    /// Peaks become what is held now; a region's end becomes that of its highest page mapped now.
    pub fn reset_peaks(&self) {
        let mut state = self.shared.state.lock();
        state.memory.reset_high();
        state.counters.peak_used = state.memory.used();
        state.counters.peak_address_end = state.memory.address_end();
    }

    /// Rules broken so far, the first 1024 of them.
    pub fn violations(&self) -> Vec<Violation> {
        self.shared.state.lock().violations.clone()
    }

    /// Recomputes reference counts, used bytes, queues and uses from the maps.
    pub fn check(&self) -> Result<(), String> {
        let state = self.shared.state.lock();
        state.memory.check()?;
        state.device.check()?;
        state.oracle.check()?;
        let (used, peak) = (state.memory.used(), state.counters.peak_used);
        if used > peak { Err(format!("{used} bytes used, above the peak of {peak}")) } else { Ok(()) }
    }

    fn call<T>(&self, call: Call, body: impl FnOnce(&mut State) -> Result<T, Stop>) -> Result<T, BackendError> {
        let meanwhile = self.shared.meanwhile.lock().clone();
        if let Some(what) = meanwhile {
            what(call);
        }
        let mut state = self.shared.state.lock();
        let result = state.present().and_then(|()| body(&mut state));
        state.finish(call, result)
    }

    /// A call that rule 5 is about.
    fn exclusive<T>(
        &self,
        call: Call,
        regions: &[RegionId],
        body: impl FnOnce(&mut State) -> Result<T, Stop>,
    ) -> Result<T, BackendError> {
        let entered = Entered::new(&self.shared, regions);
        self.call(call, |state| match entered.busy {
            Some(region) => {
                Err(broken(ViolationKind::Concurrent, format!("{region} has a call of another thread on its way")))
            }
            None => body(state),
        })
    }
}

/// A call's presence in its regions; ends with it.
struct Entered<'a> {
    shared: &'a Shared,
    regions: Vec<RegionId>,
    /// A region that another call was in already.
    busy: Option<RegionId>,
}

impl<'a> Entered<'a> {
    fn new(shared: &'a Shared, regions: &[RegionId]) -> Self {
        let mut regions = regions.to_vec();
        regions.dedup();
        let mut inside = shared.inside.lock();
        let busy = regions.iter().copied().find(|region| inside.contains(region));
        inside.extend_from_slice(&regions);
        Entered { shared, regions, busy }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut inside = self.shared.inside.lock();
        for region in &self.regions {
            if let Some(index) = inside.iter().position(|other| other == region) {
                inside.swap_remove(index);
            }
        }
    }
}

fn base_align(config: &SimConfig) -> u64 {
    config.page.max(2 * MIB)
}

impl Backend for Sim {
    fn capabilities(&self) -> Capabilities {
        let config = &self.shared.config;
        Capabilities {
            name: NAME,
            page: (config.memory != SimMemory::Segments).then_some(config.page),
            remap: matches!(config.memory, SimMemory::Alias | SimMemory::Remap),
            alias: config.memory == SimMemory::Alias,
            streams: config.streams != SimStreams::None,
            captures: config.streams == SimStreams::Many,
            release_waits: true,
            host_ordered: config.host_ordered,
            base_align: base_align(config),
            quantum: config.quantum,
            region_max: config.region_max,
        }
    }

    fn reserve(&self, size: u64) -> Result<Region, BackendError> {
        self.call(Call::Reserve, |state| state.reserve(size))
    }

    fn back(&self, span: Span) -> Result<(), BackendError> {
        self.exclusive(Call::Back, &[span.region], |state| state.back(span))
    }

    fn unback(&self, span: Span) -> Result<(), BackendError> {
        self.exclusive(Call::Unback, &[span.region], |state| state.unback(span))
    }

    fn remap(&self, from: Span, to: Span) -> Result<(), BackendError> {
        self.exclusive(Call::Remap, &[from.region, to.region], |state| state.remap(from, to))
    }

    fn grow_segment(&self, size: u64) -> Result<Region, BackendError> {
        self.call(Call::GrowSegment, |state| state.grow_segment(size))
    }

    fn release(&self, region: RegionId) -> Result<(), BackendError> {
        self.exclusive(Call::Release, &[region], |state| state.release(region))
    }

    fn open_stream(&self) -> Result<StreamId, BackendError> {
        self.call(Call::OpenStream, State::open_stream)
    }

    fn close_stream(&self, stream: StreamId) {
        let mut state = self.shared.state.lock();
        let result = state.present().and_then(|()| state.device.close(stream));
        // Nobody is told, as the trait has it; a broken rule is in the list.
        let _ = state.noted("close_stream", result);
    }

    fn record(&self, stream: StreamId) -> Result<EventId, BackendError> {
        self.call(Call::Record, |state| state.record(stream))
    }

    fn done(&self, event: EventId) -> Result<bool, BackendError> {
        self.call(Call::Done, |state| state.done(event))
    }

    fn stream_wait(&self, stream: StreamId, event: EventId) -> Result<(), BackendError> {
        self.call(Call::StreamWait, |state| state.stream_wait(stream, event))
    }

    fn host_wait(&self, event: EventId, timeout: Option<Duration>) -> Result<bool, BackendError> {
        self.call(Call::HostWait, |state| state.host_wait(event, timeout))
    }

    fn forget(&self, event: EventId) {
        let mut state = self.shared.state.lock();
        let result = state.present().and_then(|()| state.device.forget(event));
        // As for `close_stream`.
        let _ = state.noted("forget", result);
    }

    fn zero(&self, stream: StreamId, span: Span) -> Result<(), BackendError> {
        self.call(Call::Zero, |state| state.zero(stream, span))
    }

    fn budget(&self) -> Result<Option<Budget>, BackendError> {
        self.call(Call::Budget, State::budget)
    }

    fn is_capturing(&self, stream: StreamId) -> Result<bool, BackendError> {
        let mut state = self.shared.state.lock();
        let result = state.is_capturing(stream);
        state.noted("is_capturing", result)
    }
}
