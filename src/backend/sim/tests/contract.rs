//! Every rule of the backend contract, broken once and seen.

use std::thread;

use super::*;

#[test]
fn rule_1_spans_are_whole_pages_inside_a_living_region() {
    let sim = sim(SimMemory::Alias, Lag::Events(0));
    let region = backed(&sim, 2);
    for (offset, size) in [(0, 0), (1, PAGE), (4 * PAGE, PAGE + 1), (64 * PAGE, PAGE), (u64::MAX - PAGE + 1, PAGE)] {
        breaks(&sim, ViolationKind::Span, || sim.back(Span { region, offset, size }));
        breaks(&sim, ViolationKind::Span, || sim.unback(Span { region, offset, size }));
    }
    breaks(&sim, ViolationKind::Span, || sim.back(pages(RegionId(9), 0, 1)));
    breaks(&sim, ViolationKind::Span, || sim.release(RegionId(9)));
    breaks(&sim, ViolationKind::Span, || sim.remap(pages(region, 0, 2), pages(region, 4, 1)));
    breaks(&sim, ViolationKind::Span, || sim.reserve(0));
    sim.unback(pages(region, 0, 2)).unwrap();
    sim.release(region).unwrap();
    breaks(&sim, ViolationKind::Span, || sim.release(region));
    assert_ne!(sim.reserve(PAGE).unwrap().id, region, "an id is never given twice");
}

#[test]
fn rule_2_pages_are_backed_once() {
    let sim = sim(SimMemory::Alias, Lag::Events(0));
    let region = backed(&sim, 4);
    breaks(&sim, ViolationKind::Backed, || sim.back(pages(region, 3, 4)));
    breaks(&sim, ViolationKind::Unbacked, || sim.unback(pages(region, 3, 2)));
    breaks(&sim, ViolationKind::Unbacked, || sim.remap(pages(region, 3, 2), pages(region, 8, 2)));
    breaks(&sim, ViolationKind::Backed, || sim.remap(pages(region, 0, 2), pages(region, 3, 2)));
    breaks(&sim, ViolationKind::Backed, || sim.release(region));
    breaks(&sim, ViolationKind::Unbacked, || sim.zero(DEFAULT, pages(region, 3, 2)));
    breaks(&sim, ViolationKind::Unbacked, || sim.work(DEFAULT, 1, pages(region, 4, 1)));
    breaks(&sim, ViolationKind::Unbacked, || sim.host_touch(1, pages(region, 4, 1)));
    assert_eq!(sim.counters().used, 4 * PAGE);
}

#[test]
fn rule_3_no_address_goes_away_under_work() {
    for memory in [SimMemory::Alias, SimMemory::Remap] {
        let sim = sim(memory, Lag::Manual);
        let region = backed(&sim, 8);
        let inner = Span { region, offset: PAGE + 512, size: 512 };
        sim.work(DEFAULT, 1, inner).unwrap();
        let text = breaks(&sim, ViolationKind::Unfinished, || sim.unback(pages(region, 0, 4)));
        assert!(text.contains("owner 1") && text.contains("st0") && text.contains("0x200200"), "{text}");
        sim.unback(pages(region, 0, 1)).unwrap();
        if memory == SimMemory::Remap {
            breaks(&sim, ViolationKind::Unfinished, || sim.remap(pages(region, 1, 1), pages(region, 20, 1)));
        } else {
            sim.remap(pages(region, 1, 1), pages(region, 20, 1)).unwrap();
            sim.unback(pages(region, 20, 1)).unwrap();
            breaks(&sim, ViolationKind::Unfinished, || sim.unback(pages(region, 1, 1)));
        }
        sim.zero(DEFAULT, pages(region, 4, 1)).unwrap();
        assert_eq!(sim.complete(DEFAULT, 1), 1);
        sim.unback(pages(region, 1, 3)).unwrap();
        breaks(&sim, ViolationKind::Unfinished, || sim.unback(pages(region, 4, 4)));
        sim.complete_all();
        sim.unback(pages(region, 4, 4)).unwrap();
        sim.release(region).unwrap();
        assert_eq!(sim.counters().used, 0);
        sim.check().unwrap();
    }
    let sim = sim(SimMemory::Segments, Lag::Manual);
    let region = sim.grow_segment(1000).unwrap();
    assert_eq!(region.size, 1024);
    sim.work(DEFAULT, 1, Span { region: region.id, offset: 0, size: 1000 }).unwrap();
    breaks(&sim, ViolationKind::Unfinished, || sim.release(region.id));
    sim.complete_all();
    sim.release(region.id).unwrap();
    assert_eq!(sim.counters().used, 0);
}

