//! Paged memory of this machine: addresses reserved once, pages put behind them and taken away as needed. Unix.
//!
//! Checks what it is asked against the contract and leaves the calls of the system to [`super::mapping`]. Knows nothing of
//! blocks and limits.
//!
//! * `back` opens a span; the system gives memory at the first touch (or at once, see [`MmapConfig::pretouch`]), zeroed.
//! * `unback` closes it and gives the memory back, so that the resident size falls at once. Under strict overcommit
//!   (`vm.overcommit_memory=2`) what was once backed stays charged until `release`.
//! * `remap` moves no contents: it closes the source and opens the target. The heap only moves pages that are free, so
//!   nobody can tell; and what is resident never rises, because the target is not touched before the source is empty.
//!   (`mremap` would keep the contents, but leaves a hole in the reservation that another mapping could take, and breaks
//!   the system's record of it in pieces that never join again.)
//!
//! In a folder ([`Mmap::in_folder`]) the bytes are kept in a file without a name: `back` takes its space on the disk, `unback`
//! gives it back, the system writes and reads it as it sees fit. Pages are not moved there: a move would need the space of both
//! places for a moment; returning idle pages and taking others comes to the same.
//!
//! Linux allows about 65,000 pieces of differing access in a process (`vm.max_map_count`). A `back` that would pass it is
//! refused as out of memory, and nothing changes; an `unback` then gives the memory back and leaves the span open.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::file::{Folder, is_full};
use super::limit;
use super::mapping::{HUGE_PAGE, Mapping, huge_pages_enabled, system_page};
use crate::backend::table::{Events, Table, contract, pieces, range_within};
use crate::backend::{Backend, BackendError, Budget, Capabilities, Region, Span};
use crate::ids::{EventId, RegionId, StreamId};
use crate::units::{GIB, TIB, align_down};

/// Half of what a process can address at most.
const ADDRESSES: u64 = if usize::BITS >= 64 { 64 * TIB } else { GIB };
/// What addresses to reserve are measured by where nobody tells the physical memory.
const ASSUMED_MEMORY: u64 = 8 * GIB;
const IN_MEMORY: &str = "host-mmap";
const IN_FILES: &str = "host-file";

/// Whether to ask the system for huge pages (2 MiB) behind the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HugePages {
    /// Leave it to the system's setting.
    Never,
    /// Ask for them. What came of it is told by [`Mmap::huge_pages_in_use`].
    #[default]
    IfPossible,
}

/// How [`Mmap`] is to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmapConfig {
    /// Bytes of a page: a power of two, at least the system's page. Default 2 MiB.
    pub page: u64,
    /// Bytes of addresses that a pool reserves, rounded down to a page. Default (`None`): eight times the physical memory
    /// and at least 64 GiB, in a folder at least the size of its file system, as far as there are addresses (and sizes of
    /// files).
    pub region_max: Option<u64>,
    /// Huge pages. Default: ask for them.
    pub huge_pages: HugePages,
    /// With how many threads `back` has the system put memory behind the pages at once, rather than at their first touch.
    /// Default `None`: at their first touch.
    pub pretouch: Option<NonZeroUsize>,
}

impl Default for MmapConfig {
    fn default() -> Self {
        MmapConfig { page: HUGE_PAGE, region_max: None, huge_pages: HugePages::default(), pretouch: None }
    }
}

impl MmapConfig {
    /// Says what is wrong with the numbers, or the bytes of a region.
    fn validate(&self) -> Result<u64, BackendError> {
        let call = "Mmap::new";
        if !self.page.is_power_of_two() || self.page < system_page() || self.page > ADDRESSES {
            let rule = format!("page: {} is not a power of two from {} to {ADDRESSES}", self.page, system_page());
            return Err(contract(call, rule));
        }
        let memory = limit::physical_memory().unwrap_or(ASSUMED_MEMORY);
        let wanted = self.region_max.unwrap_or(memory.saturating_mul(8).max(64 * GIB));
        match align_down(wanted.min(ADDRESSES), self.page) {
            0 => Err(contract(call, format!("region_max: {wanted} is less than a page of {}", self.page))),
            region_max => Ok(region_max),
        }
    }
}

