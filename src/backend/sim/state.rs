//! One call at a time, from its checks to its counts: what each method of the simulated device does under its lock.
//!
//! Knows no threads. Invariants: a call looks at, in this order, what is supported, the contract, planned failures, room; it
//! changes nothing before it has passed all of them. Broken rules are written down in one place and calls counted in one.

use std::time::Duration;

use super::calls::{Call, Faults, SimCounters, Stop, Violation, ViolationKind, broken};
use super::memory::{Memory, show};
use super::oracle::{Oracle, Rule};
use super::work::{Device, Lag};
use super::{NAME, SimConfig, SimMemory, SimStreams, base_align};
use crate::backend::{BackendError, Budget, Region, Span};
use crate::ids::{EventId, RegionId, StreamId};
use crate::units::align_up;

/// Broken rules that are kept in words; later ones are only counted.
const KEPT_VIOLATIONS: usize = 1024;

#[derive(Debug)]
pub(super) struct State {
    pub(super) config: SimConfig,
    pub(super) memory: Memory,
    pub(super) device: Device,
    pub(super) oracle: Oracle,
    pub(super) faults: Faults,
    pub(super) counters: SimCounters,
    pub(super) violations: Vec<Violation>,
    pub(super) lost: Option<String>,
}

impl State {
    pub(super) fn new(config: SimConfig) -> Self {
        let lag = if config.streams == SimStreams::None { Lag::Events(0) } else { config.lag };
        State {
            config,
            memory: Memory::new(config.page, base_align(&config)),
            device: Device::new(lag),
            oracle: Oracle::default(),
            faults: Faults::default(),
            counters: SimCounters::default(),
            violations: Vec::new(),
            lost: None,
        }
    }

    pub(super) fn present(&self) -> Result<(), Stop> {
        match &self.lost {
            Some(reason) => Err(BackendError::Lost { reason: reason.clone() }.into()),
            None => Ok(()),
        }
    }

    fn write_down(&mut self, violation: Violation) {
        self.counters.violations += 1;
        if self.violations.len() < KEPT_VIOLATIONS {
            self.violations.push(violation);
        }
    }

    /// Writes a broken rule down and makes an error of it.
    pub(super) fn noted<T>(&mut self, call: &'static str, result: Result<T, Stop>) -> Result<T, BackendError> {
        result.map_err(|stop| match stop {
            Stop::Refused(error) => error,
            Stop::Broken(violation) => {
                let rule = violation.text.clone();
                self.write_down(violation);
                BackendError::Contract { call, rule }
            }
        })
    }

    /// Counts a call that has ended. The one place where calls are counted.
    pub(super) fn finish<T>(&mut self, call: Call, result: Result<T, Stop>) -> Result<T, BackendError> {
        let result = self.noted(call.name(), result);
        match &result {
            Ok(_) => self.counters.calls[call as usize] += 1,
            Err(error) => {
                self.counters.failures[call as usize] += 1;
                if let (BackendError::Lost { reason }, None) = (error, &self.lost) {
                    self.lost = Some(reason.clone());
                }
            }
        }
        self.counters.peak_used = self.counters.peak_used.max(self.memory.used());
        self.counters.peak_address_end = self.counters.peak_address_end.max(self.memory.address_end());
        result
    }

    pub(super) fn counted(&self) -> SimCounters {
        SimCounters {
            used: self.memory.used(),
            address_end: self.memory.address_end(),
            streams: self.device.open_streams(),
            live_events: self.device.live_events(),
            ..self.counters
        }
    }

    fn supported(&self, call: Call) -> Result<(), Stop> {
        let memory = self.config.memory;
        let yes = match call {
            Call::Reserve | Call::Back | Call::Unback => memory != SimMemory::Segments,
            Call::Remap => matches!(memory, SimMemory::Alias | SimMemory::Remap),
            Call::GrowSegment => memory == SimMemory::Segments,
            Call::OpenStream => self.config.streams == SimStreams::Many,
            Call::Record | Call::StreamWait => self.config.streams != SimStreams::None,
            Call::Release | Call::Done | Call::HostWait | Call::Zero | Call::Budget => true,
        };
        if yes { Ok(()) } else { Err(BackendError::Unsupported { call: call.name(), backend: NAME }.into()) }
    }

