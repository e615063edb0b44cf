//! Copies of the state for people and programs: reports of failures and snapshots.

use std::time::Instant;

use super::core::Core;
use super::history::Copied;
use super::ladder::Climb;
use super::pool::{Note, Pool, State, TagUse};
use super::tags::TagId;
use crate::heap::{BlockView, State as HeapState, whole_pages};
use crate::ids::{PoolId, StreamId};
use crate::policy::ReportLevel;
use crate::snapshot::{
    BlockRecord, BlockState, OomReport, Outcome, PoolRecord, RegionRecord, RequestRecord, Snapshot, TagRecord, VERSION,
};
use crate::stats::Stats;

/// The report of a request that reached the end of the ladder.
pub(super) fn out_of_memory(climb: Climb<'_>) -> OomReport {
    let (core, pool, need) = (climb.core, climb.pool, climb.need);
    let (mut holders, events) = (Vec::with_capacity(OomReport::HOLDERS + 1), Copied::with_room(OomReport::EVENTS));
    let (largest_free, events) = {
        let state = pool.state.lock();
        largest(&state.tags, OomReport::HOLDERS, &mut holders);
        (state.heap.largest_free(), events.fill(climb.id, &state, OomReport::EVENTS))
    };
    let room = core.binding_room(climb.id, need.size);
    let others = || core.pools().filter(|other| !std::ptr::eq(*other, pool)).map(|other| other.meter.read());
    let refused = climb.trail.iter().any(|step| matches!(step.outcome, Outcome::Refused { .. }));
    // Servers meet limits often, and what the device has is not the reason then: it is asked only when it refused.
    let budget = if refused { core.backend.budget().ok().flatten() } else { None };
    let device = budget.map_or(if refused { 0 } else { u64::MAX }, |budget| budget.free);
    OomReport {
        version: VERSION,
        request: RequestRecord {
            requested: need.requested,
            rounded: need.size,
            align: need.align,
            stream: need.stream,
            pool: climb.id,
            pool_name: pool.name.clone(),
            tag: need.tag.name(),
            site: need.site.into(),
        },
        trail: climb.trail,
        backend: core.caps.name,
        stats: pool.meter.read(),
        limit: room.limit,
        live_elsewhere: if room.of_pool { 0 } else { core.kept_by_others(climb.id) },
        room: room.left.min(device),
        page: core.caps.page,
        moves: core.caps.page.is_some() && core.caps.remap,
        largest_free,
        holders: named(holders),
        idle_elsewhere: others().map(|stats| stats.idle()).sum(),
        budget,
        events: events.iter().flat_map(|copied| core.events(copied)).collect(),
        snapshot: full_report_is_due(core).then(|| Box::new(core.snapshot())),
    }
}

fn full_report_is_due(core: &Core) -> bool {
    let ReportLevel::Full { at_most_per_second } = core.config.read().report else { return false };
    let mut last = core.last_full_report.lock();
    let now = Instant::now();
    let due = at_most_per_second > 0
        && last.is_none_or(|last| now.duration_since(last).as_secs_f64() * f64::from(at_most_per_second) >= 1.0);
    if due {
        *last = Some(now);
    }
    due
}

/// The `most` largest, largest first, into room for one more than that.
fn largest(tags: &[TagUse], most: usize, largest: &mut Vec<(TagId, TagUse)>) {
    for (at, tag) in tags.iter().enumerate().filter(|(_, tag)| tag.blocks > 0) {
        let place = largest.partition_point(|(_, other)| other.live >= tag.live);
        if place < most {
            largest.insert(place, (TagId(at as u16), *tag));
            largest.truncate(most);
        }
    }
}

fn named(tags: Vec<(TagId, TagUse)>) -> Vec<TagRecord> {
    let record = |(tag, held): (TagId, TagUse)| TagRecord { tag: tag.name(), live: held.live, blocks: held.blocks };
    tags.into_iter().map(record).collect()
}

impl Core {
    /// Sums over all pools. The peaks of live, requested and active are bounds; that of reserved is exact.
    pub(crate) fn total_stats(&self) -> Stats {
        let mut stats =
            self.pools().map(|pool| pool.meter.read()).fold(Stats::default(), |sum, stats| sum.plus(&stats));
        stats.reserved.peak = self.reserved_peak.load(std::sync::atomic::Ordering::Relaxed);
        stats
    }

    /// Everything. Each pool is copied under its lock, as one instant, one soon after the other; texts are made behind all of them.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let ids = || self.pools().enumerate().map(|(at, pool)| (PoolId(at as u16), pool));
        let events = self.config.read().history;
        let mut copies: Vec<PoolCopy> = ids().map(|(id, pool)| PoolCopy::of(pool, id, events)).collect();
        let stats = self.total_stats();
        let histories = copies.iter_mut().filter_map(|copy| copy.history.take()).collect();
        let pools = copies.into_iter().zip(ids()).map(|(copy, (id, pool))| copy.into_record(pool, id)).collect();
        Snapshot {
            version: VERSION,
            backend: self.caps.name.to_string(),
            limit: self.config.read().limit,
            budget: self.backend.budget().ok().flatten(),
            beneath: self.backend.beneath(),
            stats,
            pools,
            history: self.history(histories),
        }
    }
}