/// Reserved addresses with pages behind them as needed, as a backend.
#[derive(Debug)]
pub struct Mmap {
    page: u64,
    region_max: u64,
    pretouch: Option<NonZeroUsize>,
    /// `None`: not asked for.
    huge: Option<AtomicBool>,
    /// Where the bytes are kept in files.
    folder: Option<Folder>,
    mappings: Table<Mapping>,
    events: Events,
}

impl Mmap {
    /// A backend with no regions.
    ///
    /// # Errors
    /// [`BackendError::Contract`] when the config is not possible.
    pub fn new(config: MmapConfig) -> Result<Mmap, BackendError> {
        let region_max = config.validate()?;
        let huge = match config.huge_pages {
            HugePages::Never => None,
            HugePages::IfPossible => Some(AtomicBool::new(huge_pages_enabled() && probe_huge_pages().is_ok())),
        };
        let (mappings, events) = (Table::new(), Events::new());
        Ok(Mmap { page: config.page, region_max, pretouch: config.pretouch, huge, folder: None, mappings, events })
    }

    /// As [`Mmap::new`], with the bytes kept in files of a folder: more than the machine's memory, at the speed of its disk (in a
    /// folder that is itself memory, no more than that). The files have no name and go with the backend, however the process
    /// ends. They are not shared with processes forked from this one, which must not touch the blocks; all that asks for memory
    /// there is a typed error, and to drop handles changes nothing. The choice of huge pages has no meaning. Linux.
    ///
    /// # Errors
    /// As [`Mmap::new`]; a folder that is not there or may not be written to, and a file system that cannot take space
    /// beforehand or give it back, as [`BackendError::Driver`] with the system's reason.
    pub fn in_folder(folder: &Path, config: MmapConfig) -> Result<Mmap, BackendError> {
        let call = "Mmap::in_folder";
        let mut mmap = Mmap::new(MmapConfig { huge_pages: HugePages::Never, ..config })?;
        let wanted = |space: Option<u64>| match (config.region_max, space) {
            (None, Some(space)) => mmap.region_max.max(space.min(ADDRESSES)),
            _ => mmap.region_max,
        };
        let (folder, largest) =
            Folder::open(folder, mmap.page, wanted).map_err(|error| refused(call, mmap.page, error))?;
        mmap.region_max = align_down(largest, mmap.page);
        mmap.folder = Some(folder);
        Ok(mmap)
    }

    /// Bytes that the files may still take of the folder's file system; `None` for what is not kept in files, and where the file
    /// system does not say.
    pub(crate) fn space(&self) -> Option<u64> {
        Some(self.folder.as_ref()?.space().ok()??.free)
    }