    pub(super) fn budget(&mut self) -> Result<Option<Budget>, Stop> {
        self.faults.strike(Call::Budget)?;
        Ok(Some(Budget { total: self.config.capacity, free: self.free() }))
    }

    fn free(&self) -> u64 {
        self.config.capacity.saturating_sub(self.memory.used()).saturating_sub(self.config.foreign)
    }

    fn room(&self, call: Call, requested: u64) -> Result<(), Stop> {
        if requested <= self.free().min(self.memory.most().saturating_sub(self.memory.used())) {
            return Ok(());
        }
        Err(BackendError::OutOfMemory { call: call.name(), requested }.into())
    }

    /// The size of a new region.
    fn extent(&self, call: Call, requested: u64, unit: u64) -> Result<u64, Stop> {
        if requested == 0 {
            return Err(broken(ViolationKind::Span, "a region of no bytes".to_string()));
        }
        let max = self.config.region_max;
        let size = align_up(requested, unit).filter(|_| requested <= max);
        size.ok_or_else(|| BackendError::TooLarge { call: call.name(), requested, max }.into())
    }

    pub(super) fn reserve(&mut self, requested: u64) -> Result<Region, Stop> {
        self.supported(Call::Reserve)?;
        let size = self.extent(Call::Reserve, requested, self.config.page)?;
        if size != requested {
            return Err(broken(ViolationKind::Span, format!("a reservation of {requested} bytes is not whole pages")));
        }
        self.faults.strike(Call::Reserve)?;
        let full = BackendError::OutOfMemory { call: Call::Reserve.name(), requested };
        self.memory.reserve(size).ok_or(Stop::Refused(full))
    }

    pub(super) fn back(&mut self, span: Span) -> Result<(), Stop> {
        self.supported(Call::Back)?;
        self.memory.vacant(span)?;
        self.faults.strike(Call::Back)?;
        self.room(Call::Back, span.size)?;
        self.memory.back(span);
        self.counters.pages_backed += span.size / self.config.page;
        Ok(())
    }

    fn finished(&mut self, span: Span) -> Result<(), Stop> {
        self.device.settle();
        self.oracle.finished(&self.device, span)
    }

    pub(super) fn unback(&mut self, span: Span) -> Result<(), Stop> {
        self.supported(Call::Unback)?;
        self.memory.occupied(span)?;
        self.finished(span)?;
        self.faults.strike(Call::Unback)?;
        let freed = self.memory.unback(span);
        self.oracle.unmapped(span);
        self.oracle.freed(&freed);
        self.counters.pages_unbacked += span.size / self.config.page;
        self.counters.pages_freed += freed.iter().map(|run| run.size).sum::<u64>() / self.config.page;
        Ok(())
    }

    pub(super) fn remap(&mut self, from: Span, to: Span) -> Result<(), Stop> {
        self.supported(Call::Remap)?;
        if from.size != to.size {
            let text = format!("{} bytes moved to {}", from.size, show(to));
            return Err(broken(ViolationKind::Span, text));
        }
        self.memory.occupied(from)?;
        self.memory.vacant(to)?;
        let alias = self.config.memory == SimMemory::Alias;
        if !alias {
            self.finished(from)?;
        }
        self.faults.strike(Call::Remap)?;
        if alias {
            self.memory.alias(from, to);
        } else {
            self.memory.shift(from, to);
            self.oracle.unmapped(from);
        }
        self.counters.pages_moved += from.size / self.config.page;
        self.counters.bytes_moved += from.size;
        Ok(())
    }

    pub(super) fn grow_segment(&mut self, requested: u64) -> Result<Region, Stop> {
        self.supported(Call::GrowSegment)?;
        let size = self.extent(Call::GrowSegment, requested, self.config.quantum)?;
        self.faults.strike(Call::GrowSegment)?;
        self.room(Call::GrowSegment, size)?;
        let full = BackendError::OutOfMemory { call: Call::GrowSegment.name(), requested };
        self.memory.grow_segment(size).ok_or(Stop::Refused(full))
    }

