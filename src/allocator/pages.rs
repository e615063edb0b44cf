//! Paged memory: windows are filled with new pages, or with free pages that move there.
//!
//! The driver is called with the window held and no state lock. What a failed call leaves half done is kept as it is: pages that
//! moved are free pages at their new address, the rest is as before. So nothing is ever undone, and nothing is lost.

use super::core::{Core, Slow};
use super::history::Happening;
use super::pool::{Grant, Need, Pool, State};
use crate::backend::{BackendError, Span};
use crate::fence::Counter;
use crate::heap::{Claim, Preference, Source};
use crate::ids::{Access, FenceId, Fences, PoolId, StreamId};
use crate::snapshot::Action;
use crate::stats::Count;
use crate::units::{GIB, align_down};

/// Interior windows come first, whatever they cost, once addresses in use exceed this many times what was ever live.
const ADDRESSES_PER_LIVE: u64 = 2;
/// Where old addresses of moved pages fill so many times what was ever live, the host waits for the work that keeps them.
const ADDRESSES_MAX: u64 = 8;
/// A pool's first region has so many times the addresses that its limit lets it hold: moved pages leave holes until they are used again.
const ADDRESSES_PER_LIMIT: u64 = 8;
/// And at least so many bytes of addresses.
const ADDRESSES_MIN: u64 = 64 * GIB;
/// A pool has so many regions at most.
const REGIONS_MAX: usize = 16;

/// Where the pages for a window may come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filling {
    /// Which free parts of a window count.
    pub window: Access,
    /// Which free pages elsewhere may move; `None`: none.
    pub moves: Option<Access>,
    /// Bytes of new memory at most.
    pub grow_max: u64,
}

/// What is to be one free stretch of addresses.
#[derive(Clone, Copy, Debug)]
struct Wish {
    size: u64,
    align: u64,
    /// The stream that will use it.
    stream: StreamId,
    prefer: Preference,
}

/// What came of filling a window.
#[derive(Debug)]
pub(super) enum Filled<T> {
    Served(T),
    /// No stretch of addresses is large enough.
    NoWindow,
    /// So many bytes of pages are needed, so many can be had.
    TooFew {
        needed: u64,
        found: u64,
    },
    /// The backend refused.
    Refused(BackendError),
}

/// One call of the driver: memory for one filling block, new or from a held block of the same size.
struct Chunk {
    to: u32,
    from: Option<u32>,
    to_span: Span,
    from_span: Option<Span>,
}

/// Serves a request in a window of free and unbacked addresses.
pub(super) fn fill_window(
    core: &Core,
    id: PoolId,
    need: &Need<'_>,
    slow: &mut Slow,
    mut how: Filling,
) -> Result<Filled<Grant>, BackendError> {
    let pool = core.pool(id);
    if pool.state.lock().heap.places().next().is_none() {
        // The first rung asks for addresses, once; the others have none to look through when they were refused.
        match how.moves {
            Some(_) => return Ok(Filled::NoWindow),
            None => match add_region(core, id, 0) {
                Err(error) if error.is_out_of_memory() => return Ok(Filled::Refused(error)),
                added => added?,
            },
        }
    }
    if pool.is_pinned() {
        how.moves = None;
    }
    let crowded = address_spread(pool, need.size) >= ADDRESSES_PER_LIVE;
    let serve = |state: &mut State, index, start| {
        let taken = state.heap.carve(index, start, need.size, &mut state.clocks);
        state.grant(taken, need, &pool.meter)
    };
    let wish = Wish { size: need.size, align: need.align, stream: need.stream, prefer: Preference::FewestPages };
    if crowded {
        let inside = Wish { prefer: Preference::Inside, ..wish };
        match fill(core, id, slow, inside, how, serve)? {
            Filled::TooFew { .. } => {}
            answer => return Ok(answer),
        }
    }
    // Each capture that is met here was not known before, and is avoided the next time.
    let mut captures_left = core.open.lock().len();
    loop {
        match fill(core, id, slow, wish, how, serve)? {
            Filled::Refused(BackendError::Recording { .. }) if captures_left > 0 => captures_left -= 1,
            answer => return Ok(answer),
        }
    }
}

