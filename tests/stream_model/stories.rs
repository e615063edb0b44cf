//! Stories: one rule each, with completion in the test's hand.

use larder::Config;
use larder::backend::sim::{Call, Lag, SimConfig, SimMemory};

use crate::world::{Random, World};

const PAGE: u64 = 64 << 10;

fn device(memory: SimMemory, pages: u64, lag: Lag) -> SimConfig {
    SimConfig { memory, capacity: pages * PAGE, page: PAGE, lag, region_max: 1024 * PAGE, ..SimConfig::default() }
}

fn config() -> Config {
    Config { slack: 1.0, page: Some(PAGE), segment_min: PAGE, ..Config::default() }
}

fn world(memory: SimMemory, pages: u64, lanes: u64) -> World {
    World::new(device(memory, pages, Lag::Manual), config(), lanes)
}

#[test]
fn two_readers_are_both_waited_for() {
    for memory in [SimMemory::Alias, SimMemory::Segments] {
        let mut world = world(memory, 4, 4);
        let mut data = world.used(0, 4 * PAGE);
        world.share(&mut data, 1);
        world.share(&mut data, 2);
        world.work_whole(&data);
        drop(data);
        let before = world.calls(Call::StreamWait);
        let next = world.used(3, 4 * PAGE);
        assert_eq!(world.calls(Call::StreamWait) - before, 3, "its own stream and both readers'");
        assert_eq!(world.allocator.stats().stream_waits, 3);
        assert_eq!(world.allocator.stats().host_waits, 0);
        drop(next);
        world.end(&"two readers");
    }
}

#[test]
fn a_reader_that_is_done_is_not_waited_for() {
    let mut world = world(SimMemory::Alias, 4, 4);
    let mut data = world.used(0, 4 * PAGE);
    world.share(&mut data, 1);
    world.share(&mut data, 2);
    world.work_whole(&data);
    drop(data);
    world.poll();
    world.sim.complete(world.lanes[0].stream.id(), 100);
    world.sim.complete(world.lanes[1].stream.id(), 100);
    world.poll();
    let before = world.calls(Call::StreamWait);
    world.used(3, 4 * PAGE);
    assert_eq!(world.calls(Call::StreamWait) - before, 1, "only lane 2 has work left");
    world.end(&"one reader left");
}

#[test]
fn a_retired_page_is_unmapped_when_its_work_is_complete_and_not_before() {
    let mut world = world(SimMemory::Alias, 4, 1);
    let mut blocks: Vec<_> = (0..4).map(|_| Some(world.used(0, PAGE))).collect();
    (blocks[0], blocks[2]) = (None, None);
    // Two pages that are not neighbours become a stretch at once, in stream order.
    let pair = world.used(0, 2 * PAGE);
    assert_eq!(world.allocator.stats().moved, 2 * PAGE);
    for _ in 0..3 {
        world.poll();
        assert_eq!(world.calls(Call::Unback), 0, "the old addresses are still in use");
    }
    // Done with the four first uses, and with the event behind them.
    world.sim.complete_all();
    drop(pair);
    world.poll();
    world.sim.complete_all();
    world.poll();
    assert_eq!(world.sim.counters().pages_unbacked, 2);
    assert_eq!(world.sim.counters().pages_freed, 0, "the memory itself moved");
    world.sound(&"unmapped");
    drop(blocks);
    world.end(&"retired pages");
}

#[test]
fn without_aliases_pages_move_only_when_their_work_is_complete() {
    // Whether the device has none or the config forbids them.
    for (memory, alias) in [(SimMemory::Remap, true), (SimMemory::Alias, false)] {
        let config = Config { alias, ..config() };
        let mut world = World::new(device(memory, 4, Lag::Manual), config, 1);
        let mut blocks: Vec<_> = (0..4).map(|_| Some(world.used(0, PAGE))).collect();
        (blocks[0], blocks[2]) = (None, None);
        let pair = world.used(0, 2 * PAGE);
        assert_eq!(world.allocator.stats().host_waits, 1, "{memory:?}: nothing else could help");
        drop((pair, blocks));
        world.end(&"moved after completion");
    }
}

