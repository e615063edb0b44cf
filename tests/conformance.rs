//! One suite for every backend: what the contract of `larder::backend` promises, and that its misuse is an error.
//!
//! Knows of a backend only its capabilities, and how to make one. A row in [`rows`] is a backend.
#![allow(unsafe_code)]

#[cfg(all(target_os = "linux", feature = "cuda"))]
#[path = "conformance/cuda.rs"]
mod cuda;
#[cfg(all(target_os = "linux", feature = "cuda"))]
#[path = "common/driver.rs"]
mod driver;
#[path = "conformance/misuse.rs"]
mod misuse;
#[path = "conformance/pages.rs"]
mod pages;
#[path = "conformance/segments.rs"]
mod segments;
#[cfg(feature = "wgpu")]
#[path = "conformance/wgpu.rs"]
mod wgpu;
#[cfg(not(feature = "wgpu"))]
mod wgpu {
    pub fn rows() -> Vec<super::Row> {
        Vec::new()
    }
}

use std::collections::BTreeSet;
#[cfg(unix)]
use std::num::NonZeroUsize;
use std::time::Duration;

use larder::backend::host::System;
#[cfg(unix)]
use larder::backend::host::{HugePages, Mmap, MmapConfig};
use larder::backend::sim::{Lag, Sim, SimConfig, SimMemory};
use larder::backend::{Backend, BackendError, Capabilities, Region, Span};
use larder::ids::{EventId, RegionId, StreamId};
use larder::units::MIB;

/// Reads and writes memory that a backend gave.
trait Touch: Sync {
    /// Sets `size` bytes from `offset` of a region on.
    fn write(&self, backend: &dyn Backend, region: Region, offset: u64, size: u64, byte: u8);
    /// The byte at `offset` of a region; `None` where nobody can see it.
    fn read(&self, backend: &dyn Backend, region: Region, offset: u64) -> Option<u8>;
}

/// Memory of the host.
struct Cpu;

impl Touch for Cpu {
    fn write(&self, _backend: &dyn Backend, region: Region, offset: u64, size: u64, byte: u8) {
        let pointer = std::ptr::with_exposed_provenance_mut::<u8>((region.base + offset) as usize);
        // SAFETY: the suite writes only to spans that are backed and that it has to itself.
        unsafe { pointer.write_bytes(byte, size as usize) }
    }

    fn read(&self, _backend: &dyn Backend, region: Region, offset: u64) -> Option<u8> {
        let pointer = std::ptr::with_exposed_provenance::<u8>((region.base + offset) as usize);
        // SAFETY: the suite reads only from spans that are backed, and memory of hosts is initialised.
        Some(unsafe { pointer.read_volatile() })
    }
}

/// Memory that the CPU cannot see.
struct Nobody;

impl Touch for Nobody {
    fn write(&self, _backend: &dyn Backend, _region: Region, _offset: u64, _size: u64, _byte: u8) {}

    fn read(&self, _backend: &dyn Backend, _region: Region, _offset: u64) -> Option<u8> {
        None
    }
}

/// What fresh memory of a row holds.
#[derive(Clone, Copy, PartialEq)]
enum Fresh {
    Zero,
}

struct Row {
    name: &'static str,
    make: fn() -> Box<dyn Backend>,
    touch: &'static dyn Touch,
    fresh: Option<Fresh>,
}

fn rows() -> Vec<Row> {
    #[allow(unused_mut)]
    let mut rows = rows_everywhere();
    #[cfg(all(target_os = "linux", feature = "cuda"))]
    rows.extend(cuda::rows());
    rows
}