    fn name(&self) -> &'static str {
        if self.folder.is_some() { IN_FILES } else { IN_MEMORY }
    }

    fn mapping(&self, size: u64) -> io::Result<Mapping> {
        let align = self.page.max(HUGE_PAGE);
        match &self.folder {
            Some(folder) => Mapping::of_file(folder.file(size)?, size, align),
            None => Mapping::reserve(size, align),
        }
    }

    /// Whether huge pages are really to be had: the system has them switched on and has granted every request for them so
    /// far. `None` when they were not asked for. (How many a moment holds is the system's business: `AnonHugePages` in
    /// `/proc/self/smaps`.)
    pub fn huge_pages_in_use(&self) -> Option<bool> {
        self.huge.as_ref().map(|huge| huge.load(Ordering::Relaxed))
    }

    fn advise_huge(&self, mapping: &Mapping) {
        if let Some(huge) = self.huge.as_ref().filter(|huge| huge.load(Ordering::Relaxed))
            && mapping.advise_huge().is_err()
        {
            huge.store(false, Ordering::Relaxed);
        }
    }

    /// The offsets of a span of whole pages, or what is wrong with it.
    fn pages_of(&self, call: &'static str, span: Span, mapping: &Mapping) -> Result<Range<u64>, BackendError> {
        let range = range_within(call, span, mapping.size())?;
        if !range.start.is_multiple_of(self.page) || !range.end.is_multiple_of(self.page) {
            let Span { region, offset, size } = span;
            return Err(contract(call, format!("{size} bytes at {offset} of {region} are not pages of {}", self.page)));
        }
        Ok(range)
    }

    fn unbacked_pages(&self, call: &'static str, span: Span, mapping: &Mapping) -> Result<Range<u64>, BackendError> {
        let range = self.pages_of(call, span, mapping)?;
        if mapping.backed().touches(&range) {
            return Err(contract(call, format!("a page in {range:?} of {} is backed already", span.region)));
        }
        Ok(range)
    }

    fn backed_pages(&self, call: &'static str, span: Span, mapping: &Mapping) -> Result<Range<u64>, BackendError> {
        let range = self.pages_of(call, span, mapping)?;
        if !mapping.backed().covers(&range) {
            return Err(contract(call, format!("a page in {range:?} of {} is not backed", span.region)));
        }
        Ok(range)
    }

    /// Does `work` on the parts of a backed span, in order.
    fn in_pieces(
        &self,
        call: &'static str,
        span: Span,
        mut work: impl FnMut(&mut Mapping, Range<u64>) -> io::Result<()>,
    ) -> Result<(), BackendError> {
        let backed = |mapping: &Mapping, part: Span| {
            let range = range_within(call, part, mapping.size())?;
            match mapping.backed().covers(&range) {
                true => Ok(range),
                false => Err(contract(call, format!("a page in {range:?} of {} is not backed", span.region))),
            }
        };
        self.mappings.with(call, span.region, |mapping| backed(mapping, span).map(|_| ()))?;
        pieces(span).try_for_each(|piece| {
            self.mappings.with(call, span.region, |mapping| {
                let range = backed(mapping, piece)?;
                work(mapping, range).map_err(|error| refused(call, piece.size, error))
            })
        })
    }
}

/// Asks for huge pages behind addresses that go away again, to learn what the system says.
fn probe_huge_pages() -> io::Result<()> {
    Mapping::reserve(HUGE_PAGE, HUGE_PAGE)?.advise_huge()
}

/// What the system's refusal means to our caller.
fn refused(call: &'static str, requested: u64, error: io::Error) -> BackendError {
    match error.raw_os_error() {
        _ if is_full(&error) => BackendError::OutOfMemory { call, requested },
        Some(libc::ENOMEM) => BackendError::OutOfMemory { call, requested },
        code => BackendError::Driver { call, reason: error.to_string(), code: code.unwrap_or(0).into() },
    }
}

