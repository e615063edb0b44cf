//! Captures as stories over the simulated device: what a stream under capture may ask of the driver, and how long the memory of its
//! graph stays where it is.

use larder::allocator::{AllocError, Allocator, Simulated, Stream};
use larder::backend::sim::{Call, Lag, Sim, SimConfig, SimMemory, SimStreams};
use larder::backend::{Backend, BackendError};
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

#[test]
fn a_pool_whose_graph_is_gone_serves_the_next_capture() {
    let (allocator, _, one, _) = device(SimMemory::Alias);
    let mut pools = Vec::new();
    for _ in 0..400 {
        let capture = allocator.capture(&one).unwrap();
        drop(allocator.alloc_on(&one, MIB).unwrap());
        let graph = capture.end();
        pools.push(graph.pool_id());
        drop(graph);
        allocator.purge().unwrap();
    }
    pools.dedup();
    assert!(pools.len() < 4, "{pools:?}");
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