fn rows_everywhere() -> Vec<Row> {
    let zero = Some(Fresh::Zero);
    let mut rows = vec![
        Row { name: "system", make: || Box::new(System::new()), touch: &Cpu, fresh: zero },
        #[cfg(unix)]
        Row { name: "mmap", make: || mmap(MmapConfig::default()), touch: &Cpu, fresh: zero },
        #[cfg(unix)]
        Row {
            name: "mmap, small pages",
            make: || mmap(MmapConfig { page: MIB / 16, huge_pages: HugePages::Never, ..Default::default() }),
            touch: &Cpu,
            fresh: zero,
        },
        #[cfg(unix)]
        Row {
            name: "mmap, large pages, touched by three threads",
            make: || {
                let pretouch = NonZeroUsize::new(3);
                mmap(MmapConfig { page: 4 * MIB, region_max: Some(512 * MIB), pretouch, ..Default::default() })
            },
            touch: &Cpu,
            fresh: zero,
        },
        #[cfg(target_os = "linux")]
        Row { name: "file", make: || in_files(MmapConfig::default()), touch: &Cpu, fresh: zero },
        #[cfg(target_os = "linux")]
        Row {
            name: "file, small pages, touched at once",
            make: || in_files(MmapConfig { page: MIB / 16, pretouch: NonZeroUsize::new(2), ..Default::default() }),
            touch: &Cpu,
            fresh: zero,
        },
        simulated("sim, alias", || sim(SimMemory::Alias)),
        simulated("sim, remap", || sim(SimMemory::Remap)),
        simulated("sim, pages only", || sim(SimMemory::Paged)),
        simulated("sim, segments", || sim(SimMemory::Segments)),
    ];
    rows.extend(wgpu::rows());
    rows
}

/// A device: nobody reads or writes its bytes from here.
fn simulated(name: &'static str, make: fn() -> Box<dyn Backend>) -> Row {
    Row { name, make, touch: &Nobody, fresh: None }
}

fn sim(memory: SimMemory) -> Box<dyn Backend> {
    Box::new(Sim::new(SimConfig { memory, lag: Lag::Events(3), ..SimConfig::default() }))
}

#[cfg(unix)]
fn mmap(config: MmapConfig) -> Box<dyn Backend> {
    Box::new(Mmap::new(config).unwrap())
}

#[cfg(target_os = "linux")]
fn in_files(config: MmapConfig) -> Box<dyn Backend> {
    Box::new(Mmap::in_folder(&std::env::temp_dir(), config).unwrap())
}

/// A backend under test, with what is known about it.
struct Subject<'a> {
    backend: &'a dyn Backend,
    touch: &'a dyn Touch,
    fresh: Option<Fresh>,
    able: Capabilities,
}

impl<'a> Subject<'a> {
    fn new(backend: &'a dyn Backend, row: &'a Row) -> Self {
        Subject { backend, touch: row.touch, fresh: row.fresh, able: backend.capabilities() }
    }

    /// Bytes of a page; only asked where there are pages.
    fn page(&self) -> u64 {
        self.able.page.unwrap()
    }

    fn pages(&self, region: Region, first: u64, count: u64) -> Span {
        Span { region: region.id, offset: first * self.page(), size: count * self.page() }
    }

    fn reserve_pages(&self, count: u64) -> Region {
        let region = self.backend.reserve(count * self.page()).unwrap();
        assert_eq!((region.base % self.able.base_align, region.size), (0, count * self.page()));
        region
    }

    /// Waits until all work so far is complete, as the contract asks before memory goes away.
    fn settle(&self) {
        let event = self.backend.record(StreamId(0)).unwrap();
        assert!(self.backend.host_wait(event, None).unwrap());
        assert!(self.backend.done(event).unwrap());
        self.backend.forget(event);
    }

    fn zero(&self, region: Region, offset: u64, size: u64) {
        self.backend.zero(StreamId(0), Span { region: region.id, offset, size }).unwrap();
        self.settle();
    }

    fn expect(&self, region: Region, offset: u64, byte: u8) {
        if let Some(found) = self.touch.read(self.backend, region, offset) {
            assert_eq!(found, byte, "at {offset} of {}", region.id);
        }
    }