#[test]
fn rule_4_reuse_waits_for_an_event_recorded_after_the_use() {
    let sim = sim(SimMemory::Alias, Lag::Never);
    let region = backed(&sim, 4);
    let (a, b) = (sim.open_stream().unwrap(), sim.open_stream().unwrap());
    let early = sim.record(a).unwrap();
    sim.work(a, 1, pages(region, 0, 2)).unwrap();
    let late = sim.record(a).unwrap();
    // The same stream may, the owner itself may, and other bytes are nobody's business.
    sim.work(a, 2, pages(region, 0, 1)).unwrap();
    sim.work(b, 1, pages(region, 1, 1)).unwrap();
    sim.work(b, 3, pages(region, 2, 2)).unwrap();
    clean(&sim);

    sim.stream_wait(b, early).unwrap();
    let part = Span { region, offset: PAGE + 512, size: 512 };
    let text = breaks(&sim, ViolationKind::Order, || sim.work(b, 4, part));
    assert!(text.contains("owner 4") && text.contains("owner 1") && text.contains("st1") && text.contains("0x200200"));
    sim.stream_wait(b, late).unwrap();
    sim.work(b, 4, Span { offset: PAGE + 1024, ..part }).unwrap();
    // That event came before owner 2's use.
    breaks(&sim, ViolationKind::Order, || sim.work(b, 4, Span { region, offset: 1024, size: 512 }));
    let now = sim.record(a).unwrap();
    sim.stream_wait(b, now).unwrap();
    sim.work(b, 4, Span { region, offset: 4096, size: 512 }).unwrap();
    // Order goes on through a third stream, and by completion.
    let c = sim.open_stream().unwrap();
    let then = sim.record(b).unwrap();
    sim.stream_wait(c, then).unwrap();
    sim.work(c, 5, Span { region, offset: 4096, size: 8192 }).unwrap();
    let end = sim.record(c).unwrap();
    assert_eq!(sim.host_wait(end, None), Ok(true));
    sim.work(DEFAULT, 6, pages(region, 0, 4)).unwrap();
    assert_eq!(sim.counters().violations, 2);
    sim.check().unwrap();
}

#[test]
fn rule_4_follows_bytes_to_their_new_address() {
    let sim = sim(SimMemory::Alias, Lag::Manual);
    let region = backed(&sim, 4);
    let other = sim.open_stream().unwrap();
    sim.work(DEFAULT, 1, pages(region, 1, 1)).unwrap();
    sim.remap(pages(region, 0, 4), pages(region, 10, 4)).unwrap();
    sim.work(other, 2, pages(region, 10, 1)).unwrap();
    breaks(&sim, ViolationKind::Order, || sim.work(other, 2, pages(region, 10, 4)));
    sim.work(DEFAULT, 3, pages(region, 12, 2)).unwrap_err();
    sim.complete_all();
    sim.unback(pages(region, 0, 4)).unwrap();
    sim.work(other, 4, pages(region, 10, 4)).unwrap();
    sim.check().unwrap();
}

