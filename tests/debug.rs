//! Debug mode: each misuse is found with the right block named, and clean programs are never blamed.
//!
//! The misuses are those that pointers allow: slices end where their block does, and a dropped block has none. A second drop, and a
//! drop of what is no block, do not compile.
#![allow(unsafe_code)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::Rng;
use common::world::World;
use larder::backend::sim::{Lag, SimConfig, SimMemory};
use larder::policy::{ConfigError, DebugConfig, OnLimit, PoolConfig};
use larder::snapshot::{Action, Misuse, Rung, Site, Wrong};
use larder::units::{KIB, MIB};
use larder::{AllocError, Allocator, Block, Config, Host, OomReport, assert_no_leaks, assert_no_misuse};

const EVERYTHING: DebugConfig = DebugConfig { poison: true, guard: 64, quarantine: MIB };
const QUARANTINE: DebugConfig = DebugConfig { poison: false, guard: 0, quarantine: 4 * MIB };

fn config(debug: DebugConfig) -> Config {
    Config::default().limit(64 * MIB).debug(debug)
}

/// Every kind of host memory.
fn hosts(debug: DebugConfig) -> Vec<Allocator<Host>> {
    let mut hosts = vec![Allocator::host_system(config(debug)).unwrap(), Allocator::host(config(debug)).unwrap()];
    if cfg!(target_os = "linux") {
        hosts.push(Allocator::host_file(&std::env::temp_dir(), config(debug)).unwrap());
    }
    hosts
}

/// Writes a byte where the backend has memory, whoever owns it.
fn poke(address: u64, byte: u8) {
    // SAFETY: the tests name addresses within memory that an allocator holds and that nobody has a reference to.
    unsafe { std::ptr::with_exposed_provenance_mut::<u8>(address as usize).write(byte) }
}

fn peek(address: u64) -> u8 {
    // SAFETY: as in `poke`; host memory is initialised.
    unsafe { std::ptr::with_exposed_provenance::<u8>(address as usize).read() }
}

fn only(misuses: &[Misuse]) -> &Misuse {
    let [misuse] = misuses else { panic!("one misuse, and not {misuses:?}") };
    misuse
}

#[test]
fn one_byte_behind_a_block_of_any_size_is_found_at_its_drop() {
    for host in hosts(EVERYTHING) {
        for requested in [1, 8, 63, 64, 65, 100, 512, 1000, 4096, 4097, 100_000, 2 * MIB + 1] {
            for behind in [0, 1, 63] {
                let before = host.alloc(requested).unwrap();
                let block = host.request(requested).tag("victim").alloc().unwrap();
                let line = line!() - 1;
                let after = host.alloc(requested).unwrap();
                let (id, address) = (block.id(), block.address());
                poke(address + requested + behind, 7);
                drop((before, block, after));
                let found = host.misuses();
                let misuse = only(&found);
                assert_eq!((misuse.wrong, Some(misuse.block), misuse.offset), (Wrong::Overrun, id, requested + behind));
                assert_eq!((misuse.address, misuse.requested, misuse.found), (address, requested, 7));
                assert_eq!((misuse.tag.as_str(), misuse.site), ("victim", Some(Site { file: file!(), line })));
                assert_no_misuse!(host);
            }
        }
    }
}

#[test]
fn an_overrun_is_found_on_demand_while_the_block_lives_and_is_told_once() {
    for host in hosts(EVERYTHING) {
        let block = host.alloc(100).unwrap();
        (0..50).for_each(|at| poke(block.address() + 100 + at, 1));
        let found = host.misuses();
        assert_eq!((only(&found).block, only(&found).offset), (block.id().unwrap(), 100));
        drop(block);
        assert_no_misuse!(host);
        let text = found[0].to_string();
        assert!(text.contains("was written behind its end: byte 100 is 0x01 and should be 0xfd"), "{text}");
    }
}