/// Whether old addresses of moved pages, kept by unfinished work, fill too many addresses.
pub(super) fn is_overgrown(core: &Core, id: PoolId, size: u64, slow: &Slow) -> bool {
    !slow.retired[usize::from(id.0)].is_empty() && address_spread(core.pool(id), size) >= ADDRESSES_MAX
}

/// How many times what was ever live, a request of `size` included, a pool's addresses in use would hold.
fn address_spread(pool: &Pool, size: u64) -> u64 {
    let state = pool.state.lock();
    state.addresses() / pool.meter.crest().max(size)
}

/// Whether nothing is live and free pages lie apart, where moving them costs little and old addresses are not piled up already.
pub(super) fn is_idle_and_scattered(core: &Core, id: PoolId) -> bool {
    let pool = core.pool(id);
    let state = pool.state.lock();
    let room = state.addresses() / pool.meter.crest().max(1) < ADDRESSES_MAX / 2;
    core.caps.alias && !pool.is_pinned() && pool.meter.is_idle() && room && free_pages(&state, Access::AfterWait).0 > 1
}

/// How many blocks hold free pages that may be had in this way, and how many bytes of them there are.
fn free_pages(state: &State, access: Access) -> (usize, u64) {
    let mut found = (0, 0);
    state.heap.sources(access, &state.clocks, |source| {
        found = (found.0 + 1, found.1 + source.size);
        true
    });
    found
}

/// Nothing is live: the free pages that `stream` may use now come together at the lowest addresses, so that neither the addresses
/// in use nor the pages that are partly live creep up over a long life.
pub(super) fn retreat(core: &Core, id: PoolId, stream: StreamId, slow: &mut Slow) -> Result<(), BackendError> {
    let access = Access::Now(stream);
    let (_, size) = free_pages(&core.pool(id).state.lock(), access);
    if size == 0 {
        return Ok(());
    }
    let wish = Wish { size, align: core.quantum, stream, prefer: Preference::Lowest };
    let how = Filling { window: access, moves: Some(access), grow_max: 0 };
    match fill(core, id, slow, wish, how, |_, _, _| ())? {
        Filled::Refused(error) if !error.is_refusal() => Err(error),
        _ => Ok(()),
    }
}

/// Makes a window one free block and hands it to `serve`, under the lock under which it became one.
fn fill<T>(
    core: &Core,
    id: PoolId,
    slow: &mut Slow,
    wish: Wish,
    how: Filling,
    serve: impl FnOnce(&mut State, u32, u64) -> T,
) -> Result<Filled<T>, BackendError> {
    let pool = core.pool(id);
    let mut guard = pool.state.lock();
    let state = &mut *guard;
    let window = state.heap.best_window(wish.size, wish.align, wish.prefer, how.window, &state.clocks);
    let Some(window) = window else { return Ok(Filled::NoWindow) };
    let claim = state.heap.claim(&window, &mut state.clocks);
    let sources = how.moves.map_or(Vec::new(), |access| gather(state, access, window.missing));
    let found: u64 = sources.iter().map(|source| source.size).sum();
    if window.missing > found.saturating_add(how.grow_max) {
        abandon(state, &claim);
        pool.meter.pending_is(state.heap.pending());
        return Ok(Filled::TooFew { needed: window.missing, found: found.saturating_add(how.grow_max) });
    }
    let held: Vec<u32> = sources
        .iter()
        .map(|source| state.heap.hold(source.index, source.start, source.size, &mut state.clocks))
        .collect();
    let pairs = missing_pairs(state, wish.stream, claim.held.iter().chain(&held));
    let chunks = cut_chunks(state, &claim, &held);
    drop(guard);

    let (done, error) = match core.wait_between(pool, wish.stream, &pairs) {
        Ok(()) => call_driver(core, &chunks),
        Err(error) => (0, Some(error)),
    };

    let mut state = pool.state.lock();
    let index = commit(core, pool, &mut state, slow, id, &claim, &chunks, done);
    let answer = match error {
        Some(error) => Filled::Refused(error),
        None => Filled::Served(serve(&mut state, index, window.start)),
    };
    drop(state);
    if let Err(error) = unmap_retired(core, id, slow) {
        // The request may be served all the same; the next one that climbs is told.
        core.defer(error);
    }
    match answer {
        Filled::Refused(error) if !error.is_refusal() => Err(error),
        answer => Ok(answer),
    }
}