    pub(super) fn release(&mut self, region: RegionId) -> Result<(), Stop> {
        let size = self.memory.releasable(region)?;
        self.finished(Span { region, offset: 0, size })?;
        self.faults.strike(Call::Release)?;
        let freed = self.memory.release(region);
        self.oracle.released(region);
        self.oracle.freed(freed.as_slice());
        Ok(())
    }

    pub(super) fn open_stream(&mut self) -> Result<StreamId, Stop> {
        self.supported(Call::OpenStream)?;
        self.faults.strike(Call::OpenStream)?;
        let max = u64::from(u16::MAX) + 1;
        let full = BackendError::TooLarge { call: Call::OpenStream.name(), requested: max + 1, max };
        self.device.open().ok_or(Stop::Refused(full))
    }

    /// The stream that a number means, on which something is to be ordered now.
    fn queue_of(&self, stream: StreamId) -> Result<StreamId, Stop> {
        if self.config.streams == SimStreams::One {
            return Ok(StreamId(0));
        }
        self.device.known_stream(stream)?;
        if self.device.is_captured(stream) { Err(BackendError::Recording { stream }.into()) } else { Ok(stream) }
    }

    pub(super) fn is_capturing(&self, stream: StreamId) -> Result<bool, Stop> {
        self.present()?;
        self.device.known_stream(stream)?;
        Ok(self.device.is_captured(stream))
    }

    pub(super) fn record(&mut self, stream: StreamId) -> Result<EventId, Stop> {
        self.supported(Call::Record)?;
        let stream = self.queue_of(stream)?;
        self.faults.strike(Call::Record)?;
        self.device.record(stream)
    }

    pub(super) fn done(&mut self, event: EventId) -> Result<bool, Stop> {
        self.device.known_event(event)?;
        self.faults.strike(Call::Done)?;
        self.device.done(event)
    }

    pub(super) fn stream_wait(&mut self, stream: StreamId, event: EventId) -> Result<(), Stop> {
        self.supported(Call::StreamWait)?;
        let stream = self.queue_of(stream)?;
        self.device.known_event(event)?;
        self.faults.strike(Call::StreamWait)?;
        self.device.wait(stream, event)
    }

    pub(super) fn host_wait(&mut self, event: EventId, timeout: Option<Duration>) -> Result<bool, Stop> {
        self.device.known_event(event)?;
        self.faults.strike(Call::HostWait)?;
        if self.device.done(event)? || timeout == Some(Duration::ZERO) {
            return self.device.done(event);
        }
        self.device.force(event)?;
        self.counters.waits_forced += 1;
        Ok(true)
    }

    pub(super) fn zero(&mut self, stream: StreamId, span: Span) -> Result<(), Stop> {
        self.device.known_stream(stream)?;
        self.memory.translate(span)?;
        self.faults.strike(Call::Zero)?;
        let number = self.device.issue(stream)?;
        self.device.settle();
        self.oracle.zeroed(&self.device, stream, number, span);
        self.counters.bytes_zeroed += span.size;
        Ok(())
    }

    pub(super) fn work(&mut self, stream: StreamId, owner: u64, span: Span) -> Result<(), Stop> {
        self.device.known_stream(stream)?;
        let runs = self.memory.translate(span)?;
        self.device.settle();
        let rule = if self.config.host_ordered { Rule::Completion } else { Rule::Streams };
        let conflicts = self.oracle.conflicts(&self.device, (owner, stream, span), &runs, rule);
        let number = self.device.issue(stream)?;
        self.oracle.used(&self.device, owner, stream, number, span, &runs);
        self.all_noted(conflicts)
    }

    pub(super) fn host_touch(&mut self, owner: u64, span: Span) -> Result<(), Stop> {
        let runs = self.memory.translate(span)?;
        self.device.settle();
        let conflicts = self.oracle.host_conflicts(&self.device, owner, span, &runs);
        self.all_noted(conflicts)
    }

    /// Writes down all but the first, which its caller does.
    fn all_noted(&mut self, conflicts: Vec<Violation>) -> Result<(), Stop> {
        let mut rest = conflicts.into_iter();
        let first = rest.next();
        rest.for_each(|violation| self.write_down(violation));
        first.map_or(Ok(()), |violation| Err(Stop::Broken(violation)))
    }
}
