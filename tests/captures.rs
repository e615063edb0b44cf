//! Captures as stories over the simulated device: what a stream under capture may ask of the driver, and how long the memory of its
//! graph stays where it is.

use larder::allocator::{AllocError, Allocator, GraphMemory, Simulated, Stream};
use larder::backend::sim::{Call, Lag, Sim, SimConfig, SimMemory, SimStreams};
use larder::backend::{Backend, BackendError, Span};
use larder::snapshot::Rung;
use larder::units::{GIB, KIB, MIB};
use larder::{Config, Stats};

const MEMORIES: [SimMemory; 4] = [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged, SimMemory::Segments];
/// Calls that a stream under capture may cause.
const GROWTH: [Call; 3] = [Call::Reserve, Call::Back, Call::GrowSegment];

fn device(memory: SimMemory) -> (Allocator<Simulated>, Sim, Stream, Stream) {
    let config = SimConfig { memory, lag: Lag::Manual, ..SimConfig::default() };
    let (allocator, sim) = Allocator::simulated(config, Config::default().limit(GIB)).unwrap();
    let (one, two) = (allocator.stream().unwrap(), allocator.stream().unwrap());
    (allocator, sim, one, two)
}

/// Calls besides those of growth.
fn other_calls(sim: &Sim) -> u64 {
    let counters = sim.counters();
    Call::ALL.iter().filter(|call| !GROWTH.contains(call)).map(|call| counters.calls[*call as usize]).sum()
}

fn reserved(stats: Stats) -> u64 {
    stats.reserved.current
}

#[test]
fn a_stream_under_capture_grows_and_calls_for_nothing_else() {
    for memory in MEMORIES {
        let (allocator, sim, one, two) = device(memory);
        // Pending work of another stream, idle memory, and an old address: all that rungs would like to touch.
        let kept: Vec<_> = (0..6).map(|_| allocator.alloc_on(&two, 3 * MIB).unwrap()).collect();
        kept.iter().step_by(2).for_each(|block| block.used_on(&one));
        drop(kept);
        let capture = allocator.capture(&one).unwrap();
        sim.capture(one.id(), true);
        let before = other_calls(&sim);
        let held: Vec<_> = (1..600).map(|n| allocator.alloc_on(&one, n * 4 * KIB).unwrap()).collect();
        drop(held);
        let large = allocator.alloc_on(&one, 100 * MIB).unwrap();
        let error = allocator.alloc_on(&one, GIB).unwrap_err();
        let tried: Vec<Rung> = error.report().unwrap().trail.iter().map(|step| step.rung).collect();
        assert_eq!(tried, [Rung::Reuse, Rung::GrowWithinSlack, Rung::Grow], "{memory:?}");
        assert_eq!(other_calls(&sim), before, "{memory:?}");
        assert!(large.id().is_some());
        assert_eq!(capture.allocator().stats().blocks.current, 1, "it lies in the capture's own pool");
        // Another stream's requests are served meanwhile, from its own pool.
        let other = allocator.alloc_on(&two, MIB).unwrap();
        assert_eq!(capture.allocator().stats().blocks.current, 1);
        sim.capture(one.id(), false);
        let memory_of_graph = capture.end();
        drop((large, other, memory_of_graph));
        sim.complete_all();
        allocator.purge().unwrap();
        assert_eq!(reserved(allocator.total_stats()), 0);
        allocator.check().unwrap();
        assert_eq!(sim.violations(), []);
    }
}

#[test]
fn a_graphs_pages_stay_until_it_is_gone_and_its_work_is_complete() {
    for memory in MEMORIES {
        let (allocator, sim, one, two) = device(memory);
        let capture = allocator.capture(&one).unwrap();
        sim.capture(one.id(), true);
        let block = capture.allocator().alloc_on(&one, 10 * MIB).unwrap();
        let span = block.span().unwrap();
        drop(block);
        sim.capture(one.id(), false);
        let graph = capture.end();
        assert!(graph.reserved() >= 10 * MIB);
        // Launches: nobody else gets these pages, and nothing takes them away.
        for stream in [&one, &two] {
            sim.work(stream.id(), 1, span).unwrap();
            let other = allocator.alloc_on(stream, 64 * MIB).unwrap();
            sim.work(stream.id(), 2, other.span().unwrap()).unwrap();
        }
        assert_eq!(allocator.trim(0).map(|_| graph.reserved() >= 10 * MIB), Ok(true));
        sim.complete_all();
        allocator.purge().unwrap();
        assert!(graph.reserved() >= 10 * MIB, "{memory:?}: the graph may be launched again");
        sim.work(two.id(), 1, span).unwrap();
        let held = graph.reserved();
        drop(graph);
        allocator.trim(0).unwrap();
        assert_eq!(reserved(allocator.total_stats()), held, "{memory:?}: the last launch is under way");
        sim.complete_all();
        allocator.trim(0).unwrap();
        assert_eq!(reserved(allocator.total_stats()), 0, "{memory:?}");
        allocator.check().unwrap();
        assert_eq!(sim.violations(), []);
    }
}

