//! Rows 5, 8, 18 to 20: memory that is refused, reported, used up, given back; and requests that nobody can serve.

use larder::backend::BackendError;
use larder::backend::sim::{Call, Lag, Sim, SimConfig, SimMemory};
use larder::ids::PoolId;
use larder::policy::ReportLevel;
use larder::snapshot::BlockState;
use larder::units::{GIB, MIB};
use larder::{AllocError, Allocator, Block, Config, PoolConfig, Simulated};

use crate::{Ground, grounds, simulated};

const PAGE: u64 = 2 * MIB;

fn refused(call: Call) -> BackendError {
    BackendError::OutOfMemory { call: call.name(), requested: 1 }
}

/// Calls of the device, whatever came of them.
fn calls(sim: &Sim) -> u64 {
    let counters = sim.counters();
    Call::ALL.iter().map(|call| counters.succeeded(*call) + counters.failed(*call)).sum()
}

/// Blocks made and dropped so that memory grows, is cut up, moves and goes back. Answers what stayed, and the errors.
fn workload(allocator: &Allocator<Simulated>) -> (Vec<Block<Simulated>>, Vec<AllocError>) {
    let (mut held, mut errors) = (Vec::new(), Vec::new());
    let make = |bytes, held: &mut Vec<_>, errors: &mut Vec<_>| match allocator.alloc(bytes) {
        Ok(block) => held.push(block),
        Err(error) => errors.push(error),
    };
    (0..12).for_each(|_| make(PAGE, &mut held, &mut errors));
    let mut at = 0;
    held.retain(|_| {
        at += 1;
        at % 2 == 0
    });
    make(5 * MIB, &mut held, &mut errors);
    make(300, &mut held, &mut errors);
    errors.extend(allocator.trim(0).err());
    make(3 * PAGE, &mut held, &mut errors);
    (held, errors)
}

#[test]
fn t05_a_device_that_refuses() {
    for memory in [SimMemory::Alias, SimMemory::Paged, SimMemory::Segments] {
        let make = || {
            let device = SimConfig { memory, capacity: 16 * PAGE, ..SimConfig::default() };
            Allocator::simulated(device, Config::default()).unwrap()
        };
        // A device that never gives anything.
        let (allocator, sim) = make();
        let before = allocator.stats();
        Call::ALL[..5].iter().for_each(|call| sim.fail_from(*call, 1, refused(*call)));
        for bytes in [1, MIB, GIB] {
            let calls_before = calls(&sim);
            let error = allocator.alloc(bytes).unwrap_err();
            assert!(error.report().is_some_and(|report| report.request.requested == bytes), "{error}");
            // Backing off halves what is asked for: from 16 TiB of addresses to a page of 2 MiB in 24 calls, on two rungs at most.
            let calls = calls(&sim) - calls_before;
            assert!(calls <= 64, "{memory:?}: {calls} calls for {bytes} bytes");
        }
        let after = allocator.stats();
        assert_eq!((after.live, after.reserved, after.failures), (before.live, before.reserved, 3), "{memory:?}");
        // Refused no more, it serves.
        sim.fail_clear();
        drop(allocator.alloc(MIB).unwrap());
        // One refusal, at each call in turn until the workload makes no more.
        for call in &Call::ALL[..6] {
            for k in 1.. {
                let (allocator, sim) = make();
                sim.fail_at(*call, k, refused(*call));
                let (held, errors) = workload(&allocator);
                let struck = sim.counters().failed(*call);
                assert!(errors.len() <= 1, "{memory:?} {call:?} {k}: {errors:?}");
                allocator.check().unwrap();
                let stats = allocator.stats();
                assert_eq!(stats.live.current, held.iter().map(Block::size).sum::<u64>());
                assert_eq!(stats.reserved.current, sim.counters().used, "{memory:?} {call:?} {k}");
                drop(held);
                sim.fail_clear();
                allocator.purge().unwrap();
                assert_eq!((sim.counters().used, sim.violations()), (0, vec![]), "{memory:?} {call:?} {k}");
                if struck == 0 {
                    break;
                }
            }
        }
    }
}

