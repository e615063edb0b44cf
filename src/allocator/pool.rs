//! A pool: its heap and clocks behind one lock, its figures, and what happens to a block under that lock.
//!
//! Everything here is arithmetic: no driver is called, nothing waits, and no user code runs.
//!
//! Invariants ([`Pool::walk`] recomputes them): the meter and the tags say what a walk over the heap finds; `users` has an entry for
//! each live block that several streams use, and for no other.

use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::core::Core;
use super::history::Ring;
use super::tags::TagId;
use crate::backend::{Capabilities, Region};
use crate::fence::Clocks;
use crate::heap::{Heap, Owned, State as BlockState};
use crate::ids::{Access, BlockId, FenceId, RegionId, StreamId};
use crate::policy::PoolConfig;
use crate::snapshot::Action;
use crate::stats::Meter;
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};
use crate::sync::{BriefMutex, Rank, RwLock};

/// A heap over regions of its own, with its own lock.
///
/// In cache lines of its own, and in pairs of them that processors fetch together: two pools at work do not get in each other's way.
#[repr(align(128))]
pub(crate) struct Pool {
    pub name: String,
    pub config: RwLock<PoolConfig>,
    pub tag: TagId,
    pub state: BriefMutex<State>,
    pub meter: Meter,
    /// Whether its pages stay where they are: a captured graph uses them.
    pub pinned: AtomicBool,
}

/// What a live block is to the allocator: who asked for it and what it is for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Note {
    pub site: Option<&'static Location<'static>>,
    /// size - requested.
    pub padding: u32,
    pub tag: TagId,
    /// The stream it was allocated on; `SHARED` is set when other streams use it too.
    stream: u16,
}

impl Note {
    const SHARED: u16 = 1 << 15;
    pub(crate) const BLANK: Note = Note { site: None, padding: 0, tag: TagId::NONE, stream: 0 };

    /// What a request's block will be noted as.
    pub(crate) fn of(need: &Need<'_>) -> Note {
        Note::new(need.site, need.tag, need.stream, need.size, need.requested)
    }

    /// The same on another stream.
    pub(crate) fn on(self, stream: StreamId) -> Note {
        Note { stream: stream.0, ..self }
    }

    /// The note of a block of `size` bytes of which `requested` were asked for.
    #[inline(always)]
    pub(crate) fn new(
        site: &'static Location<'static>,
        tag: TagId,
        stream: StreamId,
        size: u64,
        requested: u64,
    ) -> Note {
        Note { site: Some(site), padding: (size - requested) as u32, tag, stream: stream.0 }
    }

    #[inline(always)]
    pub(crate) fn stream(&self) -> StreamId {
        StreamId(self.stream & !Self::SHARED)
    }

    #[inline(always)]
    pub(crate) fn is_shared(&self) -> bool {
        self.stream & Self::SHARED != 0
    }
}

/// A request after rounding and checking.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need<'a> {
    pub requested: u64,
    /// Multiple of the quantum, at least one.
    pub size: u64,
    pub align: u64,
    pub stream: StreamId,
    pub tag: TagId,
    pub site: &'static Location<'static>,
    pub deadline: Option<Instant>,
    /// Regions that it must not lie in.
    pub apart: &'a [RegionId],
}

/// A block given out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    pub id: BlockId,
    pub address: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TagUse {
    pub live: u64,
    pub blocks: u64,
}

/// A pool's changing half.
pub(crate) struct State {
    pub heap: Heap<Note>,
    pub clocks: Clocks,
    /// Base address of the region in each slot.
    pub bases: Vec<u64>,
    /// Streams that use a block besides its own, by index of the block's record.
    pub users: BTreeMap<u32, Vec<StreamId>>,
    /// Open recordings: each may have touched any block.
    recordings: Vec<StreamId>,
    pub tags: Vec<TagUse>,
    pub history: Option<Box<Ring>>,
    /// The number of allocations at which completed work is looked for.
    next_care: u64,
    poll_every: u32,
    /// Whether uses of this memory are ordered by streams at all.
    streams: bool,
    /// Whether streams order uses and no recording is open: a drop is one stream's affair unless the block says otherwise.
    drops_are_plain: bool,
    /// Whether free pages are brought together when nothing is live: where moving them costs little.
    retreats: bool,
    /// Live blocks that debug mode keeps and nobody owns.
    quarantined: u64,
    core: Weak<Core>,
    /// The core, while a block of this pool has an owner: blocks refer to it without counting.
    keeper: Option<Arc<Core>>,
}

