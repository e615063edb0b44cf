//! Stories and laws of the simulated device: its memory and its failures. What they share stands first.

use super::*;

mod completion;
mod contract;
mod model;

const PAGE: u64 = 2 * MIB;
const DEFAULT: StreamId = StreamId(0);

fn sim(memory: SimMemory, lag: Lag) -> Sim {
    Sim::new(SimConfig { memory, lag, ..SimConfig::default() })
}

fn small(memory: SimMemory, pages: u64) -> Sim {
    Sim::new(SimConfig { memory, capacity: pages * PAGE, ..SimConfig::default() })
}

fn pages(region: RegionId, first: u64, count: u64) -> Span {
    Span { region, offset: first * PAGE, size: count * PAGE }
}

fn driver(reason: &str) -> BackendError {
    BackendError::Driver { call: "test", reason: reason.to_string(), code: 7 }
}

/// A region of 64 pages, the first `count` of them backed.
fn backed(sim: &Sim, count: u64) -> RegionId {
    let region = sim.reserve(64 * PAGE).unwrap().id;
    sim.back(pages(region, 0, count)).unwrap();
    region
}

/// That the call was refused as a broken rule of this kind, written down once more, and changed nothing.
#[track_caller]
fn breaks<T: std::fmt::Debug>(
    sim: &Sim,
    kind: ViolationKind,
    call: impl FnOnce() -> Result<T, BackendError>,
) -> String {
    let (before, seen) = (sim.counters(), sim.violations().len());
    let error = call().unwrap_err();
    assert!(matches!(error, BackendError::Contract { .. }), "{error}");
    let violations = sim.violations();
    assert_eq!(violations.len(), seen + 1, "{violations:?}");
    assert_eq!(violations[seen].kind, kind, "{violations:?}");
    let after = sim.counters();
    assert_eq!((before.used, before.streams, before.live_events), (after.used, after.streams, after.live_events));
    sim.check().unwrap();
    violations[seen].text.clone()
}

#[track_caller]
fn clean(sim: &Sim) {
    assert_eq!(sim.violations(), []);
    sim.check().unwrap();
}

#[test]
fn capacity_is_physical_and_refused_as_a_whole() {
    let sim = small(SimMemory::Alias, 4);
    let region = backed(&sim, 3);
    let refused = BackendError::OutOfMemory { call: "back", requested: 2 * PAGE };
    assert_eq!(sim.back(pages(region, 3, 2)), Err(refused.clone()));
    sim.back(pages(region, 3, 1)).unwrap();
    // Another address for the same bytes costs nothing, and they live until the last address goes.
    sim.remap(pages(region, 0, 4), pages(region, 8, 4)).unwrap();
    assert_eq!(sim.counters().used, 4 * PAGE);
    sim.unback(pages(region, 0, 4)).unwrap();
    assert_eq!((sim.counters().used, sim.counters().pages_freed), (4 * PAGE, 0));
    sim.unback(pages(region, 8, 2)).unwrap();
    assert_eq!((sim.counters().used, sim.counters().pages_freed), (2 * PAGE, 2));
    assert_eq!(sim.budget(), Ok(Some(Budget { total: 4 * PAGE, free: 2 * PAGE })));
    sim.set_foreign(PAGE);
    assert_eq!(sim.budget(), Ok(Some(Budget { total: 4 * PAGE, free: PAGE })));
    assert_eq!(sim.back(pages(region, 0, 2)), Err(refused));
    sim.set_foreign(0);
    sim.back(pages(region, 0, 2)).unwrap();
    let counters = sim.counters();
    assert_eq!((counters.peak_used, counters.succeeded(Call::Back), counters.failed(Call::Back)), (4 * PAGE, 3, 2));
    assert_eq!((counters.address_end, counters.peak_address_end), (12 * PAGE, 12 * PAGE));
    sim.unback(pages(region, 10, 2)).unwrap();
    sim.reset_peaks();
    assert_eq!((sim.counters().peak_used, sim.counters().peak_address_end), (2 * PAGE, 2 * PAGE));
    clean(&sim);
}