#[test]
fn rule_4_the_cpu_waits_for_completion() {
    let sim = Sim::new(SimConfig { host_ordered: true, lag: Lag::Events(5), ..SimConfig::default() });
    let region = backed(&sim, 1);
    sim.work(DEFAULT, 1, pages(region, 0, 1)).unwrap();
    sim.host_touch(1, pages(region, 0, 1)).unwrap();
    breaks(&sim, ViolationKind::HostOrder, || sim.host_touch(2, pages(region, 0, 1)));
    // On such memory the same stream is no order between owners.
    breaks(&sim, ViolationKind::Order, || sim.work(DEFAULT, 2, pages(region, 0, 1)));
    sim.advance(5);
    sim.host_touch(3, pages(region, 0, 1)).unwrap();
    sim.work(DEFAULT, 3, pages(region, 0, 1)).unwrap();
}

#[test]
fn rule_5_two_threads_in_one_region() {
    let sim = sim(SimMemory::Alias, Lag::Events(0));
    let (one, other) = (backed(&sim, 1), backed(&sim, 1));
    thread::scope(|scope| {
        // Holds all calls up where they have entered their regions and done nothing.
        let held = sim.shared.state.lock();
        let calls = [pages(one, 2, 1), pages(one, 3, 1), pages(other, 2, 1)];
        let threads = calls.map(|span| {
            let sim = sim.clone();
            scope.spawn(move || sim.back(span))
        });
        while sim.shared.inside.lock().len() < 3 {
            thread::yield_now();
        }
        drop(held);
        let failed = threads.into_iter().filter_map(|thread| thread.join().unwrap().err()).count();
        assert_eq!(failed, 1);
    });
    let kinds: Vec<_> = sim.violations().iter().map(|violation| (violation.kind, violation.kind.rule())).collect();
    assert_eq!(kinds, [(ViolationKind::Concurrent, Some(5))]);
    sim.remap(pages(one, 0, 1), pages(one, 8, 1)).unwrap();
    assert!(sim.shared.inside.lock().is_empty());
}

#[test]
fn others_may_go_on_at_the_start_of_a_call() {
    let sim = sim(SimMemory::Alias, Lag::Events(0));
    let region = backed(&sim, 1);
    let other = sim.clone();
    sim.meanwhile(move |call| {
        if call == Call::Back {
            other.advance(7)
        }
    });
    sim.back(pages(region, 3, 1)).unwrap();
    sim.unback(pages(region, 3, 1)).unwrap();
    assert_eq!(sim.now(), 7);
    // What was planned holds the device that holds it.
    sim.meanwhile(|_| {});
}

#[test]
fn dead_handles_are_seen() {
    let sim = sim(SimMemory::Alias, Lag::Manual);
    let event = sim.record(DEFAULT).unwrap();
    sim.forget(event);
    breaks(&sim, ViolationKind::Event, || sim.done(event));
    breaks(&sim, ViolationKind::Event, || sim.host_wait(event, None));
    breaks(&sim, ViolationKind::Event, || sim.stream_wait(DEFAULT, event));
    let again = sim.record(DEFAULT).unwrap();
    assert_ne!(again, event);
    sim.forget(event);
    assert_eq!(sim.counters().violations, 4, "forgotten twice");

    let stream = sim.open_stream().unwrap();
    sim.record(stream).unwrap();
    sim.close_stream(stream);
    sim.close_stream(DEFAULT);
    assert_eq!(sim.counters().violations, 6, "closed with work, closed the default");
    sim.complete_all();
    sim.close_stream(stream);
    breaks(&sim, ViolationKind::Stream, || sim.record(stream));
    breaks(&sim, ViolationKind::Stream, || sim.stream_wait(stream, again));
    breaks(&sim, ViolationKind::Stream, || sim.work(stream, 1, pages(RegionId(0), 0, 1)));
    assert_eq!(sim.open_stream(), Ok(stream), "its number is given again");
    assert_eq!((sim.counters().streams, sim.counters().live_events), (2, 2));
}