#[test]
fn t08_what_the_report_says() {
    let full = ReportLevel::Full { at_most_per_second: 1000 };
    for ground in grounds(&Config { report: full, ..Config::default().limit(64 * MIB) }) {
        let tagged = |bytes, tag| ground.allocator.request(bytes).tag(tag).alloc().unwrap();
        let _weights = [tagged(20 * MIB, "weights"), tagged(10 * MIB, "weights")];
        let _cache = tagged(16 * MIB, "kv-cache");
        let error = ground.allocator.request(40 * MIB).tag("batch").alloc().unwrap_err();
        let report = error.report().unwrap();
        // Text: the request, where it was made, who holds what.
        let text = error.to_string();
        for word in
            ["40 MiB for batch", file!(), "30 MiB in      2 blocks  weights", "16 MiB in      1 blocks  kv-cache"]
        {
            assert!(text.contains(word), "{}: no {word} in\n{text}", ground.name);
        }
        // Sums: holders, blocks and figures agree.
        let stats = ground.allocator.stats();
        assert_eq!(report.holders.iter().map(|holder| holder.live).sum::<u64>(), stats.live.current);
        assert_eq!(report.holders.iter().map(|holder| holder.blocks).sum::<u64>(), stats.blocks.current);
        let pool = &report.snapshot.as_ref().expect("a full report").pools[0];
        let sum = |states: &[BlockState]| -> u64 {
            let blocks = pool.regions.iter().flat_map(|region| &region.blocks);
            blocks.filter(|block| states.contains(&block.state)).map(|block| block.size).sum()
        };
        assert_eq!(sum(&[BlockState::Live]), stats.live.current);
        assert_eq!(sum(&[BlockState::Live, BlockState::Free, BlockState::Pending]), stats.reserved.current);
        assert_eq!((report.request.requested, report.stats.live.current), (40 * MIB, 46 * MIB));
        #[cfg(feature = "serde")]
        {
            let json = serde_json::to_value(report).unwrap();
            assert_eq!(json["version"], larder::snapshot::VERSION);
            assert_eq!(json["request"]["requested"], 40 * MIB);
            assert_eq!(json["request"]["tag"], "batch");
            assert_eq!(json["holders"][0]["tag"], "weights");
            assert_eq!(json["holders"][0]["live"], 30 * MIB);
            let trail = json["trail"].as_array().unwrap();
            assert!(trail.iter().all(|step| step["rung"].is_string() && !step["outcome"].is_null()));
            let blocks = json["snapshot"]["pools"][0]["regions"].as_array().unwrap().iter();
            let live: u64 = blocks
                .flat_map(|region| region["blocks"].as_array().unwrap())
                .map(|block| if block["state"] == "live" { block["size"].as_u64().unwrap() } else { 0 })
                .sum();
            assert_eq!(live, json["stats"]["live"]["current"].as_u64().unwrap());
        }
    }
}

#[test]
fn t18_all_of_it_in_one_block() {
    let most = 64 * MIB;
    for ground in grounds(&Config::default().limit(most)) {
        for _ in 0..3 {
            let pieces: Vec<_> = (0..32).map(|_| ground.allocator.alloc(PAGE).unwrap()).collect();
            assert_eq!(ground.reserved(), most, "{}", ground.name);
            assert!(ground.allocator.alloc(1).is_err());
            drop(pieces);
            let all = ground.allocator.alloc(most).unwrap_or_else(|error| panic!("{}: {error}", ground.name));
            assert_eq!((all.size(), ground.reserved()), (most, most));
        }
        assert_eq!(ground.allocator.stats().reserved.peak, most);
        ground.end();
    }
}

#[test]
fn t19_trim_to_the_byte() {
    for ground in grounds(&Config::default()) {
        let allocator = &ground.allocator;
        // All free: what is left is the floor, where that is whole pages or segments.
        let blocks: Vec<_> = (0..16).map(|_| allocator.alloc(PAGE).unwrap()).collect();
        assert_eq!(ground.reserved(), 16 * PAGE, "{}", ground.name);
        drop(blocks);
        for keep in [16, 9, 9, 1, 0] {
            let before = ground.reserved();
            assert_eq!(allocator.trim(keep * PAGE).unwrap(), before - keep * PAGE);
            assert_eq!(ground.reserved(), keep * PAGE, "{}", ground.name);
        }
        // A part free: its pages go back, though neighbours live.
        let mut blocks: Vec<_> = (0..8).map(|_| allocator.alloc(PAGE).unwrap()).collect();
        [6, 4, 1].into_iter().for_each(|at| drop(blocks.remove(at)));
        assert_eq!(allocator.trim(0).unwrap(), 3 * PAGE, "{}", ground.name);
        assert_eq!(ground.reserved(), 5 * PAGE);
        drop(blocks);
        allocator.purge().unwrap();
        within_a_block(&ground);
        ground.end();
    }
}