#[test]
fn remap_without_alias_moves() {
    let sim = small(SimMemory::Remap, 4);
    let (one, other) = (backed(&sim, 4), sim.reserve(4 * PAGE).unwrap().id);
    sim.remap(pages(one, 1, 2), pages(other, 0, 2)).unwrap();
    assert_eq!(sim.counters().used, 4 * PAGE);
    breaks(&sim, ViolationKind::Unbacked, || sim.unback(pages(one, 1, 1)));
    sim.remap(pages(one, 3, 1), pages(one, 2, 1)).unwrap();
    sim.unback(pages(other, 0, 2)).unwrap();
    sim.back(pages(one, 4, 2)).unwrap();
    assert_eq!((sim.counters().pages_moved, sim.counters().bytes_moved), (3, 3 * PAGE));
    sim.check().unwrap();
}

#[test]
fn each_kind_of_memory_says_what_it_cannot() {
    let span = pages(RegionId(0), 0, 1);
    let refused = |call| Err(BackendError::Unsupported { call, backend: "sim" });
    let segments = small(SimMemory::Segments, 2);
    assert_eq!(segments.capabilities().page, None);
    assert_eq!(segments.reserve(PAGE), refused("reserve").map(|()| unreachable!()));
    assert_eq!(segments.back(span), refused("back"));
    assert_eq!(segments.unback(span), refused("unback"));
    assert_eq!(segments.remap(span, span), refused("remap"));
    let max = segments.capabilities().region_max;
    let large = BackendError::TooLarge { call: "grow_segment", requested: max + 1, max };
    assert_eq!(segments.grow_segment(max + 1), Err(large));
    assert!(segments.grow_segment(3 * PAGE).unwrap_err().is_out_of_memory());
    let paged = small(SimMemory::Paged, 2);
    assert_eq!((paged.capabilities().remap, paged.capabilities().alias), (false, false));
    assert_eq!(paged.remap(span, span), refused("remap"));
    assert!(matches!(paged.grow_segment(1), Err(BackendError::Unsupported { .. })));
    assert!(matches!(paged.reserve(u64::MAX), Err(BackendError::TooLarge { .. })));
    let plain = Sim::new(SimConfig { streams: SimStreams::None, lag: Lag::Never, ..SimConfig::default() });
    assert!(matches!(plain.open_stream(), Err(BackendError::Unsupported { .. })));
    assert!(matches!(plain.record(DEFAULT), Err(BackendError::Unsupported { .. })));
    let region = backed(&plain, 1);
    plain.work(DEFAULT, 1, pages(region, 0, 1)).unwrap();
    plain.host_touch(2, pages(region, 0, 1)).unwrap();
    for sim in [segments, paged, plain] {
        clean(&sim);
    }
}

#[test]
fn bases_are_aligned_and_apart() {
    let sim = sim(SimMemory::Alias, Lag::Events(0));
    let regions: Vec<Region> = [PAGE, 3 * PAGE, 16 * TIB, 5 * PAGE].map(|size| sim.reserve(size).unwrap()).to_vec();
    for pair in regions.windows(2) {
        assert!(pair[1].base > pair[0].base + pair[0].size);
        assert_eq!(pair[1].base % sim.capabilities().base_align, 0);
    }
    assert_eq!(regions[0].size, PAGE);
}