#[test]
fn pages_of_an_idle_pool_come_together_without_a_wait() {
    for (memory, lane) in [(SimMemory::Alias, 0), (SimMemory::Alias, 1), (SimMemory::Remap, 0), (SimMemory::Remap, 1)] {
        let config = Config { poll_every: 1, ..config() };
        let mut world = World::new(device(memory, 8, Lag::Manual), config, 2);
        let mut blocks: Vec<_> = [0, 0, 1].into_iter().map(|lane| Some(world.used(lane, PAGE))).collect();
        // Nothing is left between the two pages, each of which is another lane's.
        blocks[1] = None;
        world.poll();
        world.sim.complete_all();
        world.poll();
        assert_eq!(world.allocator.trim(0).unwrap(), PAGE);
        blocks.iter().flatten().for_each(|held| world.work_whole(held));
        drop(blocks);
        let next = world.used(lane, 512);
        // Lane 0 has the lowest page; lane 1 brings its own next to that, if it may move before its work is complete.
        let moved = if memory == SimMemory::Alias { lane as u64 * PAGE } else { 0 };
        assert_eq!(world.allocator.stats().moved, moved, "{memory:?}, lane {lane}");
        assert_eq!(world.calls(Call::StreamWait), 0, "lane {lane} needs nobody else's page");
        drop(next);
        world.end(&"an idle pool");
    }
}

#[test]
fn an_event_recorded_before_the_drop_does_not_cover_it() {
    // The block's own stream, or a further one.
    for further in [false, true] {
        let mut world = world(SimMemory::Alias, 2, 3);
        let mut late = world.used(if further { 0 } else { 1 }, PAGE);
        if further {
            world.share(&mut late, 1);
        }
        drop(world.used(1, PAGE));
        // An event on lane 1 covers the block that was dropped.
        world.poll();
        world.work_whole(&late);
        let stream = world.lanes[1].stream.id();
        let queued = world.sim.queued(stream);
        world.sim.complete(stream, queued - 1);
        world.sim.complete(world.lanes[0].stream.id(), 100);
        drop(late);
        world.poll();
        let before = world.calls(Call::StreamWait);
        world.used(2, 2 * PAGE);
        assert!(world.calls(Call::StreamWait) > before, "work behind the event is unfinished");
        world.end(&"an early event");
    }
}

#[test]
fn use_after_used_on_counts_until_the_drop() {
    let mut world = world(SimMemory::Segments, 2, 3);
    let mut data = world.used(0, PAGE);
    world.share(&mut data, 1);
    // Lane 1 goes on, and all that it did until here is complete and known to be.
    drop(world.used(1, PAGE));
    world.poll();
    world.sim.complete_all();
    world.poll();
    world.work_whole(&data);
    drop(data);
    let before = world.calls(Call::StreamWait);
    let next = [world.used(2, PAGE), world.used(2, PAGE)];
    assert_eq!(world.calls(Call::StreamWait) - before, 2, "both users' work as of the drop");
    drop(next);
    world.end(&"late use");
}

#[test]
fn the_same_stream_needs_no_call_of_the_backend() {
    // Completed work is looked for only where there are several streams, at every so many allocations: here at none.
    for (lanes, poll_every) in [(1, 1), (2, u32::MAX)] {
        for memory in [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged, SimMemory::Segments] {
            let config = Config { poll_every, ..config() };
            let mut world = World::new(device(memory, 64, Lag::Manual), config, lanes);
            for lane in 0..lanes as usize {
                let sizes = [512, 4096, PAGE, 3 * PAGE];
                let warm: Vec<_> = sizes.iter().map(|size| world.used(lane, *size)).collect();
                // A pool in which nothing is live is looked after at once.
                let kept = world.used(lane, 512);
                drop(warm);
                let before = world.sim.counters();
                for round in 0..200 {
                    let blocks: Vec<_> = sizes.iter().map(|size| world.used(lane, *size)).collect();
                    drop(blocks);
                    assert_eq!(world.sim.counters(), before, "{memory:?}, lane {lane}, round {round}");
                }
                drop(kept);
            }
            world.end(&"one stream");
        }
    }
}

#[test]
fn a_program_on_one_stream_has_no_waits_between_streams() {
    for memory in [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged, SimMemory::Segments] {
        for lag in [Lag::Never, Lag::Events(30), Lag::Manual] {
            let mut world = World::new(device(memory, 20, lag), config(), 3);
            let mut random = Random::new(7);
            for _ in 0..600 {
                world.sim.advance(1);
                let bytes = 1 + random.below(3 * PAGE);
                match world.alloc(1, world.pools[0], bytes, 1) {
                    Some(held) => {
                        world.work_whole(&held);
                        world.live.push(held);
                    }
                    None => drop(world.live.swap_remove(random.below(world.live.len() as u64) as usize)),
                }
                if world.live.len() > 12 {
                    drop(world.live.swap_remove(random.below(12) as usize));
                }
            }
            assert_eq!(world.calls(Call::StreamWait), 0, "{memory:?}, {lag:?}");
            assert_eq!(world.allocator.stats().stream_waits, 0);
            world.end(&"one stream, little memory");
        }
    }
}

#[test]
fn one_wait_is_enough_for_all_that_it_covers() {
    let mut world = world(SimMemory::Alias, 8, 2);
    let blocks: Vec<_> = (0..8).map(|_| world.used(0, PAGE)).collect();
    drop(blocks);
    let next: Vec<_> = (0..8).map(|_| world.used(1, PAGE)).collect();
    assert_eq!(world.allocator.stats().stream_waits, 1);
    drop(next);
    world.end(&"one wait");
}