#[test]
fn finds_that_nobody_asks_for_are_counted() {
    let host = Allocator::host_system(config(EVERYTHING)).unwrap();
    let own_memory = host.own_memory();
    let blocks: Vec<_> = (0..300).map(|_| host.alloc(100).unwrap()).collect();
    blocks.iter().for_each(|block| poke(block.address() + 100, 1));
    drop(blocks);
    assert!(
        host.own_memory() > own_memory + 256 * size_of::<Misuse>() as u64,
        "what debug mode keeps is the allocator's"
    );
    let found = host.misuses();
    let (last, others) = found.split_last().unwrap();
    assert_eq!((found.len(), last.more), (256, 44));
    assert!(others.iter().all(|misuse| misuse.more == 0));
    assert!(last.to_string().ends_with("should be 0xfd; 44 more finds were not kept"), "{last}");
    assert_no_misuse!(host);
}

#[test]
fn one_byte_before_a_block_is_found_as_an_overrun_of_the_block_before_it() {
    for host in hosts(EVERYTHING) {
        let blocks: Vec<_> = (0..3).map(|_| host.alloc(1000).unwrap()).collect();
        let mut by_address: Vec<&Block<Host>> = blocks.iter().collect();
        by_address.sort_by_key(|block| block.address());
        let (first, second) = (by_address[0], by_address[1]);
        poke(second.address() - 1, 9);
        let found = host.misuses();
        assert_eq!(only(&found).block, first.id().unwrap());
        assert_eq!(only(&found).offset, second.address() - 1 - first.address());
    }
}

#[test]
fn a_write_after_the_drop_is_found_on_demand_and_when_the_quarantine_is_over() {
    for host in hosts(EVERYTHING) {
        for (size, at) in [(1, 0), (100, 99), (100_000, 50_000), (600_000, 0)] {
            for on_demand in [true, false] {
                let block = host.request(size).tag("gone").alloc().unwrap();
                let (id, address) = (block.id(), block.address());
                drop(block);
                poke(address + at, 5);
                if !on_demand {
                    // What is dropped later drives it out.
                    (0..4).for_each(|_| drop(host.alloc(MIB / 2).unwrap()));
                }
                let found = host.misuses();
                let misuse = only(&found);
                assert_eq!((misuse.wrong, Some(misuse.block)), (Wrong::WriteAfterDrop, id));
                assert_eq!((misuse.offset, misuse.found, misuse.tag.as_str()), (at, 5, "gone"));
            }
        }
    }
}

#[test]
fn a_dropped_block_is_not_used_by_two_while_it_is_in_quarantine() {
    for host in hosts(EVERYTHING) {
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..10 {
            let block = host.alloc(50 * KIB).unwrap();
            assert!(seen.insert(block.address()), "round {round}");
        }
        let kept = hosts(DebugConfig { quarantine: 0, ..EVERYTHING });
        let address = |host: &Allocator<Host>| host.alloc(50 * KIB).unwrap().address();
        assert!(
            kept.iter().all(|host| address(host) == address(host)),
            "without quarantine the same memory comes back"
        );
    }
}

#[test]
fn the_oldest_leaves_the_quarantine_first() {
    let debug = DebugConfig { quarantine: MIB, ..QUARANTINE };
    let config = Config::default().history(100).debug(debug);
    let (allocator, _sim) = Allocator::simulated(SimConfig::default(), config).unwrap();
    let blocks: Vec<_> = (0..4).map(|_| allocator.alloc(MIB / 2).unwrap()).collect();
    let ids: Vec<_> = blocks.iter().map(|block| block.id()).collect();
    blocks.into_iter().for_each(drop);
    let events = allocator.snapshot().history.unwrap().events;
    let freed = events.iter().filter(|event| event.action == Action::Free).map(|event| event.block);
    assert!(freed.eq(ids[..2].iter().copied()), "two are kept");
}

#[test]
fn what_is_read_where_nothing_was_written_is_a_pattern_and_zeros_are_zeros() {
    for host in hosts(EVERYTHING) {
        let block = host.alloc(1000).unwrap();
        let address = block.address();
        let new = block.as_bytes()[0];
        assert!(new != 0 && block.as_bytes().iter().all(|byte| *byte == new));
        drop(block);
        assert!((0..1000).all(|at| peek(address + at) == peek(address) && peek(address) != new));
        let zeroed = host.alloc_zeroed(1000).unwrap();
        assert!(zeroed.as_bytes().iter().all(|byte| *byte == 0));
        drop((zeroed, host.alloc(0).unwrap()));
        assert_no_misuse!(host);
    }
}