/// A pool as copied under its lock: numbers only, into room that was made before.
struct PoolCopy {
    /// Each with the number of its blocks.
    regions: Vec<(RegionRecord, usize)>,
    blocks: Vec<RawBlock>,
    /// What blocks wait for or are used on, one after the other.
    streams: Vec<StreamId>,
    tags: Vec<TagUse>,
    stats: Stats,
    largest_free: u64,
    history: Option<Copied>,
}

struct RawBlock {
    view: BlockView<Note>,
    /// How many of the streams are its.
    streams: u16,
}

impl PoolCopy {
    fn of(pool: &Pool, id: PoolId, events: usize) -> PoolCopy {
        let (places, tags, records) = {
            let state = pool.state.lock();
            (state.heap.places().count(), state.tags.len(), state.heap.records())
        };
        // Some may be added until the lock is taken again.
        let records = records + 16;
        let (mut blocks, mut streams) = (Vec::with_capacity(records), Vec::with_capacity(records));
        let (mut regions, mut tags) = (Vec::with_capacity(places + 1), Vec::with_capacity(tags + 1));
        let history = Copied::with_room(events);
        let state = pool.state.lock();
        regions.extend(state.heap.places().map(|place| state.copy_region(place, &mut blocks, &mut streams)));
        tags.extend_from_slice(&state.tags);
        PoolCopy {
            regions,
            blocks,
            streams,
            tags,
            stats: pool.meter.read(),
            largest_free: state.heap.largest_free(),
            history: history.fill(id, &state, usize::MAX),
        }
    }

    fn into_record(self, pool: &Pool, id: PoolId) -> PoolRecord {
        let (mut blocks, mut streams) = (self.blocks.into_iter(), self.streams.into_iter());
        let mut regions = Vec::new();
        for (mut record, count) in self.regions {
            let finish = |raw: RawBlock| finish_block(&raw.view, streams.by_ref().take(raw.streams.into()).collect());
            record.blocks = blocks.by_ref().take(count).map(finish).collect();
            regions.push(record);
        }
        let mut tags = Vec::new();
        largest(&self.tags, usize::MAX, &mut tags);
        PoolRecord {
            id,
            name: pool.name.clone(),
            limit: pool.config.read().limit,
            stats: self.stats,
            stranded: regions.iter().map(stranded).sum(),
            largest_free: self.largest_free,
            tags: named(tags),
            regions,
        }
    }
}

impl State {
    fn copy_region(
        &self,
        place: u16,
        blocks: &mut Vec<RawBlock>,
        streams: &mut Vec<StreamId>,
    ) -> (RegionRecord, usize) {
        let (size, page) = self.heap.extent(place);
        let (region, base) = (self.heap.region(place), self.bases[usize::from(place)]);
        let record = RegionRecord { id: region, base, size, page, blocks: Vec::new() };
        let before = blocks.len();
        for view in self.heap.blocks(place) {
            let known = streams.len();
            match view.state {
                HeapState::Live if view.note.is_shared() => {
                    streams.extend(self.users.get(&view.id.index).into_iter().flatten())
                }
                HeapState::Live => {}
                _ => streams.extend(self.clocks.pairs(view.fence).map(|(stream, _)| stream)),
            }
            blocks.push(RawBlock { view, streams: (streams.len() - known) as u16 });
        }
        (record, blocks.len() - before)
    }
}

fn finish_block(view: &BlockView<Note>, waits_for: Vec<StreamId>) -> BlockRecord {
    let live = view.state == HeapState::Live;
    BlockRecord {
        id: view.id,
        offset: view.offset,
        size: view.size,
        state: match view.state {
            HeapState::Live => BlockState::Live,
            HeapState::Free if view.fence.is_shared() => BlockState::Pending,
            HeapState::Free => BlockState::Free,
            HeapState::Void => BlockState::Unbacked,
            HeapState::Retired => BlockState::Retired,
            HeapState::Held | HeapState::Filling | HeapState::Vacant => BlockState::Held,
        },
        requested: if live { view.size - u64::from(view.note.padding) } else { 0 },
        stream: if live { view.note.stream() } else { Default::default() },
        waits_for,
        tag: if live { view.note.tag.name() } else { String::new() },
        site: if live { view.note.site.map(Into::into) } else { None },
    }
}

/// Free bytes of a region that cannot go back, because something live shares their page or segment.
fn stranded(region: &RegionRecord) -> u64 {
    let free = || region.blocks.iter().filter(|block| matches!(block.state, BlockState::Free | BlockState::Pending));
    match region.page {
        Some(page) => free()
            .map(|block| {
                let whole = whole_pages(block.offset, block.size, page);
                block.size - (whole.end - whole.start)
            })
            .sum(),
        None if region.blocks.len() == 1 => 0,
        None => free().map(|block| block.size).sum(),
    }
}