/// Free pages elsewhere, smallest blocks first, until there are enough.
fn gather(state: &State, access: Access, wanted: u64) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut left = wanted;
    if left == 0 {
        return sources;
    }
    state.heap.sources(access, &state.clocks, |source| {
        let source = state.heap.shrink_source(source, left);
        left -= source.size;
        sources.push(source);
        left > 0
    });
    sources
}

fn abandon(state: &mut State, claim: &Claim) {
    for index in &claim.voids {
        state.heap.unfill(*index);
    }
    for index in &claim.held {
        state.heap.unhold(*index, &mut state.clocks);
    }
}

/// What stands between a stream and held blocks, one pair for each stream.
fn missing_pairs<'a>(state: &State, stream: StreamId, held: impl Iterator<Item = &'a u32>) -> Vec<(StreamId, Counter)> {
    let mut pairs: Vec<(StreamId, Counter)> = Vec::new();
    for pair in held.flat_map(|index| state.clocks.missing(state.heap.fence(*index), stream)) {
        match pairs.iter_mut().find(|known| known.0 == pair.0) {
            Some(known) => known.1 = known.1.max(pair.1),
            None => pairs.push(pair),
        }
    }
    pairs.sort_unstable();
    pairs
}

/// Pairs filling blocks with held ones, cutting both so that each pair has one size; what is left over is to be new memory.
fn cut_chunks(state: &mut State, claim: &Claim, held: &[u32]) -> Vec<Chunk> {
    let heap = &mut state.heap;
    let mut sources = held.iter().copied();
    let mut source = sources.next();
    let mut chunks = Vec::with_capacity(claim.voids.len() + held.len());
    for void in &claim.voids {
        let mut to = Some(*void);
        while let Some(void) = to {
            let (_, _, wanted) = heap.place(void);
            let size = source.map_or(wanted, |source| heap.place(source).2.min(wanted));
            to = (size < wanted).then(|| heap.cut_filling(void, size));
            let from = source;
            if let Some(index) = source {
                let whole = heap.place(index).2 == size;
                source = if whole { sources.next() } else { Some(heap.cut_held(index, size, &mut state.clocks)) };
            }
            let span = |index| {
                let (place, offset, size) = heap.place(index);
                Span { region: heap.region(place), offset, size }
            };
            chunks.push(Chunk { to: void, from, to_span: span(void), from_span: from.map(span) });
        }
    }
    chunks
}

/// Calls the driver for each chunk in turn. Answers how many succeeded, and the error that ended it.
fn call_driver(core: &Core, chunks: &[Chunk]) -> (usize, Option<BackendError>) {
    for (at, chunk) in chunks.iter().enumerate() {
        let result = match chunk.from_span {
            Some(from) => core.backend.remap(from, chunk.to_span),
            None => core.backend.back(chunk.to_span),
        };
        if let Err(error) = result {
            return (at, Some(error));
        }
    }
    (chunks.len(), None)
}

