//! Copies of the state for people and programs: reports of failures and snapshots.

use std::time::Instant;

use super::core::Core;
use super::ladder::Climb;
use super::pool::{Note, State};
use super::tags::TagId;
use crate::heap::{BlockView, State as HeapState, whole_pages};
use crate::ids::PoolId;
use crate::policy::ReportLevel;
use crate::snapshot::{
    BlockRecord, BlockState, OomReport, Outcome, PoolRecord, RegionRecord, RequestRecord, Snapshot, TagRecord, VERSION,
};
use crate::stats::Stats;

/// The report of a request that reached the end of the ladder.
pub(super) fn out_of_memory(climb: Climb<'_>) -> OomReport {
    let (core, pool, need) = (climb.core, climb.pool, climb.need);
    let (largest_free, holders) = {
        let state = pool.state.lock();
        (state.heap.largest_free(), holders(&state, OomReport::HOLDERS))
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
        holders,
        idle_elsewhere: others().map(|stats| stats.idle()).sum(),
        budget,
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

/// Bytes by tag, largest first, of the `most` largest.
fn holders(state: &State, most: usize) -> Vec<TagRecord> {
    let mut largest: Vec<(std::cmp::Reverse<u64>, usize)> = Vec::new();
    for (at, tag) in state.tags.iter().enumerate().filter(|(_, tag)| tag.blocks > 0) {
        let key = (std::cmp::Reverse(tag.live), at);
        if largest.len() == most && largest.last().is_some_and(|last| *last < key) {
            continue;
        }
        largest.insert(largest.partition_point(|other| *other < key), key);
        largest.truncate(most);
    }
    let record = |(_, at): (_, usize)| TagRecord {
        tag: TagId(at as u16).name(),
        live: state.tags[at].live,
        blocks: state.tags[at].blocks,
    };
    largest.into_iter().map(record).collect()
}

impl Core {
    /// Sums over all pools. The peaks of live, requested and active are bounds; that of reserved is exact.
    pub(crate) fn total_stats(&self) -> Stats {
        let mut stats =
            self.pools().map(|pool| pool.meter.read()).fold(Stats::default(), |sum, stats| sum.plus(&stats));
        stats.reserved.peak = self.reserved_peak.load(std::sync::atomic::Ordering::Relaxed);
        stats
    }

    /// Everything. Each pool is copied under its lock, as one instant; texts are made outside.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let pools = self.pools().enumerate().map(|(at, _)| self.pool_record(PoolId(at as u16))).collect();
        Snapshot {
            version: VERSION,
            backend: self.caps.name.to_string(),
            limit: self.config.read().limit,
            budget: self.backend.budget().ok().flatten(),
            beneath: self.backend.beneath(),
            stats: self.total_stats(),
            pools,
        }
    }

    fn pool_record(&self, id: PoolId) -> PoolRecord {
        let pool = self.pool(id);
        let (regions, tags, stats, largest_free, stranded) = {
            let state = pool.state.lock();
            let places: Vec<u16> = state.heap.places().collect();
            let regions: Vec<(RegionRecord, Vec<RawBlock>)> =
                places.iter().map(|place| copy_region(&state, *place)).collect();
            let stranded = places.iter().map(|place| stranded(&state, *place)).sum();
            (regions, holders(&state, usize::MAX), pool.meter.read(), state.heap.largest_free(), stranded)
        };
        let finish = |(mut record, blocks): (RegionRecord, Vec<RawBlock>)| {
            record.blocks = blocks.into_iter().map(finish_block).collect();
            record
        };
        PoolRecord {
            id,
            name: pool.name.clone(),
            limit: pool.config.read().limit,
            stats,
            stranded,
            largest_free,
            tags,
            regions: regions.into_iter().map(finish).collect(),
        }
    }
}

/// A block as copied under the lock.
struct RawBlock {
    view: BlockView<Note>,
    waits_for: Vec<crate::ids::StreamId>,
}

fn copy_region(state: &State, place: u16) -> (RegionRecord, Vec<RawBlock>) {
    let (size, page) = state.heap.extent(place);
    let record = RegionRecord {
        id: state.heap.region(place),
        base: state.bases[place as usize],
        size,
        page,
        blocks: Vec::new(),
    };
    let copy = |view: BlockView<Note>| {
        let waits_for = match view.state {
            HeapState::Live if view.note.is_shared() => state.users.get(&view.id.index).cloned().unwrap_or_default(),
            HeapState::Live => Vec::new(),
            _ => state.clocks.pairs(view.fence).map(|(stream, _)| stream).collect(),
        };
        RawBlock { view, waits_for }
    };
    (record, state.heap.blocks(place).map(copy).collect())
}

fn finish_block(raw: RawBlock) -> BlockRecord {
    let RawBlock { view, waits_for } = raw;
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
fn stranded(state: &State, place: u16) -> u64 {
    let (_, page) = state.heap.extent(place);
    let free = state.heap.blocks(place).filter(|block| block.state == HeapState::Free);
    match page {
        Some(page) => free
            .map(|block| {
                let whole = whole_pages(block.offset, block.size, page);
                block.size - (whole.end - whole.start)
            })
            .sum(),
        None if state.heap.whole(place).is_some() => 0,
        None => free.map(|block| block.size).sum(),
    }
}