/// A hole between two small live blocks: the pages that lie in it whole go back; of a segment nothing does.
fn within_a_block(ground: &Ground) {
    let _walls = {
        let field = ground.allocator.alloc(10 * PAGE).unwrap();
        drop(field);
        // They share the first page, or segment, with the hole behind them.
        let first = ground.allocator.alloc(512).unwrap();
        let hole = ground.allocator.alloc(PAGE - 1024).unwrap();
        let second = ground.allocator.alloc(512).unwrap();
        drop(hole);
        [first, second]
    };
    assert_eq!(ground.reserved(), 10 * PAGE, "{}", ground.name);
    let left = if ground.is_paged() { PAGE } else { 10 * PAGE };
    assert_eq!(ground.allocator.trim(0).unwrap(), 10 * PAGE - left, "{}", ground.name);
    assert_eq!(ground.reserved(), left, "{}", ground.name);
}

#[test]
fn t20_typed_answers() {
    for ground in simulated(&Config::default().limit(64 * MIB), Lag::Manual) {
        // A stream that is deleted while its blocks live, and while its work is unfinished.
        let sim = ground.sim.clone().unwrap();
        let stream = ground.allocator.stream().unwrap();
        let block = ground.allocator.alloc_on(&stream, 40 * MIB).unwrap();
        sim.work(stream.id(), 1, block.span().unwrap()).unwrap();
        drop(stream);
        drop(block);
        let next = ground.allocator.alloc(40 * MIB).unwrap();
        sim.work(larder::ids::StreamId(0), 2, next.span().unwrap()).unwrap();
        drop(next);
        // Two devices: neither takes the other's streams, each has its own limit.
        let other = simulated(&Config::default().limit(8 * MIB), Lag::Manual).remove(0);
        let foreign = other.allocator.stream().unwrap();
        assert_eq!(ground.allocator.alloc_on(&foreign, 1).unwrap_err(), AllocError::ForeignStream);
        assert!(other.allocator.alloc(40 * MIB).is_err() && ground.allocator.alloc(40 * MIB).is_ok());
        sim.complete_all();
        ground.end();
    }
    for ground in grounds(&Config::default().limit(3 * PAGE + 1)) {
        let allocator = &ground.allocator;
        // Nothing asked for, nothing held.
        let none = allocator.request(0).align(4096).alloc().unwrap();
        assert_eq!((none.len(), none.size(), none.address() % 4096, ground.reserved()), (0, 0, 0, 0));
        // 1 PiB: never, or not here.
        match allocator.alloc(1 << 50).unwrap_err() {
            AllocError::TooLarge { requested, max } => assert!(requested == 1 << 50 && max < 1 << 50),
            AllocError::OutOfMemory(report) => assert_eq!(report.request.requested, 1 << 50),
            error => panic!("{}: {error}", ground.name),
        }
        assert!(matches!(allocator.alloc(u64::MAX).unwrap_err(), AllocError::TooLarge { .. }));
        assert!(matches!(
            allocator.request(1).align(3).alloc().unwrap_err(),
            AllocError::BadAlignment { align: 3, .. }
        ));
        let unknown = allocator.request(1).pool(PoolId(7)).alloc().unwrap_err();
        assert_eq!(unknown, AllocError::UnknownPool { pool: PoolId(7), pools: 1 });
        // A limit that is no multiple of anything: whole pages, and never a byte more than it.
        let blocks: Vec<_> = (0..3).map(|_| allocator.alloc(PAGE).unwrap()).collect();
        assert!(allocator.alloc(1).is_err_and(|error| error.report().is_some()));
        assert_eq!(ground.reserved(), 3 * PAGE, "{}", ground.name);
        // Of pools likewise.
        drop(blocks);
        let pool = allocator.pool("odd", PoolConfig { limit: Some(PAGE + 12_345), ..PoolConfig::default() }).unwrap();
        let one = pool.alloc(PAGE).unwrap();
        assert!(pool.alloc(20_000).is_err() && pool.stats().reserved.current <= PAGE + 12_345);
        drop(one);
        ground.end();
    }
    // A maximum below what is to be held first.
    let contradiction = Config { soft_limit: Some(2 * GIB), ..Config::default().limit(GIB) };
    assert!(matches!(Allocator::host(contradiction).unwrap_err(), AllocError::Config(_)));
}