/// Brings the heap to what the driver did: the first `done` chunks are backed. Answers the free block that holds the window when all
/// of them are.
#[allow(clippy::too_many_arguments)]
fn commit(
    core: &Core,
    pool: &Pool,
    state: &mut State,
    slow: &mut Slow,
    id: PoolId,
    claim: &Claim,
    chunks: &[Chunk],
    done: usize,
) -> u32 {
    let (mut index, mut moved) = (0, 0);
    for chunk in &chunks[..done] {
        let Some(from) = chunk.from else {
            core.count_reserved(pool, chunk.to_span.size);
            state.happened(to_memory(state, Action::Grow, chunk.to));
            index = state.heap.fill(chunk.to, FenceId::NONE, &mut state.clocks);
            continue;
        };
        moved += chunk.to_span.size;
        state.happened(to_memory(state, Action::Remap, chunk.to));
        let fence = state.clocks.copy(state.heap.fence(from));
        index = state.heap.fill(chunk.to, fence, &mut state.clocks);
        if core.leaves_mapped {
            state.heap.retire(from);
            slow.retired[usize::from(id.0)].push(from);
        } else {
            state.heap.forget_backing(from, &mut state.clocks);
        }
    }
    for chunk in &chunks[done..] {
        state.heap.unfill(chunk.to);
        if let Some(from) = chunk.from {
            state.heap.unhold(from, &mut state.clocks);
        }
    }
    for held in &claim.held {
        index = state.heap.unhold(*held, &mut state.clocks);
    }
    pool.meter.addresses(state.addresses());
    pool.meter.pending_is(state.heap.pending());
    if moved > 0 {
        pool.meter.count(Count::Moved(moved));
    }
    index
}

/// What the history says of a block's memory.
fn to_memory(state: &State, action: Action, index: u32) -> Happening {
    let (place, offset, size) = state.heap.place(index);
    Happening::to_memory(action, size, state.bases[usize::from(place)] + offset)
}

/// Unmaps the old addresses of moved pages whose work is complete.
pub(super) fn unmap_retired(core: &Core, id: PoolId, slow: &mut Slow) -> Result<(), BackendError> {
    let retired = &mut slow.retired[usize::from(id.0)];
    if retired.is_empty() {
        return Ok(());
    }
    let pool = core.pool(id);
    let mut ready: Vec<(u32, Span)> = {
        let state = pool.state.lock();
        let complete = |index: &u32| state.clocks.complete(state.heap.fence(*index));
        let span = |index: u32| {
            let (place, offset, size) = state.heap.place(index);
            (index, Span { region: state.heap.region(place), offset, size })
        };
        retired.extract_if(.., |index| complete(index)).map(span).collect()
    };
    ready.sort_unstable_by_key(|(_, span)| (span.region, span.offset));
    let mut left = ready.as_slice();
    let mut result = Ok(());
    while let Some((first, rest)) = left.split_first() {
        let mut run = first.1;
        let follows = rest.iter().take_while(|(_, span)| {
            let next = span.region == run.region && span.offset == run.offset + run.size;
            if next {
                run.size += span.size;
            }
            next
        });
        let count = 1 + follows.count();
        result = core.backend.unback(run);
        if result.is_err() {
            break;
        }
        let mut guard = pool.state.lock();
        let state = &mut *guard;
        left[..count].iter().for_each(|(index, _)| state.heap.forget_backing(*index, &mut state.clocks));
        left = &left[count..];
    }
    // What the backend would not unmap stays retired, to be tried again.
    retired.extend(left.iter().map(|(index, _)| *index));
    result
}

/// Reserves addresses for a pool: some times what its limit lets it hold, or all that one reservation may be; half as long as it is
/// refused. Pools besides the first get less, so that many find room. Never less than `least` bytes.
pub(super) fn add_region(core: &Core, id: PoolId, least: u64) -> Result<(), BackendError> {
    if core.pool(id).state.lock().heap.places().count() >= REGIONS_MAX {
        return Err(BackendError::OutOfMemory { call: "reserve", requested: least });
    }
    let page = core.caps.page.unwrap_or(core.quantum);
    let times = if id == PoolId(0) { ADDRESSES_PER_LIMIT } else { 1 };
    let wanted = core.room(id).limit.map_or(u64::MAX, |limit| limit.saturating_mul(times).max(ADDRESSES_MIN));
    let mut size = align_down(wanted.max(least.saturating_add(page)).min(core.caps.region_max), page).max(page);
    let region = loop {
        match core.backend.reserve(size) {
            Ok(region) => break region,
            Err(error) if error.is_out_of_memory() && size / 2 >= least.max(page) => size = align_down(size / 2, page),
            Err(error) => return Err(error),
        }
    };
    if core.pool(id).state.lock().add_region(region, core.caps.page).is_none() {
        core.backend.release(region.id)?;
        return Err(BackendError::OutOfMemory { call: "reserve", requested: size });
    }
    Ok(())
}