impl Backend for Mmap {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: self.name(),
            page: Some(self.page),
            remap: self.folder.is_none(),
            alias: false,
            streams: false,
            captures: false,
            release_waits: false,
            host_ordered: true,
            base_align: self.page.max(HUGE_PAGE),
            quantum: 64,
            region_max: self.region_max,
        }
    }

    fn reserve(&self, size: u64) -> Result<Region, BackendError> {
        let call = "reserve";
        if size > self.region_max {
            return Err(BackendError::TooLarge { call, requested: size, max: self.region_max });
        }
        if size == 0 || !size.is_multiple_of(self.page) {
            return Err(contract(call, format!("{size} bytes are not a number of pages of {}", self.page)));
        }
        let mapping = self.mapping(size).map_err(|error| refused(call, size, error))?;
        self.advise_huge(&mapping);
        let base = mapping.base();
        Ok(Region { id: self.mappings.add(call, mapping)?, base, size })
    }

    fn back(&self, span: Span) -> Result<(), BackendError> {
        let call = "back";
        self.mappings.with(call, span.region, |mapping| {
            let range = self.unbacked_pages(call, span, mapping)?;
            mapping.open(range.clone()).map_err(|error| refused(call, span.size, error))?;
            let Some(threads) = self.pretouch else { return Ok(()) };
            mapping.populate(range.clone(), threads).map_err(|error| {
                // Closing what was opened a moment ago splits nothing; were it refused, the span would stay backed.
                mapping.close(range).ok();
                refused(call, span.size, error)
            })
        })
    }

    fn unback(&self, span: Span) -> Result<(), BackendError> {
        let call = "unback";
        self.mappings.with(call, span.region, |mapping| {
            let range = self.backed_pages(call, span, mapping)?;
            mapping.close(range).map_err(|error| refused(call, span.size, error))
        })
    }

    /// The contents do not move; see the head of this file.
    ///
    /// The target is opened, which takes no memory, then the source is closed, which gives it back; only then is the
    /// target touched. A refusal of either step leaves the source as it was, contents and all.
    fn remap(&self, from: Span, to: Span) -> Result<(), BackendError> {
        let call = "remap";
        if self.folder.is_some() {
            return Err(self.unsupported(call));
        }
        if from.size != to.size {
            return Err(contract(call, format!("{} bytes cannot be moved to {} bytes", from.size, to.size)));
        }
        self.mappings.with_pair(call, from.region, to.region, |mut pair| {
            let source = self.backed_pages(call, from, pair.from())?;
            let target = self.unbacked_pages(call, to, pair.to())?;
            pair.to().open(target.clone()).map_err(|error| refused(call, to.size, error))?;
            if let Err(error) = pair.from().close(source) {
                pair.to().close(target).ok();
                return Err(refused(call, from.size, error));
            }
            if let Some(threads) = self.pretouch {
                // Too late to refuse: what the system does not give now, it gives at the first touch.
                pair.to().populate(target, threads).ok();
            }
            Ok(())
        })
    }

    fn release(&self, region: RegionId) -> Result<(), BackendError> {
        let call = "release";
        self.mappings.end(call, region, |mapping| {
            if !mapping.backed().is_empty() {
                return Err(contract(call, format!("{region} has pages behind it: {:?}", mapping.backed())));
            }
            let size = mapping.size();
            mapping.unmap().map_err(|error| refused(call, size, error))
        })
    }

    fn record(&self, _stream: StreamId) -> Result<EventId, BackendError> {
        Ok(self.events.record())
    }

    fn done(&self, event: EventId) -> Result<bool, BackendError> {
        self.events.done("done", event)
    }

    fn stream_wait(&self, _stream: StreamId, event: EventId) -> Result<(), BackendError> {
        self.events.done("stream_wait", event).map(drop)
    }

    fn host_wait(&self, event: EventId, _timeout: Option<Duration>) -> Result<bool, BackendError> {
        self.events.done("host_wait", event)
    }

    fn forget(&self, _event: EventId) {}

    fn shows_bytes(&self) -> bool {
        true
    }

    fn bytes(&self, span: Span, look: &mut dyn FnMut(&mut [u8])) -> Result<(), BackendError> {
        self.in_pieces("bytes", span, |mapping, range| {
            look(mapping.bytes(range)?);
            Ok(())
        })
    }

    fn zero(&self, _stream: StreamId, span: Span) -> Result<(), BackendError> {
        self.in_pieces("zero", span, Mapping::zero)
    }
    fn budget(&self) -> Result<Option<Budget>, BackendError> {
        match &self.folder {
            Some(folder) => folder.space().map_err(|error| refused("budget", 0, error)),
            None => Ok(limit::budget()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MIB;

    fn span(region: Region, offset: u64, size: u64) -> Span {
        Span { region: region.id, offset, size }
    }

    #[test]
    fn refuses_impossible_configs() {
        for page in [0, 1, 3 * MIB, system_page() / 2, 1 << 63] {
            assert!(Mmap::new(MmapConfig { page, ..Default::default() }).is_err(), "{page}");
        }
        assert!(Mmap::new(MmapConfig { region_max: Some(MIB), ..Default::default() }).is_err());
        let mmap = Mmap::new(MmapConfig { region_max: Some(5 * MIB), ..Default::default() }).unwrap();
        assert_eq!(mmap.capabilities().region_max, 4 * MIB);
        let error = BackendError::TooLarge { call: "reserve", requested: 6 * MIB, max: 4 * MIB };
        assert_eq!(mmap.reserve(6 * MIB), Err(error));
        let mmap = Mmap::new(MmapConfig { region_max: Some(u64::MAX), ..Default::default() }).unwrap();
        assert_eq!(mmap.capabilities().region_max, ADDRESSES);
    }

    #[test]
    fn a_whole_pool_of_addresses_is_cheap() {
        let mmap = Mmap::new(MmapConfig::default()).unwrap();
        let size = mmap.capabilities().region_max;
        assert!(size >= 64 * GIB);
        let region = mmap.reserve(size).unwrap();
        mmap.back(span(region, size - HUGE_PAGE, HUGE_PAGE)).unwrap();
        mmap.zero(StreamId(0), span(region, size - 1, 1)).unwrap();
        mmap.unback(span(region, size - HUGE_PAGE, HUGE_PAGE)).unwrap();
        mmap.release(region.id).unwrap();
    }

    #[test]
    fn huge_pages_are_claimed_only_when_the_system_has_them() {
        let never = Mmap::new(MmapConfig { huge_pages: HugePages::Never, ..Default::default() }).unwrap();
        assert_eq!(never.huge_pages_in_use(), None);
        let asked = Mmap::new(MmapConfig::default()).unwrap();
        let region = asked.reserve(HUGE_PAGE).unwrap();
        assert_eq!(region.base % HUGE_PAGE, 0);
        assert!(asked.huge_pages_in_use().is_some_and(|claimed| !claimed || huge_pages_enabled()));
    }

    /// Bytes of this process that are resident now.
    #[cfg(target_os = "linux")]
    fn resident() -> u64 {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * system_page()
    }

    /// How far the resident size rises over `work`, in MiB. Other tests run beside this one, so the best of some tries
    /// decides whether it is within 16 MiB of what is expected.
    #[cfg(target_os = "linux")]
    fn assert_rise(expected: i64, mut work: impl FnMut(), mut undo: impl FnMut()) {
        let mut seen = Vec::new();
        for _ in 0..8 {
            let before = resident() as i64;
            work();
            seen.push((resident() as i64 - before) / MIB as i64);
            if seen.last().is_some_and(|rise| (rise - expected).abs() <= 16) {
                return;
            }
            undo();
        }
        panic!("resident memory rose by {seen:?} MiB, not by {expected}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn resident_memory_follows_back_and_unback() {
        for pretouch in [None, NonZeroUsize::new(1), NonZeroUsize::new(3)] {
            let mmap = Mmap::new(MmapConfig { pretouch, ..Default::default() }).unwrap();
            let region = mmap.reserve(256 * MIB).unwrap();
            let (low, high) = (span(region, 0, 64 * MIB), span(region, 128 * MIB, 64 * MIB));
            let touch = |span| mmap.zero(StreamId(0), span).unwrap();
            let back = || mmap.back(low).unwrap();
            let unback = || mmap.unback(low).unwrap();
            assert_rise(if pretouch.is_some() { 64 } else { 0 }, back, unback);
            touch(low);
            assert_rise(
                0,
                || {
                    mmap.remap(low, high).unwrap();
                    touch(high);
                },
                || {
                    mmap.remap(high, low).unwrap();
                    touch(low);
                },
            );
            let fill = || {
                mmap.back(span(region, 128 * MIB, 64 * MIB)).unwrap();
                touch(high);
            };
            assert_rise(-64, || mmap.unback(high).unwrap(), fill);
            mmap.release(region.id).unwrap();
        }
    }
}