#[test]
fn clean_programs_on_hosts_are_not_blamed() {
    for (seed, debug) in [
        EVERYTHING,
        DebugConfig { quarantine: 0, ..EVERYTHING },
        DebugConfig { guard: 0, ..EVERYTHING },
        DebugConfig { poison: false, guard: 1, ..EVERYTHING },
        DebugConfig { guard: 10_000, quarantine: u64::MAX, ..EVERYTHING },
    ]
    .into_iter()
    .enumerate()
    {
        for host in hosts(debug) {
            let pools = [host.clone(), host.pool("other", PoolConfig::default()).unwrap()];
            let mut random = Rng::new(seed as u64);
            let mut held: Vec<Block<Host>> = Vec::new();
            for step in 0..1_500u64 {
                if random.below(20) > 8 && held.len() < 40 {
                    let request = pools[random.below(2) as usize].request(random.skewed(MIB));
                    let request = request.align(1 << random.below(13));
                    let request = if random.one_in(4) { request.zeroed() } else { request };
                    let mut block = request.alloc().unwrap();
                    block.as_mut_bytes().fill(step as u8);
                    held.push(block);
                } else if !held.is_empty() {
                    let block = held.swap_remove(random.below(held.len() as u64) as usize);
                    let bytes = block.as_bytes();
                    assert_eq!(bytes[1..], bytes[..bytes.len() - 1], "its bytes are its own");
                }
                if step % 500 == 499 {
                    assert_no_misuse!(host);
                    host.check().unwrap();
                    host.trim(0).unwrap();
                }
            }
            held.clear();
            assert_no_leaks!(host);
            assert_no_misuse!(host);
            host.purge().unwrap();
            assert_no_misuse!(host);
            let stats = host.total_stats();
            assert_eq!((stats.live.current, stats.reserved.current), (0, 0));
        }
    }
}

#[test]
fn clean_programs_with_streams_keep_every_rule_of_the_device() {
    for (seed, memory) in [SimMemory::Alias, SimMemory::Remap, SimMemory::Segments].into_iter().enumerate() {
        let device =
            SimConfig { memory, page: 64 * KIB, capacity: 16 * MIB, lag: Lag::Events(7), ..SimConfig::default() };
        let config = Config { segment_min: 64 * KIB, ..Config::default().debug(QUARANTINE).history(100) };
        let mut world = World::new(device, config, 3);
        let mut random = Rng::new(seed as u64);
        let mut refused = 0;
        for step in 0..1_500 {
            match random.below(10) {
                0..4 => refused += u64::from(world.alloc(random.below(3) as usize, random.skewed(2 * MIB)).is_err()),
                4 if !world.held.is_empty() => {
                    let at = random.below(world.held.len() as u64) as usize;
                    world.use_on(at, random.below(3) as usize);
                }
                _ if !world.held.is_empty() => world.drop_at(random.below(world.held.len() as u64) as usize),
                _ => {}
            }
            world.sim.advance(1);
            if step % 100 == 0 {
                world.check_device();
            }
        }
        assert!(refused < 500, "{refused}");
        world.held.clear();
        assert_no_leaks!(world.allocator);
        assert_no_misuse!(world.allocator);
        assert!(world.allocator.stats().live.current > 0, "the quarantine is live");
        world.sim.complete_all();
        world.allocator.purge().unwrap();
        world.check_device();
        assert_eq!(world.allocator.total_stats().reserved.current, 0);
    }
}

fn report<T: std::fmt::Debug>(result: Result<T, AllocError>) -> Box<OomReport> {
    match result.unwrap_err() {
        AllocError::OutOfMemory(report) => report,
        other => panic!("{other}"),
    }
}