    /// Fresh memory can be read; where it must be zero, it is.
    fn expect_fresh(&self, region: Region, offset: u64) {
        let found = self.touch.read(self.backend, region, offset);
        assert!(self.fresh.is_none() || found.is_none_or(|byte| byte == 0), "{found:?} at {offset} of {}", region.id);
    }

    fn write(&self, region: Region, offset: u64, size: u64, byte: u8) {
        self.touch.write(self.backend, region, offset, size, byte);
    }

    fn fill(&self, span: Span, region: Region, byte: u8) {
        self.write(region, span.offset, span.size, byte);
        self.expect(region, span.offset, byte);
        self.expect(region, span.offset + span.size - 1, byte);
    }
}

/// Everything that a well-behaved caller may rely on.
fn conform(subject: &Subject<'_>) {
    capabilities_agree(subject);
    budget_is_sane(subject);
    events_and_streams(subject);
    if subject.able.page.is_some() {
        pages::conform(subject);
    } else {
        segments::conform(subject);
    }
    too_large_then_normal(subject);
    budget_is_sane(subject);
}

fn capabilities_agree(subject: &Subject<'_>) {
    let able = subject.able;
    assert_eq!(able, subject.backend.capabilities(), "constant");
    assert!(!able.name.is_empty());
    assert!(able.base_align.is_power_of_two() && able.quantum.is_power_of_two() && able.quantum <= able.base_align);
    assert!(able.remap || !able.alias, "alias is a kind of remap");
    assert!(able.page.is_some() || !able.remap, "only pages are remapped");
    if let Some(page) = able.page {
        assert!(page.is_power_of_two() && page >= able.quantum && page <= able.region_max);
        assert_eq!(able.region_max % page, 0);
    }
    let (span, nothing) = (Span { region: RegionId(0), offset: 0, size: 4096 }, "Unsupported expected");
    let unsupported = |result: Result<(), BackendError>| {
        assert!(matches!(result, Err(BackendError::Unsupported { backend, .. }) if backend == able.name), "{nothing}");
    };
    if able.page.is_some() {
        unsupported(subject.backend.grow_segment(4096).map(drop));
    } else {
        unsupported(subject.backend.reserve(4096).map(drop));
        unsupported(subject.backend.back(span));
        unsupported(subject.backend.unback(span));
    }
    if !able.remap {
        unsupported(subject.backend.remap(span, span));
    }
}

fn budget_is_sane(subject: &Subject<'_>) {
    if let Some(budget) = subject.backend.budget().unwrap() {
        assert!(budget.free <= budget.total && budget.total > 0, "{budget:?}");
    }
}

fn events_and_streams(subject: &Subject<'_>) {
    let backend = subject.backend;
    let events: Vec<EventId> = (0..100).map(|_| backend.record(StreamId(0)).unwrap()).collect();
    assert_eq!(events.iter().collect::<BTreeSet<_>>().len(), events.len(), "each has its own name");
    assert!(backend.host_wait(events[99], Some(Duration::from_secs(10))).unwrap());
    for event in events {
        assert!(backend.done(event).unwrap(), "the last is done, so all before it are");
        backend.forget(event);
    }
    if !subject.able.streams {
        assert!(matches!(backend.open_stream(), Err(BackendError::Unsupported { .. })));
        return;
    }
    if matches!(backend.open_stream(), Err(BackendError::Unsupported { .. })) {
        return; // one queue
    }
    let (one, two) = (backend.open_stream().unwrap(), backend.open_stream().unwrap());
    assert!(one != two && one != StreamId(0) && two != StreamId(0));
    let event = backend.record(one).unwrap();
    backend.stream_wait(two, event).unwrap();
    let after = backend.record(two).unwrap();
    assert!(backend.host_wait(after, None).unwrap() && backend.done(event).unwrap());
    backend.forget(event);
    backend.forget(after);
    backend.close_stream(one);
    backend.close_stream(two);
}