impl State {
    /// An empty pool's state.
    pub(crate) fn new(core: Weak<Core>, quantum: u64, clocks: Clocks, caps: &Capabilities, poll_every: u32) -> State {
        State {
            heap: Heap::new(quantum),
            clocks,
            bases: Vec::new(),
            users: BTreeMap::new(),
            recordings: Vec::new(),
            tags: vec![TagUse::default()],
            history: None,
            next_care: u64::from(poll_every),
            poll_every,
            streams: caps.streams,
            drops_are_plain: caps.streams,
            retreats: caps.alias,
            quarantined: 0,
            core,
            keeper: None,
        }
    }

    /// The first search.
    pub(crate) fn take(&mut self, need: &Need<'_>) -> Option<u32> {
        let access = Access::Now(need.stream);
        if need.apart.is_empty() {
            self.heap.take_aligned(need.size, need.align, access, &mut self.clocks)
        } else {
            self.take_thorough(need, access)
        }
    }

    /// Every free block that fits, is not to be kept apart from, and may be had in this way; not only the likely ones.
    #[cold]
    pub(crate) fn take_thorough(&mut self, need: &Need<'_>, access: Access) -> Option<u32> {
        let apart = self.slots_apart(need);
        let allowed = |slot| !apart.contains(&slot);
        self.heap.take_within(need.size, need.align, access, &mut self.clocks, allowed)
    }

    /// The slots of the regions that a request must not lie in.
    pub(crate) fn slots_apart(&self, need: &Need<'_>) -> Vec<u16> {
        let is_apart = |slot: &u16| need.apart.contains(&self.heap.region(*slot));
        if need.apart.is_empty() { Vec::new() } else { self.heap.places().filter(is_apart).collect() }
    }

    /// Counts a block that was just taken and says where it is.
    pub(crate) fn grant(&mut self, index: u32, need: &Need<'_>, meter: &Meter) -> Grant {
        self.hand_out(index, need.align, Note::of(need), meter)
    }

    /// As [`State::grant`]. What it is told comes piece by piece, so that it stays in registers.
    #[inline(always)]
    pub(crate) fn hand_out(&mut self, index: u32, align: u64, note: Note, meter: &Meter) -> Grant {
        let (view, noted) = self.heap.owned(index);
        *noted = note;
        let grant = Grant { id: view.id, address: self.bases[usize::from(view.place)] + view.offset };
        let tag = self.tag_use(note.tag);
        tag.live += view.size;
        tag.blocks += 1;
        meter.gave(view.size - u64::from(note.padding), view.size, self.heap.pending());
        if self.keeper.is_none() {
            self.keep_core();
        }
        if self.history.is_some() {
            self.remember_alloc(index, align);
        }
        grant
    }

    /// Writes down what happened to a live block, where a history is kept.
    #[inline(always)]
    fn remember(&mut self, action: Action, index: u32, align: u64) {
        let (block, note) = self.heap.owned(index);
        if let Some(history) = &mut self.history {
            history.write(action, align, block, self.bases[usize::from(block.place)] + block.offset, *note);
        }
    }

    fn remember_use(&mut self, index: u32, stream: StreamId) {
        let (block, note) = self.heap.owned(index);
        if let Some(history) = &mut self.history {
            let address = self.bases[usize::from(block.place)] + block.offset;
            history.write(Action::Use, 1, block, address, note.on(stream));
        }
    }

    #[inline(never)]
    fn remember_alloc(&mut self, index: u32, align: u64) {
        self.remember(Action::Alloc, index, align);
    }

    #[cold]
    fn keep_core(&mut self) {
        self.keeper = Some(self.core.upgrade().expect("a request is served through a handle"));
    }

    #[inline(always)]
    fn tag_use(&mut self, tag: TagId) -> &mut TagUse {
        let at = usize::from(tag.0);
        if at >= self.tags.len() {
            self.tags.resize(at + 1, TagUse::default());
        }
        &mut self.tags[at]
    }