#[test]
fn the_quarantine_ends_before_memory_runs_out() {
    for on_limit in [OnLimit::Climb, OnLimit::FailFast] {
        let config = Config { on_limit, ..Config::default().limit(8 * MIB).history(100) };
        let (allocator, _sim) = Allocator::simulated(
            SimConfig::default(),
            config.debug(DebugConfig { quarantine: u64::MAX, ..QUARANTINE }),
        )
        .unwrap();
        let kept = allocator.alloc(2 * MIB).unwrap();
        drop(allocator.alloc(3 * MIB).unwrap());
        drop(allocator.alloc(3 * MIB).unwrap());
        assert_eq!(allocator.stats().live.current, 8 * MIB, "what is in quarantine is live");
        assert_eq!(allocator.leaks().bytes(), 2 * MIB, "but nobody's");
        let large = allocator.alloc(6 * MIB).unwrap();
        assert_eq!(allocator.stats().live.current, 8 * MIB);
        let frees = allocator.snapshot().history.unwrap().events;
        assert_eq!(frees.iter().filter(|event| event.action == Action::Free).count(), 2);

        drop(large);
        let report = report(allocator.alloc(7 * MIB));
        let step = report.trail.iter().find(|step| step.rung == Rung::Quarantine).expect("a line in the trail");
        assert_eq!(step.outcome.to_string(), "freed 6 MiB");
        drop(kept);
    }
}

#[test]
fn a_block_on_its_way_out_of_the_quarantine_is_no_leak() {
    let debug = DebugConfig { quarantine: u64::MAX, ..QUARANTINE };
    let (allocator, _sim) = Allocator::simulated(SimConfig::default(), Config::default().debug(debug)).unwrap();
    for _ in 0..10 {
        let scope = allocator.scope("round");
        drop((0..1000).map(|_| allocator.alloc(512).unwrap()).collect::<Vec<_>>());
        std::thread::scope(|threads| {
            let purge = threads.spawn(|| allocator.purge().unwrap());
            while !purge.is_finished() {
                assert_no_leaks!(allocator);
            }
        });
        assert!(scope.finish().is_empty());
    }
}

#[test]
fn a_quarantine_goes_with_its_allocator() {
    let (allocator, sim) = Allocator::simulated(SimConfig::default(), Config::default().debug(QUARANTINE)).unwrap();
    drop(allocator.alloc(MIB).unwrap());
    drop(allocator);
    assert_eq!((sim.counters().used, sim.violations()), (0, vec![]));
}

#[test]
fn bytes_are_looked_at_where_the_cpu_sees_them_only() {
    for debug in [DebugConfig { poison: true, ..QUARANTINE }, DebugConfig { guard: 1, ..QUARANTINE }] {
        let refused = Allocator::simulated(SimConfig::default(), Config::default().debug(debug)).err();
        assert!(matches!(refused, Some(AllocError::Config(ConfigError::NotHere { memory: "sim", .. }))), "{refused:?}");
    }
    assert!(Config::default().debug(DebugConfig { guard: MIB + 1, ..EVERYTHING }).validate().is_err());
    let host = Allocator::host(Config::default()).unwrap();
    host.set_config(host.config().debug(EVERYTHING)).unwrap();
    assert_eq!(host.config().debug, None, "it is fixed when the allocator is made");
    assert_eq!(host.alloc(100).unwrap().size(), 128, "without it nothing stands behind a block");
    let guarded = Allocator::host(config(EVERYTHING)).unwrap();
    assert_eq!(guarded.alloc(100).unwrap().size(), 192);
    assert_eq!((guarded.alloc(100).unwrap().len(), guarded.stats().requested.peak), (100, 200));
}

/// Eight mebibytes, all of which debug mode would keep.
fn kept() -> Allocator<Host> {
    let debug = DebugConfig { poison: false, guard: 0, quarantine: 64 * MIB };
    Allocator::host(Config::default().limit(8 * MIB).debug(debug)).unwrap()
}

#[test]
fn what_a_hook_drops_serves_the_request() {
    let host = kept();
    let cache = Arc::new(Mutex::new(Some(host.alloc(6 * MIB).unwrap())));
    let held = cache.clone();
    let _hook = host.on_shortage(move |_| drop(held.lock().unwrap().take()));
    host.alloc(6 * MIB).unwrap();
}

#[test]
fn what_another_thread_drops_serves_a_request_that_waits() {
    let host = kept();
    let block = host.alloc(6 * MIB).unwrap();
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        drop(block);
    });
    host.request(6 * MIB).deadline(Instant::now() + Duration::from_secs(60)).alloc().unwrap();
    other.join().unwrap();
}