/// One call of a kind, which succeeds when those of the kinds before it did; `None` where the memory has no such call.
fn one_call(sim: &Sim, call: Call, event: EventId) -> Option<Result<(), BackendError>> {
    let segments = sim.capabilities().page.is_none();
    let region = RegionId(0);
    Some(match call {
        Call::Reserve if !segments => sim.reserve(64 * PAGE).map(|_| ()),
        Call::Back if !segments => sim.back(pages(region, 8, 2)),
        Call::Unback if !segments => sim.unback(pages(region, 8, 1)),
        Call::Remap if !segments => sim.remap(pages(region, 9, 1), pages(region, 12, 1)),
        Call::GrowSegment if segments => sim.grow_segment(PAGE).map(|_| ()),
        Call::Release => sim.release(RegionId(1)),
        Call::OpenStream => sim.open_stream().map(|_| ()),
        Call::Record => sim.record(DEFAULT).map(|_| ()),
        Call::Done => sim.done(event).map(|_| ()),
        Call::StreamWait => sim.stream_wait(DEFAULT, event),
        Call::HostWait => sim.host_wait(event, None).map(|_| ()),
        Call::Zero => sim.zero(DEFAULT, pages(region, 0, 1)),
        Call::Budget => sim.budget().map(|_| ()),
        _ => return None,
    })
}

fn two_regions(memory: SimMemory) -> Sim {
    let sim = sim(memory, Lag::Events(0));
    for _ in 0..2 {
        match memory {
            SimMemory::Segments => sim.grow_segment(64 * PAGE).unwrap(),
            _ => sim.reserve(64 * PAGE).unwrap(),
        };
    }
    if memory != SimMemory::Segments {
        sim.back(pages(RegionId(0), 0, 2)).unwrap();
    }
    sim
}

#[test]
fn each_kind_of_call_can_be_made_to_fail_and_then_changes_nothing() {
    for memory in [SimMemory::Alias, SimMemory::Segments] {
        let sim = two_regions(memory);
        let event = sim.record(DEFAULT).unwrap();
        let mut kinds = 0;
        for call in Call::ALL {
            sim.fail_at(call, 1, driver("planned"));
            let mut before = sim.counters();
            let Some(result) = one_call(&sim, call, event) else { continue };
            assert_eq!(result, Err(driver("planned")), "{call:?}");
            before.failures[call as usize] += 1;
            assert_eq!(before, sim.counters(), "{call:?}");
            sim.check().unwrap();
            assert_eq!(one_call(&sim, call, event), Some(Ok(())), "{call:?}");
            kinds += 1;
        }
        assert_eq!(kinds, if memory == SimMemory::Segments { 9 } else { 12 });
        clean(&sim);
    }
}

#[test]
fn the_kth_call_fails_and_all_from_the_kth() {
    let sim = sim(SimMemory::Alias, Lag::Events(0));
    let region = backed(&sim, 1);
    sim.fail_at(Call::Back, 3, driver("third"));
    let backs: Vec<bool> = (1..6).map(|page| sim.back(pages(region, page, 1)).is_ok()).collect();
    assert_eq!(backs, [true, true, false, true, true]);
    assert_eq!(sim.counters().used, 5 * PAGE);
    sim.fail_from(Call::Back, 2, driver("from the second"));
    let backs: Vec<bool> = (6..10).map(|page| sim.back(pages(region, page, 1)).is_ok()).collect();
    assert_eq!(backs, [true, false, false, false]);
    sim.fail_clear();
    sim.back(pages(region, 9, 1)).unwrap();
    clean(&sim);
}

#[test]
fn a_lost_device_stays_lost() {
    let sim = two_regions(SimMemory::Alias);
    let (event, stream) = (sim.record(DEFAULT).unwrap(), sim.open_stream().unwrap());
    let lost = BackendError::Lost { reason: "fell off the bus".to_string() };
    sim.fail_at(Call::Done, 1, lost.clone());
    assert_eq!(sim.done(event), Err(lost.clone()));
    sim.lose("again");
    assert_eq!(sim.host_wait(event, None), Err(lost.clone()));
    assert_eq!(sim.record(DEFAULT), Err(lost.clone()));
    assert_eq!(sim.work(DEFAULT, 1, pages(RegionId(0), 0, 1)), Err(lost.clone()));
    assert_eq!(sim.budget(), Err(lost));
    sim.forget(event);
    sim.forget(event);
    sim.close_stream(stream);
    clean(&sim);
}