/// A capture of `one` that allocates and drops a block of so many bytes: where that lay, and the graph's memory.
fn captured(allocator: &Allocator<Simulated>, sim: &Sim, one: &Stream, bytes: u64) -> (Span, GraphMemory) {
    let capture = allocator.capture(one).unwrap();
    sim.capture(one.id(), true);
    let span = allocator.alloc_on(one, bytes).unwrap().span().unwrap();
    sim.capture(one.id(), false);
    (span, capture.end())
}

#[test]
fn graphs_that_come_and_go_leave_nothing_behind() {
    for memory in MEMORIES {
        let (allocator, sim, one, _) = device(memory);
        let mut pools = Vec::new();
        for _ in 0..400 {
            let (_, graph) = captured(&allocator, &sim, &one, 20 * MIB);
            pools.push(graph.pool_id());
            drop(graph);
            sim.complete_all();
        }
        pools.sort_unstable();
        pools.dedup();
        assert!(pools.len() < 4, "{memory:?}: {pools:?}");
    }
}

#[test]
fn the_last_owner_leaves_a_graph_that_is_still_running_its_memory() {
    for memory in MEMORIES {
        let (allocator, sim, one, two) = device(memory);
        let (span, graph) = captured(&allocator, &sim, &one, 10 * MIB);
        allocator.trim(0).unwrap();
        sim.complete_all();
        allocator.trim(0).unwrap();
        sim.work(one.id(), 1, span).unwrap();
        drop(graph);
        drop((one, two, allocator));
        assert_eq!((sim.violations(), sim.counters().used), (vec![], 0), "{memory:?}");
    }
}

#[test]
fn a_graphs_stream_stays_as_long_as_its_memory() {
    for memory in MEMORIES {
        let (allocator, sim, one, two) = device(memory);
        let (span, graph) = captured(&allocator, &sim, &one, 10 * MIB);
        let number = one.id();
        drop(one);
        for _ in 0..3 {
            allocator.trim(0).unwrap();
            sim.complete_all();
        }
        assert_ne!(allocator.stream().unwrap().id(), number);
        sim.work(number, 1, span).unwrap();
        drop(graph);
        allocator.trim(0).unwrap();
        assert!(reserved(allocator.total_stats()) > 0, "{memory:?}: a launch is under way");
        drop(allocator.alloc_on(&two, 900 * MIB));
        allocator.purge().unwrap();
        assert_eq!((sim.violations(), reserved(allocator.total_stats())), (vec![], 0), "{memory:?}");
    }
}

#[test]
fn memory_of_graphs_that_are_gone_serves_a_capture() {
    for memory in MEMORIES {
        let (allocator, sim, one, two) = device(memory);
        let graphs = [&one, &two].map(|stream| captured(&allocator, &sim, stream, 400 * MIB).1);
        drop(graphs);
        for _ in 0..2 {
            // Found complete, and not returned.
            allocator.trim(u64::MAX).unwrap();
            sim.complete_all();
        }
        // A segment of the capture's own pool is not given back while it needs another.
        let bytes = if memory == SimMemory::Segments { 600 * MIB } else { 700 * MIB };
        let (_, graph) = captured(&allocator, &sim, &one, bytes);
        assert!(graph.reserved() >= bytes, "{memory:?}");
        drop(graph);
        assert_eq!(sim.violations(), []);
    }
}

#[test]
fn a_graphs_memory_serves_nobody_else() {
    let (allocator, sim, one, two) = device(SimMemory::Alias);
    let capture = allocator.capture(&one).unwrap();
    let (inside, pool) = (capture.allocator().clone(), capture.allocator().pool_id());
    sim.capture(one.id(), true);
    let refused = Err(AllocError::GraphPool { pool });
    assert_eq!(inside.alloc_on(&two, MIB).map(drop), refused, "another stream's memory is not the graph's");
    drop(inside.alloc_on(&one, 10 * MIB).unwrap());
    sim.capture(one.id(), false);
    let graph = capture.end();
    assert_eq!(inside.alloc_on(&one, 10 * MIB).map(drop), refused);
    assert_eq!(allocator.request(MIB).pool(graph.pool_id()).on(&two).alloc().map(drop), refused);
    assert!(allocator.alloc_on(&one, MIB).is_ok());
}

