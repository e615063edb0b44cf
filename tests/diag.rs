//! What people read of a snapshot: golden texts (rewritten with `UPDATE_EXPECT=1`, reviewed as a diff), and the laws of the pictures.

mod common;

use std::path::Path;

use common::golden;
use larder::backend::sim::SimConfig;
use larder::diag::SegmentMap;
use larder::ids::{BlockId, PoolId, RegionId, StreamId};
use larder::snapshot::{BlockRecord, BlockState, PoolRecord, RegionRecord, Site, Snapshot, VERSION};
use larder::stats::{Gauge, Stats};
use larder::trace::{Trace, replay};
use larder::units::{GIB, KIB, MIB, TIB};
use larder::{AllocError, Allocator, Config};

/// A region with blocks of these sizes and states, one after the other.
fn region(id: u32, size: u64, page: Option<u64>, parts: &[(BlockState, u64)]) -> RegionRecord {
    let mut offset = 0;
    let mut blocks = Vec::new();
    for (index, &(state, size)) in parts.iter().enumerate() {
        let live = state == BlockState::Live;
        blocks.push(BlockRecord {
            id: BlockId { index: index as u32, generation: 1 },
            offset,
            size,
            state,
            requested: if live { size - 1 } else { 0 },
            stream: StreamId(u16::from(live) * (index as u16 % 2)),
            waits_for: Vec::new(),
            tag: if live && index % 3 == 0 { "kv-cache".into() } else { String::new() },
            site: (live && index != 5).then_some(Site { file: "src/model.rs", line: 40 + index as u32 }),
        });
        offset += size;
    }
    RegionRecord { id: RegionId(id), base: 0, size, page, blocks }
}

fn snapshot(regions: Vec<RegionRecord>) -> Snapshot {
    let sum = |wanted: &[BlockState]| -> u64 {
        let blocks = regions.iter().flat_map(|region| &region.blocks);
        blocks.filter(|block| wanted.contains(&block.state)).map(|block| block.size).sum()
    };
    let gauge = |current| Gauge { current, peak: current, allocated: current, freed: 0 };
    let (live, pending) = (sum(&[BlockState::Live]), sum(&[BlockState::Pending]));
    let stats = Stats {
        requested: gauge(live),
        live: gauge(live),
        pending: gauge(pending),
        active: gauge(live + pending),
        reserved: gauge(live + pending + sum(&[BlockState::Free, BlockState::Held])),
        blocks: gauge(regions.iter().flat_map(|r| &r.blocks).filter(|b| b.state == BlockState::Live).count() as u64),
        ..Stats::default()
    };
    let pool = PoolRecord {
        id: PoolId(0),
        name: "default".into(),
        limit: None,
        stats,
        stranded: 96 * KIB,
        largest_free: 12 * MIB,
        tags: Vec::new(),
        regions,
    };
    Snapshot {
        version: VERSION,
        backend: "sim".into(),
        limit: Some(GIB),
        budget: None,
        beneath: 0,
        stats,
        pools: vec![pool],
        history: None,
    }
}

/// The pictures of a map, without their brackets.
fn pictures(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| Some(line.split_once('[')?.1.strip_suffix(']').unwrap())).collect()
}

#[test]
fn map_of_pages() {
    use BlockState::*;
    let parts = [
        (Live, 16 * MIB),
        (Free, 3 * MIB),
        (Live, 512),
        (Live, MIB - 512),
        (Pending, 4 * MIB),
        (Live, 2 * MIB),
        (Retired, 2 * MIB),
        (Unbacked, 6 * MIB),
        (Live, 10 * MIB),
        (Held, 8 * MIB),
        (Free, 12 * MIB),
        (Unbacked, TIB - 64 * MIB),
    ];
    golden("map_of_pages.txt", &SegmentMap::new(&snapshot(vec![region(0, TIB, Some(2 * MIB), &parts)])).to_string());
}

#[test]
fn map_of_segments() {
    use BlockState::*;
    let mut regions: Vec<RegionRecord> =
        (0..20).map(|id| region(id, 2 * MIB, None, &[(Live, MIB), (Free, MIB)])).collect();
    regions[1] = region(1, 2 * MIB, None, &[(Free, 2 * MIB)]);
    regions[2] = region(2, 512, None, &[(Live, 512)]);
    golden("map_of_segments.txt", &SegmentMap::new(&snapshot(regions)).to_string());
}

#[test]
fn map_of_nothing() {
    let text =
        SegmentMap::new(&snapshot(vec![region(0, TIB, Some(2 * MIB), &[(BlockState::Unbacked, TIB)])])).to_string();
    golden("map_of_nothing.txt", &text);
}

#[test]
fn report_with_the_last_events() {
    let (allocator, _sim) =
        Allocator::simulated(SimConfig::default(), Config::default().limit(8 * MIB).history(100)).unwrap();
    let other = allocator.stream().unwrap();
    let weights = allocator.request(5 * MIB).tag("weights").alloc().unwrap();
    weights.used_on(&other);
    drop(allocator.alloc_on(&other, 512 * KIB).unwrap());
    let AllocError::OutOfMemory(mut report) = allocator.alloc(4 * MIB).unwrap_err() else { panic!("a limit") };
    let site = Site { file: "src/model.rs", line: 40 };
    for (at, event) in report.events.iter_mut().enumerate() {
        (event.stamp, event.site) = (1_000_500 * at as u64, event.site.map(|_| site));
    }
    report.request.site = site;
    golden("report_with_events.txt", &report.to_string());
}

#[test]
fn every_width_draws_every_region_whole() {
    let trace = Trace::load(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/serving_small.gz")).unwrap();
    for stage in [replay::Stage::Sim, replay::Stage::SimSegments] {
        let config = replay::ReplayConfig { stage, ..Default::default() };
        let state = replay::snapshot_at_peak(&trace, &config).unwrap();
        for cells in [0, 1, 7, 64, 1000] {
            let text = SegmentMap { cells, ..SegmentMap::new(&state) }.to_string();
            let drawn = pictures(&text);
            assert_eq!(drawn.len(), state.pools.iter().map(|pool| pool.regions.len().min(16)).sum::<usize>());
            assert!(drawn.iter().all(|picture| picture.chars().count() == cells), "{text}");
        }
    }
}

#[test]
fn a_live_byte_is_never_hidden() {
    let host = Allocator::host(Config::default().limit(64 * MIB)).unwrap();
    let blocks: Vec<_> = (0..64).map(|_| host.alloc(256 * KIB).unwrap()).collect();
    let state = host.snapshot();
    assert_eq!(pictures(&SegmentMap::new(&state).to_string()), ["#".repeat(64)]);
    let kept: Vec<_> = blocks.into_iter().step_by(2).collect();
    let state = host.snapshot();
    assert_eq!(
        pictures(&SegmentMap::new(&state).to_string()),
        ["#.".repeat(32).trim_end_matches('.').to_owned() + "."]
    );
    assert_eq!(pictures(&SegmentMap { cells: 32, ..SegmentMap::new(&state) }.to_string()), ["+".repeat(32)]);
    drop(kept);
}