fn check_zero(subject: &Subject<'_>, region: Region) {
    let size = region.size;
    for (offset, length) in [(0, size), (4, 4), (size / 2 - 8, 16), (size - 4, 4), (256, size / 2)] {
        subject.write(region, 0, size, 0xA5);
        subject.zero(region, offset, length);
        for inside in [offset, offset + length / 2, offset + length - 1] {
            subject.expect(region, inside, 0);
        }
        for outside in [offset.checked_sub(1), Some(offset + length).filter(|end| *end < size)].into_iter().flatten() {
            subject.expect(region, outside, 0xA5);
        }
    }
}

/// Where a backend shows bytes, they are those of the memory, all of the span in order, and may be changed.
fn check_bytes(subject: &Subject<'_>, region: Region) {
    let size = region.size;
    if !subject.backend.shows_bytes() {
        let refused = subject.backend.bytes(Span { region: region.id, offset: 0, size }, &mut |_| {});
        assert!(matches!(refused, Err(BackendError::Unsupported { .. })), "{refused:?}");
        return;
    }
    for (offset, length) in [(0, size), (3, 1), (size / 2 - 7, 15), (size - 1, 1)] {
        let around = offset.saturating_sub(1)..(offset + length + 1).min(size);
        subject.write(region, around.start, around.end - around.start, 0x11);
        subject.write(region, offset + length - 1, 1, 0x22);
        let (mut shown, mut last) = (0, 0);
        let mut change = |part: &mut [u8]| {
            shown += part.len() as u64;
            last = part[part.len() - 1];
            part.fill(0x33);
        };
        subject.backend.bytes(Span { region: region.id, offset, size: length }, &mut change).unwrap();
        assert_eq!((shown, last), (length, 0x22));
        for (at, byte) in [(offset, 0x33), (offset + length - 1, 0x33)] {
            subject.expect(region, at, byte);
        }
        for outside in [offset.checked_sub(1), Some(offset + length).filter(|end| *end < size)].into_iter().flatten() {
            subject.expect(region, outside, 0x11);
        }
    }
}

fn grow(subject: &Subject<'_>, size: u64) -> Region {
    let region = subject.backend.grow_segment(size).unwrap();
    assert!(region.size >= size && region.base.is_multiple_of(subject.able.base_align), "{region:?}");
    assert_eq!(region.size % subject.able.quantum, 0, "{region:?}");
    subject.expect_fresh(region, 0);
    subject.expect_fresh(region, region.size - 1);
    region
}

fn too_large_then_normal(subject: &Subject<'_>) {
    let paged = subject.able.page.is_some();
    let ask = |size| if paged { subject.backend.reserve(size) } else { subject.backend.grow_segment(size) };
    for size in [1 << 50, u64::MAX, u64::MAX - subject.able.base_align + 1, 1 << 63, 0] {
        let error = ask(size).expect_err("nobody has this");
        assert!(!matches!(error, BackendError::Unsupported { .. } | BackendError::Lost { .. }), "{size}: {error}");
        let region = ask(subject.able.page.unwrap_or(4096)).unwrap();
        subject.backend.release(region.id).unwrap();
    }
}

/// Numbers that look random (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }
}

#[test]
fn every_backend_keeps_the_contract() {
    for row in rows() {
        println!("{}", row.name);
        let backend = (row.make)();
        conform(&Subject::new(&*backend, &row));
        drop(backend);
        #[cfg(all(target_os = "linux", feature = "cuda"))]
        assert_eq!(driver::shared_violations(), Vec::<String>::new(), "{}", row.name);
    }
}

#[test]
fn every_backend_refuses_misuse() {
    for row in rows() {
        println!("{}", row.name);
        let backend = (row.make)();
        misuse::refused(&Subject::new(&*backend, &row));
    }
}

#[test]
fn a_backend_that_is_dropped_takes_its_regions_along() {
    for row in rows() {
        let backend = (row.make)();
        let subject = Subject::new(&*backend, &row);
        if subject.able.page.is_some() {
            let region = subject.reserve_pages(2);
            backend.back(subject.pages(region, 1, 1)).unwrap();
        } else {
            grow(&subject, MIB);
        }
    }
}
