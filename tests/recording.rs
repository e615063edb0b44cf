//! A live allocator's recording, written as a trace, plays the same program: same peaks, same places.

mod common;

use common::Rng;
use larder::allocator::{Event as Happened, Recording};
use larder::backend::sim::{Lag, SimConfig};
use larder::trace::replay::{Player, ReplayConfig, stage};
use larder::trace::{Reader, Trace, Writer, write_recording};
use larder::{Allocator, Config};

/// A random program on a simulated device, recorded from its beginning to its end.
fn recorded(seed: u64) -> (Recording, larder::Stats) {
    let device = SimConfig { lag: Lag::Events(0), ..SimConfig::default() };
    let (allocator, _sim) = Allocator::simulated(device, Config::default()).unwrap();
    allocator.record(usize::MAX);
    let mut random = Rng::new(seed);
    let streams = [allocator.default_stream(), allocator.stream().unwrap(), allocator.stream().unwrap()];
    let mut held = Vec::new();
    for _ in 0..2_000 {
        match random.below(8) {
            0..4 => {
                let stream = &streams[random.below(3) as usize];
                let request = allocator.request(1 + random.below(1 << 22)).on(stream).align(1 << random.below(14));
                let tag = ["", "weights", "kv cache"][random.below(3) as usize];
                held.push(request.tag(tag).alloc().unwrap());
            }
            4 if !held.is_empty() => {
                let at = random.below(held.len() as u64) as usize;
                let block: &larder::Block<_> = &held[at];
                block.used_on(&streams[random.below(3) as usize]);
            }
            _ if !held.is_empty() => drop(held.swap_remove(random.below(held.len() as u64) as usize)),
            _ => {}
        }
    }
    let stats = allocator.stats();
    (allocator.recorded(), stats)
}

#[test]
fn a_recording_replays_to_the_same_figures() {
    for seed in 0..4 {
        let (recording, stats) = recorded(seed);
        assert_eq!(recording.lost, 0);
        let text = write_recording(&recording, Writer::gzip(Vec::new())).unwrap();
        let trace = Trace::from_reader(Reader::new(text.as_slice())).unwrap();
        assert_eq!(trace.events() as usize, recording.events.len());
        assert_eq!(trace.peak_requested(), stats.requested.peak);

        let (again, sim) = stage(&ReplayConfig { lag: Lag::Events(0), ..ReplayConfig::default() }).unwrap();
        let mut player = Player::new(&trace, &again, sim).unwrap();
        player.play(1, |_| true).unwrap();
        let replayed = again.stats();
        assert_eq!((replayed.requested, replayed.live, replayed.blocks), (stats.requested, stats.live, stats.blocks));
        let by_tag = |tag: &str| {
            again.snapshot().pools[0].tags.iter().find(|held| held.tag == tag).map_or(0, |held| held.blocks)
        };
        assert!(by_tag("kv cache") > 0 && by_tag("weights") > 0);
    }
}

#[test]
fn a_recording_is_bounded_and_says_what_it_lost() {
    let (allocator, _sim) = Allocator::simulated(SimConfig::default(), Config::default()).unwrap();
    let before = allocator.alloc(512).unwrap();
    allocator.record(3);
    drop(before);
    let blocks: Vec<_> = (0..5).map(|_| allocator.alloc(100).unwrap()).collect();
    drop(blocks);
    let recording = allocator.recorded();
    assert_eq!(recording.events.len(), 3, "a block from before the recording leaves no event");
    assert!(matches!(recording.events[0], Happened::Alloc { id: 0, bytes: 100, .. }));
    assert_eq!(recording.lost, 7);
    assert_eq!(allocator.recorded(), Recording::default());
    let text = write_recording(&recording, Writer::plain(Vec::new())).unwrap();
    assert!(String::from_utf8(text).unwrap().contains("#lost: 7\n"));
}