    /// The block comes back: its fence is what its streams have issued until now. Answers what kept the core for the blocks of
    /// this pool if there are none any more: to be dropped without the lock.
    #[inline(always)]
    pub(crate) fn take_back(&mut self, id: BlockId, meter: &Meter) -> Option<Arc<Core>> {
        let index = self.heap.live(id);
        let (Owned { size, .. }, note) = self.heap.owned(index);
        let note = *note;
        if self.history.is_some() {
            self.remember(Action::Free, index, 1);
        }
        let fence = if self.drops_are_plain && !note.is_shared() {
            self.clocks.freed_on(note.stream())
        } else {
            self.fence_of_drop(index, &note)
        };
        self.heap.put_live(index, fence, &mut self.clocks);
        let tag = &mut self.tags[usize::from(note.tag.0)];
        tag.live -= size;
        tag.blocks -= 1;
        meter.took_back(size - u64::from(note.padding), size, self.heap.pending());
        if meter.is_idle() { self.idle() } else { None }
    }

    #[inline(never)]
    fn fence_of_drop(&mut self, index: u32, note: &Note) -> FenceId {
        if !self.streams {
            return FenceId::NONE;
        }
        let mut users = self.users.remove(&index).unwrap_or_default();
        users.extend_from_slice(&self.recordings);
        self.clocks.freed_by_all(note.stream(), &users)
    }

    /// The owner of a live block is gone, and debug mode keeps it. Answers as [`State::take_back`] when that was the last owner.
    pub(crate) fn enters_quarantine(&mut self, meter: &Meter) -> Option<Arc<Core>> {
        self.quarantined += 1;
        if meter.read().blocks.current == self.quarantined { self.keeper.take() } else { None }
    }

    /// A block that debug mode kept comes back.
    #[cold]
    #[inline(never)]
    pub(crate) fn leaves_quarantine(&mut self, id: BlockId, meter: &Meter) -> Option<Arc<Core>> {
        self.quarantined -= 1;
        self.take_back(id, meter)
    }

    #[cold]
    fn idle(&mut self) -> Option<Arc<Core>> {
        if self.retreats && self.heap.is_scattered() {
            // The next request finds nothing live: a good moment to bring free pages together.
            self.next_care = 0;
        }
        self.keeper.take()
    }

    /// A recording is open from now on.
    pub(crate) fn recording_opened(&mut self, number: StreamId) {
        self.recordings.push(number);
        self.drops_are_plain = false;
        self.clocks.set_recording(number, true);
    }

    /// A recording was submitted, or will never be: what comes on the queue later comes behind it.
    pub(crate) fn recording_closed(&mut self, number: StreamId) {
        self.recordings.retain(|open| *open != number);
        self.drops_are_plain = self.streams && self.recordings.is_empty();
        self.clocks.set_recording(number, false);
        self.clocks.ordered_behind(StreamId(0), number);
    }

    pub(crate) fn use_on(&mut self, id: BlockId, stream: StreamId) {
        let index = self.heap.live(id);
        let note = self.heap.note_mut(index);
        if note.stream() == stream {
            return;
        }
        note.stream |= Note::SHARED;
        let users = self.users.entry(index).or_default();
        if !users.contains(&stream) {
            users.push(stream);
            self.remember_use(index, stream);
        }
    }

    /// Whether a live block is used on a stream. Linear in the number of blocks.
    pub(crate) fn is_used_on(&self, stream: StreamId) -> bool {
        let own =
            |block: crate::heap::BlockView<Note>| block.state == BlockState::Live && block.note.stream() == stream;
        self.users.values().any(|users| users.contains(&stream))
            || self.heap.places().any(|place| self.heap.blocks(place).any(own))
    }

    /// Whether it is time to look for completed work and the like.
    #[inline(always)]
    pub(crate) fn care_is_due(&self, meter: &Meter) -> bool {
        meter.allocations() >= self.next_care
    }

    /// The next time starts now, later where many blocks are live: care may look at each of the free ones between them, and is to
    /// cost each allocation as little. Answers whether there is anything to look for.
    pub(crate) fn care_begins(&mut self, meter: &Meter) -> bool {
        self.next_care = meter.allocations() + u64::from(self.poll_every).max(meter.live_blocks() / 2);
        self.streams
    }

    pub(crate) fn set_poll_every(&mut self, every: u32) {
        self.poll_every = every;
        self.next_care = 0;
    }

