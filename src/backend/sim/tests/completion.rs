//! When work is complete.

use super::*;

#[test]
fn lag_completes_in_order_and_behind_waits() {
    let sim = sim(SimMemory::Alias, Lag::Events(10));
    let (a, b, c) = (DEFAULT, sim.open_stream().unwrap(), sim.open_stream().unwrap());
    let idle = sim.record(c).unwrap();
    sim.advance(5);
    let first = sim.record(a).unwrap();
    sim.stream_wait(b, first).unwrap();
    let second = sim.record(b).unwrap();
    sim.advance(1);
    sim.stream_wait(c, second).unwrap();
    let third = sim.record(c).unwrap();
    let done = || [idle, first, second, third].map(|event| sim.done(event).unwrap());
    assert_eq!(done(), [false; 4]);
    sim.advance(4);
    assert_eq!(done(), [true, false, false, false]);
    sim.advance(5);
    assert_eq!(done(), [true, true, true, false]);
    sim.advance(1);
    assert_eq!(done(), [true; 4]);
    // Waiting by the host completes what the event follows, and no more.
    let fourth = sim.record(a).unwrap();
    sim.stream_wait(b, fourth).unwrap();
    let fifth = sim.record(b).unwrap();
    let sixth = sim.record(a).unwrap();
    assert_eq!(sim.host_wait(fifth, Some(Duration::ZERO)), Ok(false));
    assert_eq!(sim.host_wait(fifth, None), Ok(true));
    assert_eq!([fourth, fifth, sixth].map(|event| sim.done(event).unwrap()), [true, true, false]);
    assert_eq!((sim.now(), sim.counters().waits_forced), (16, 1));
    clean(&sim);
}

#[test]
fn lag_holds_work_behind_a_wait_on_a_later_stream() {
    let sim = sim(SimMemory::Alias, Lag::Events(2));
    let (a, b) = (DEFAULT, sim.open_stream().unwrap());
    let mut last = sim.record(a).unwrap();
    // Two streams hand over to each other a thousand times.
    for index in 0..1000 {
        let stream = if index % 2 == 0 { b } else { a };
        sim.stream_wait(stream, last).unwrap();
        sim.forget(last);
        last = sim.record(stream).unwrap();
    }
    assert_eq!(sim.done(last), Ok(false));
    sim.advance(2);
    assert_eq!(sim.done(last), Ok(true));
    assert_eq!((sim.queued(a), sim.queued(b)), (0, 0));
    clean(&sim);
}

#[test]
fn manual_completion_stops_at_waits() {
    let sim = sim(SimMemory::Alias, Lag::Manual);
    let region = backed(&sim, 2);
    let (a, b) = (DEFAULT, sim.open_stream().unwrap());
    sim.work(a, 1, pages(region, 0, 1)).unwrap();
    let used = sim.record(a).unwrap();
    sim.work(b, 2, pages(region, 1, 1)).unwrap();
    sim.stream_wait(b, used).unwrap();
    sim.work(b, 3, pages(region, 0, 1)).unwrap();
    let end = sim.record(b).unwrap();
    assert_eq!(sim.complete(b, 9), 1, "the work before the wait");
    assert_eq!(sim.complete(a, 1), 1);
    assert_eq!(sim.complete(b, 9), 0, "the work is done and its marker is not");
    assert_eq!(sim.done(used), Ok(false));
    breaks(&sim, ViolationKind::Unfinished, || sim.unback(pages(region, 0, 1)));
    assert_eq!(sim.complete(a, 9), 1);
    assert_eq!((sim.done(used), sim.queued(b)), (Ok(true), 2));
    assert_eq!(sim.complete(b, 1), 1);
    assert_eq!(sim.done(end), Ok(false));
    sim.unback(pages(region, 0, 2)).unwrap();
    assert_eq!(sim.complete(b, 9), 1);
    assert_eq!(sim.done(end), Ok(true));
    sim.check().unwrap();
}

#[test]
fn manual_host_wait_forces_only_what_it_needs() {
    let sim = sim(SimMemory::Alias, Lag::Manual);
    let streams: Vec<StreamId> = (0..4).map(|_| sim.open_stream().unwrap()).collect();
    let events: Vec<EventId> = streams.iter().map(|stream| sim.record(*stream).unwrap()).collect();
    sim.stream_wait(streams[2], events[1]).unwrap();
    let joined = sim.record(streams[2]).unwrap();
    sim.stream_wait(streams[3], joined).unwrap();
    let end = sim.record(streams[3]).unwrap();
    assert_eq!(sim.host_wait(end, Some(Duration::from_millis(1))), Ok(true));
    let done: Vec<bool> = events.iter().map(|event| sim.done(*event).unwrap()).collect();
    assert_eq!(done, [false, true, true, true]);
    clean(&sim);
}