#[test]
fn streams_that_join_a_capture_are_in_its_pool_or_refused() {
    let (allocator, sim, one, two) = device(SimMemory::Alias);
    let three = allocator.stream().unwrap();
    let mut capture = allocator.capture(&one).unwrap();
    capture.join(&two).unwrap();
    let again = capture.join(&two);
    assert_eq!(again, Err(AllocError::Backend(BackendError::Recording { stream: two.id() })));
    [&one, &two, &three].into_iter().for_each(|stream| sim.capture(stream.id(), true));
    let (a, b) = (allocator.alloc_on(&one, MIB).unwrap(), allocator.alloc_on(&two, MIB).unwrap());
    assert_eq!(capture.allocator().stats().blocks.current, 2);
    let refused = allocator.alloc_on(&three, MIB).map(drop);
    assert_eq!(refused, Err(AllocError::Backend(BackendError::Recording { stream: three.id() })));
    drop((a, b));
    [&one, &two, &three].into_iter().for_each(|stream| sim.capture(stream.id(), false));
    let graph = capture.end();
    assert_eq!(graph.streams().iter().map(Stream::id).collect::<Vec<_>>(), [one.id(), two.id()]);
    assert!(allocator.alloc_on(&three, MIB).is_ok() && allocator.alloc_on(&two, MIB).is_ok());
    assert_eq!(sim.violations(), []);
}

/// What one pool saw of a capture that nobody announced is not believed of the next stream of that number.
#[test]
fn a_capture_that_was_seen_ends_with_its_stream() {
    let (allocator, sim, one, two) = device(SimMemory::Alias);
    let other = allocator.pool("other", Default::default()).unwrap();
    let held = [&one, &two].map(|stream| allocator.alloc_on(stream, MIB).unwrap());
    drop(held); // no event covers the end of either
    two.follows(&one);
    sim.capture(one.id(), true);
    allocator.trim(0).unwrap();
    sim.complete_all();
    allocator.trim(0).unwrap();
    sim.capture(one.id(), false);
    drop(one);
    for n in 1..6 {
        drop(other.alloc_on(&two, n * 4 * MIB).unwrap());
        sim.complete_all();
    }
    for n in 1..6 {
        drop(allocator.alloc_on(&two, n * 4 * MIB).unwrap());
        sim.complete_all();
    }
    assert_eq!(sim.violations(), []);
}

#[test]
fn an_unannounced_capture_is_met_with_growth() {
    let (allocator, sim, one, two) = device(SimMemory::Alias);
    drop(allocator.alloc_on(&one, 8 * MIB).unwrap());
    sim.capture(one.id(), true);
    let before = other_calls(&sim);
    let block = allocator.alloc_on(&one, 20 * MIB).unwrap();
    assert_eq!(other_calls(&sim), before);
    drop(block);
    // What was freed on a captured stream is not waited for by others, who grow or go elsewhere.
    let other = allocator.alloc_on(&two, 60 * MIB).unwrap();
    sim.work(two.id(), 7, other.span().unwrap()).unwrap();
    sim.capture(one.id(), false);
    drop(other);
    sim.complete_all();
    allocator.purge().unwrap();
    assert_eq!(reserved(allocator.total_stats()), 0);
    assert_eq!(sim.violations(), []);
}

#[test]
fn captures_that_make_no_sense_are_errors() {
    let (allocator, _, one, _) = device(SimMemory::Alias);
    let (other, ..) = device(SimMemory::Alias);
    assert!(matches!(other.capture(&one), Err(AllocError::ForeignStream)));
    let capture = allocator.capture(&one).unwrap();
    let again = allocator.capture(&one).map(drop);
    assert_eq!(again, Err(AllocError::Backend(BackendError::Recording { stream: one.id() })));
    drop(capture);
    drop(allocator.capture(&one).unwrap());
    let single = SimConfig { streams: SimStreams::One, ..SimConfig::default() };
    let (single, _) = Allocator::simulated(single, Config::default()).unwrap();
    let stream = single.default_stream();
    let refused = single.capture(&stream).map(drop);
    assert!(matches!(refused, Err(AllocError::Backend(BackendError::Unsupported { call: "capture", .. }))));
}

#[test]
fn an_event_is_not_recorded_behind_a_captured_stream() {
    let (_, sim, one, two) = device(SimMemory::Alias);
    sim.capture(one.id(), true);
    assert_eq!(sim.record(one.id()), Err(BackendError::Recording { stream: one.id() }));
    let event = sim.record(two.id()).unwrap();
    assert_eq!(sim.stream_wait(one.id(), event), Err(BackendError::Recording { stream: one.id() }));
    assert_eq!(sim.violations(), []);
}