    /// A region's slot in the heap, with its base remembered.
    pub(crate) fn add_region(&mut self, region: Region, page: Option<u64>) -> Option<u16> {
        let place = self.heap.add_region(region.id, region.size, page)?;
        let at = usize::from(place);
        if at >= self.bases.len() {
            self.bases.resize(at + 1, 0);
        }
        self.bases[at] = region.base;
        Some(place)
    }

    /// Segments that are one free block: bytes, slot, block, and whether the work on it is complete.
    fn empty_segments(&self) -> impl Iterator<Item = (u64, u16, u32, bool)> + '_ {
        self.heap.places().filter_map(|place| {
            let index = self.heap.whole(place)?;
            let view = self.heap.view(index);
            (view.state == BlockState::Free).then(|| (view.size, place, index, self.clocks.complete(view.fence)))
        })
    }

    /// Of the empty segments of at most `most` bytes whose work is complete, the smallest of at least `wanted`, or else the largest.
    pub(crate) fn complete_empty(&self, wanted: u64, most: u64) -> Option<(u16, u32)> {
        let complete = || self.empty_segments().filter(|segment| segment.3 && segment.0 <= most);
        let enough = complete().filter(|segment| segment.0 >= wanted).min();
        enough.or_else(|| complete().max()).map(|(_, place, index, _)| (place, index))
    }

    /// Whether there is an empty segment whose work is not known to be complete.
    pub(crate) fn has_unfinished_empty(&self) -> bool {
        self.empty_segments().any(|segment| !segment.3)
    }

    /// Addresses in use: to the end of the last mapped page of each region.
    pub(crate) fn addresses(&self) -> u64 {
        self.heap.places().map(|place| self.heap.top(place)).sum()
    }
}

impl Pool {
    pub(crate) fn new(name: &str, config: PoolConfig, state: State) -> Pool {
        Pool {
            name: name.to_string(),
            tag: config.tag.as_deref().map_or(TagId::NONE, TagId::of),
            config: RwLock::new(Rank::PoolConfig, config),
            state: BriefMutex::new(Rank::State, state),
            meter: Meter::default(),
            pinned: AtomicBool::new(false),
        }
    }

    /// Whether its pages must stay where they are.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned.load(Relaxed)
    }

    pub(crate) fn pin(&self, pinned: bool) {
        self.pinned.store(pinned, Relaxed);
    }

    /// Walks the pool and compares it with its figures. Answers its reserved bytes.
    pub(crate) fn walk(&self) -> Result<u64, String> {
        let state = self.state.lock();
        state.heap.check().map_err(|broken| broken.to_string())?;
        let (mut live, mut requested, mut blocks, mut backed, mut shared) = (0, 0, 0, 0, 0);
        let mut tags = vec![TagUse::default(); state.tags.len()];
        for block in state.heap.places().flat_map(|place| state.heap.blocks(place)) {
            match block.state {
                BlockState::Live => {
                    live += block.size;
                    requested += block.size - u64::from(block.note.padding);
                    blocks += 1;
                    tags[usize::from(block.note.tag.0)].live += block.size;
                    shared += usize::from(block.note.is_shared());
                    backed += block.size;
                }
                BlockState::Free | BlockState::Held => backed += block.size,
                BlockState::Void | BlockState::Filling | BlockState::Retired | BlockState::Vacant => {}
            }
        }
        let stats = self.meter.read();
        let said = [
            stats.live.current,
            stats.requested.current,
            stats.blocks.current,
            stats.reserved.current,
            stats.pending.current,
        ];
        let is = [live, requested, blocks, backed, state.heap.pending()];
        if said != is {
            return Err(format!(
                "live, requested, blocks, reserved, pending are said to be {said:?}, a walk finds {is:?}"
            ));
        }
        if tags.iter().map(|tag| tag.live).ne(state.tags.iter().map(|tag| tag.live)) {
            return Err("the bytes by tag".to_string());
        }
        if shared != state.users.len() {
            return Err(format!("{shared} blocks are used by several streams, {} are listed", state.users.len()));
        }
        let chain = [stats.requested.current, stats.live.current, stats.active.current, stats.reserved.current];
        if !chain.is_sorted() { Err(format!("requested, live, active, reserved: {chain:?}")) } else { Ok(backed) }
    }
}
