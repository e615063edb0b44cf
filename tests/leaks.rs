//! What is still live, of an allocator and of a stretch of code.

mod common;

use std::panic::{self, AssertUnwindSafe};

use common::golden;
use larder::backend::sim::SimConfig;
use larder::ids::PoolId;
use larder::policy::PoolConfig;
use larder::snapshot::{LeakGroup, Leaks, Site};
use larder::units::{KIB, MIB};
use larder::{Allocator, Config, Simulated, assert_no_leaks};

fn simulated() -> Allocator<Simulated> {
    Allocator::simulated(SimConfig::default(), Config::default()).unwrap().0
}

#[test]
fn what_is_live_is_grouped_by_pool_label_and_place_with_most_bytes_first() {
    let allocator = simulated();
    let other = allocator.pool("other", PoolConfig::default()).unwrap();
    assert!(allocator.leaks().is_empty());
    let many: Vec<_> = (0..10).map(|_| allocator.request(1000).tag("many").alloc().unwrap()).collect();
    let large = allocator.alloc(MIB + 1).unwrap();
    let there: Vec<_> = (0..2).map(|_| other.request(1000).tag("many").alloc().unwrap()).collect();
    let line = line!() - 1;
    drop(allocator.alloc(MIB).unwrap());

    let leaks = allocator.leaks();
    let rows: Vec<_> = leaks.groups.iter().map(|g| (g.pool.0, &*g.tag, g.blocks, g.bytes, g.requested)).collect();
    let expected = [(0, "", 1, MIB + 512, MIB + 1), (0, "many", 10, 10 * KIB, 10_000), (1, "many", 2, 2 * KIB, 2_000)];
    assert_eq!(rows, expected);
    assert_eq!(leaks.groups[2].site, Some(Site { file: file!(), line }));
    let stats = allocator.total_stats();
    assert_eq!((leaks.blocks(), leaks.bytes()), (stats.blocks.current, stats.live.current));
    assert_eq!(leaks.of_pool(other.pool_id()).bytes(), other.stats().live.current);

    let message = |allocator: &Allocator<Simulated>| {
        let panicked = panic::catch_unwind(AssertUnwindSafe(|| assert_no_leaks!(allocator))).unwrap_err();
        panicked.downcast_ref::<String>().unwrap().clone()
    };
    assert_eq!(message(&allocator), leaks.to_string());
    drop((many, large, there));
    assert_no_leaks!(allocator);
}

#[test]
fn the_macro_panics_where_it_stands() {
    let allocator = simulated();
    let _kept = allocator.alloc(1).unwrap();
    let (send, place) = std::sync::mpsc::channel();
    let worker = std::thread::spawn(move || {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let at = info.location().map(|at| (at.file().to_string(), at.line()));
            let _ = send.send(at);
            default(info);
        }));
        assert_no_leaks!(allocator)
    });
    let line = line!() - 2;
    worker.join().unwrap_err();
    // Another test may panic on purpose meanwhile.
    assert!(place.try_iter().any(|at| at == Some((file!().to_string(), line))));
    let _ = panic::take_hook();
}

#[test]
fn a_scope_tells_what_it_left_behind() {
    let allocator = simulated();
    let other = allocator.pool("other", PoolConfig::default()).unwrap();
    let from_before = allocator.alloc(512).unwrap();
    let goes = allocator.alloc(512).unwrap();
    let scope = allocator.scope("step");
    // The same place in memory again, and still another block.
    let place = goes.address();
    drop(goes);
    let again = allocator.request(512).tag("again").alloc().unwrap();
    assert_eq!(again.address(), place);
    let there = other.alloc(1024).unwrap();
    drop(allocator.alloc(4096).unwrap());
    let left = scope.finish();
    assert_eq!((left.blocks(), left.bytes()), (2, 1536));
    assert_eq!(left.of_pool(PoolId(0)).groups[0].tag, "again");
    assert_eq!(left.of_pool(other.pool_id()).bytes(), 1024);

    let clean = allocator.scope("clean");
    drop((again, there, from_before));
    assert_eq!(clean.finish().to_string(), "`clean` left nothing behind\n");
    drop(allocator.scope("never finished"));
}

#[test]
fn the_text_reads_well() {
    let group = |at: u64| LeakGroup {
        pool: PoolId((at % 3) as u16),
        site: (at != 5).then_some(Site { file: "src/model.rs", line: 40 + at as u32 }),
        tag: if at.is_multiple_of(2) { "kv-cache".into() } else { String::new() },
        blocks: at + 1,
        bytes: (40 - at) * MIB,
        requested: (40 - at) * MIB - 100,
    };
    let leaks = Leaks { scope: String::new(), groups: (0..35).map(group).collect() };
    let scoped = Leaks { scope: "request 7".into(), groups: vec![group(4)] };
    golden("leaks.txt", &format!("{leaks}\n{scoped}\n{}", Leaks::default()));
}