#[test]
fn a_wait_carries_what_the_other_stream_has_seen() {
    let mut world = world(SimMemory::Segments, 2, 3);
    let other = world.used(0, PAGE);
    drop(world.used(0, PAGE));
    // Lane 1 waits for lane 0, lane 2 for lane 1, whose memory it was.
    drop(world.used(1, PAGE));
    assert_eq!(world.allocator.stats().stream_waits, 1);
    let handed = world.used(2, PAGE);
    assert_eq!(world.allocator.stats().stream_waits, 2);
    drop(handed);
    // What lane 0 freed since then is not among it.
    drop(other);
    let both = [world.used(2, PAGE), world.used(2, PAGE)];
    assert_eq!(world.allocator.stats().stream_waits, 3);
    drop(both);
    world.end(&"transitive waits");
}

#[test]
fn a_stream_that_follows_another_takes_its_memory_without_a_wait_and_not_the_other_way_round() {
    let mut world = world(SimMemory::Alias, 2, 2);
    drop(world.used(1, 2 * PAGE));
    world.follow(0, 1);
    let before = world.calls(Call::StreamWait);
    let taken = world.used(0, 2 * PAGE);
    assert_eq!(world.calls(Call::StreamWait), before, "the user had ordered it");
    drop(taken);
    drop(world.used(1, 2 * PAGE));
    assert_eq!(world.calls(Call::StreamWait), before + 1, "lane 1 never followed lane 0");
    // It covers what had been issued when it was said, and nothing since.
    drop(world.used(0, 2 * PAGE));
    assert_eq!(world.calls(Call::StreamWait), before + 2);
    world.end(&"follows");
}

#[test]
fn memory_that_the_cpu_touches_is_given_again_only_when_its_work_is_complete() {
    for memory in [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged, SimMemory::Segments] {
        let device = SimConfig { host_ordered: true, ..device(memory, 2, Lag::Manual) };
        let mut world = World::new(device, config(), 2);
        drop(world.used(0, PAGE));
        let second = world.used(0, PAGE);
        if memory != SimMemory::Segments {
            assert_eq!(world.allocator.stats().host_waits, 0, "{memory:?}: there was room for another");
        }
        let third = world.used(0, PAGE);
        assert_eq!(world.allocator.stats().host_waits, 1, "{memory:?}: the same stream orders nothing for the CPU");
        assert_eq!(world.calls(Call::StreamWait), 0);
        drop((second, third));
        world.end(&"host order");
    }
}

#[test]
fn the_number_of_a_stream_goes_back_when_its_work_is_complete() {
    let mut world = world(SimMemory::Alias, 4, 2);
    let number = world.lanes[1].stream.id();
    let open = || world.sim.counters().streams;
    let held = {
        let lane = &world.lanes[1];
        let block = world.allocator.alloc_on(&lane.stream, PAGE).unwrap();
        world.sim.work(number, 99, block.span().unwrap()).unwrap();
        block
    };
    world.lanes.remove(1);
    let poll = |world: &World| (0..3).for_each(|_| world.poll());
    poll(&world);
    assert_eq!(open(), 2, "a block is still used by it");
    world.sim.complete_all();
    poll(&world);
    assert_eq!(open(), 2, "and may be dropped under its number");
    world.sim.work(number, 99, held.span().unwrap()).unwrap();
    drop(held);
    poll(&world);
    assert_eq!(open(), 2, "work is unfinished");
    let taken = world.allocator.stream().unwrap();
    assert_ne!(taken.id(), number, "so the number is not free");
    world.sim.complete_all();
    poll(&world);
    world.sim.complete_all();
    poll(&world);
    assert_eq!(world.sim.counters().streams, 2);
    world.open_lane();
    assert_eq!(world.lanes[1].stream.id(), number);
    let next = world.used(1, 4 * PAGE);
    world.sound(&"the number again");
    drop((next, taken));
    world.end(&"numbers of streams");
}

#[test]
fn a_new_stream_of_an_old_number_has_seen_only_what_is_complete() {
    let mut world = world(SimMemory::Alias, 2, 3);
    let number = world.lanes[2].stream.id();
    drop(world.used(1, 2 * PAGE));
    // Lane 2 is ordered behind lane 1, and goes at once: the wait itself is not over.
    world.follow(2, 1);
    world.close_lane(2);
    world.poll();
    world.poll();
    world.open_lane();
    assert_ne!(world.lanes[2].stream.id(), number, "what it waits for is unfinished");
    drop(world.used(2, 2 * PAGE));
    world.end(&"an inherited number");
}
