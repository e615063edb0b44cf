//! Random programs over a heap, each step compared with the shadow: takes and puts in between the slow work of one rung, as in
//! the allocator, where the rung holds blocks while others go on.

use larder::heap::{Claim, Heap, Preference, Source, State, Window};
use larder::ids::{Access, BlockId, FenceId, Fences, RegionId, StreamId};

use super::common::Rng;
use super::fences::{Counted, STREAMS};
use super::shadow::{Kind, Piece, Shadow};

/// What heap to drive. Sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub quantum: u64,
    pub page: u64,
    pub region_pages: u64,
    pub live_max: usize,
    pub align_max: u64,
    /// Steps between two checks.
    pub check_every: u64,
}

struct Live {
    id: BlockId,
    index: u32,
    note: u64,
}

/// A slow rung at work: a claimed window, and held pages that will move into it.
struct Job {
    window: Window,
    claim: Claim,
    /// Target, and the source that moves there (none: new memory).
    chunks: Vec<(u32, Option<u32>)>,
}

pub struct Program {
    shape: Shape,
    pub heap: Heap<u64>,
    fences: Counted,
    shadow: Shadow,
    rng: Rng,
    live: Vec<Live>,
    stale: Vec<BlockId>,
    /// What free pieces were when they were held, by index of the held block.
    held: Vec<(u32, Vec<Piece>)>,
    retired: Vec<(u32, Vec<Piece>)>,
    job: Option<Job>,
    next: u64,
    regions: u32,
    segments: Vec<u16>,
    /// How often each part of the program did something, so that a run can show that it did.
    pub done: [u64; 8],
}

impl Program {
    pub fn new(shape: Shape, seed: u64) -> Self {
        let mut program = Program {
            shape,
            heap: Heap::new(shape.quantum),
            fences: Counted::default(),
            shadow: Shadow::default(),
            rng: Rng::new(seed),
            live: Vec::new(),
            stale: Vec::new(),
            held: Vec::new(),
            retired: Vec::new(),
            job: None,
            next: 0,
            regions: 0,
            segments: Vec::new(),
            done: [0; 8],
        };
        program.add_paged();
        program.add_segment();
        program
    }

    fn add_paged(&mut self) {
        let size = self.shape.region_pages * self.shape.page;
        let id = RegionId(self.regions);
        self.regions += 1;
        let place = self.heap.add_region(id, size, Some(self.shape.page)).unwrap();
        assert_eq!(self.heap.region(place), id);
        self.shadow.add(place, size, Kind::Void);
    }

    fn add_segment(&mut self) {
        let size = self.rng.range(1, 4 * self.shape.page / self.shape.quantum) * self.shape.quantum;
        let place = self.heap.add_region(RegionId(self.regions), size, None).unwrap();
        self.regions += 1;
        self.shadow.add(place, size, Kind::Fresh);
        self.segments.push(place);
    }

    pub fn check(&self) {
        self.heap.check().unwrap();
        self.shadow.compare(&self.heap, &self.fences);
        for live in &self.live {
            assert_eq!((self.heap.get(live.id), *self.heap.note(live.index)), (Some(live.index), live.note));
        }
    }

    pub fn run(&mut self, steps: u64) {
        for step in 0..steps {
            // Tides: blocks pile up, and go.
            let rising = step / 96 % 3 < 2;
            self.step(rising);
            if step % self.shape.check_every == 0 {
                self.check();
            }
        }
    }

    fn step(&mut self, rising: bool) {
        let crowded = self.live.len() >= self.shape.live_max;
        let takes = if rising { 32 } else { 16 };
        match self.rng.below(64) {
            part if part < takes && !crowded => self.take(),
            0..=49 => self.put(),
            50..=53 => self.complete(),
            54..=59 if self.job.is_some() => self.finish_job(),
            54..=59 => self.begin_job(),
            60 => self.unmap_retired(),
            61 => self.return_pages(),
            62 => self.take_behind_wait(),
            _ if self.rng.one_in(2) => self.change_segments(),
            _ => {
                self.heap.refresh_fences(&mut self.fences);
            }
        }
    }

    fn access(&mut self) -> Access {
        match self.rng.below(8) {
            0 => Access::Completed,
            1 => Access::AfterWait,
            _ => Access::Now(StreamId(self.stream() as u16)),
        }
    }

    /// Most work is on one stream.
    fn stream(&mut self) -> usize {
        if self.rng.one_in(3) { self.rng.below(STREAMS as u64) as usize } else { 0 }
    }

    fn size(&mut self) -> u64 {
        let quanta = match self.rng.below(8) {
            0 => self.rng.range(1, 8 * self.shape.page / self.shape.quantum),
            1 => self.rng.range(1, 8) * self.shape.page / self.shape.quantum,
            _ => self.rng.skewed(self.shape.page / self.shape.quantum),
        };
        quanta * self.shape.quantum
    }

    fn align(&mut self) -> u64 {
        let most = self.shape.align_max.trailing_zeros() as u64;
        1 << self.rng.range(0, most)
    }

    // ---- taking and putting ------------------------------------------------------------------------------------------------

    fn take(&mut self) {
        let (size, access) = (self.size(), self.access());
        let align = if self.rng.one_in(4) { self.align() } else { 1 };
        let taken = match self.rng.below(4) {
            0 => self.heap.take_thorough(size, align, access, &mut self.fences),
            _ if align > 1 => self.heap.take_aligned(size, align, access, &mut self.fences),
            _ => self.heap.take(size, access, &mut self.fences),
        };
        if let Some(index) = taken {
            self.done[0] += 1;
            self.owned(index, size, align, access);
        }
    }

    /// A block that was just taken: exact, aligned, out of free bytes that could be had in this way.
    fn owned(&mut self, index: u32, size: u64, align: u64, access: Access) {
        let (place, offset, took) = self.heap.place(index);
        let id = self.heap.id(index);
        assert_eq!((took, offset % align), (size, 0), "{id:?} at {offset}");
        let old = self.shadow.turn(place, offset, size, Kind::is_free, Kind::Live(id));
        assert!(Shadow::all_pass(&old, access, &self.fences), "{id:?} is had by {access:?} over {old:?}");
        self.next += 1;
        *self.heap.note_mut(index) = self.next;
        self.live.push(Live { id, index, note: self.next });
    }

    fn put(&mut self) {
        if self.live.is_empty() {
            return;
        }
        let at = self.rng.below(self.live.len() as u64) as usize;
        let live = self.live.swap_remove(at);
        assert_eq!((self.heap.live(live.id), *self.heap.note(live.index)), (live.index, live.note));
        let (place, offset, size) = self.heap.place(live.index);
        let stream = self.stream();
        let (fence, kind) = match self.rng.below(8) {
            0 => (FenceId::NONE, Kind::Fresh),
            _ => {
                let (fence, counter) = self.fences.freed_on(stream);
                (fence, Kind::Freed(stream, counter))
            }
        };
        let became = self.heap.put(live.index, fence, &mut self.fences);
        let (_, from, len) = self.heap.place(became);
        assert!(from <= offset && offset + size <= from + len);
        self.shadow.turn(place, offset, size, |kind| kind == Kind::Live(live.id), kind);
        self.stale.push(live.id);
        if self.stale.len() > 256 {
            let old = self.stale.len() - 128;
            self.stale.drain(..old);
        }
        let stale = self.rng.pick(&self.stale);
        assert_eq!(self.heap.get(stale), None, "{stale:?} was put");
    }

    fn complete(&mut self) {
        let back = self.rng.below(4) as u32 * 2;
        for stream in 0..STREAMS {
            if self.rng.one_in(2) {
                self.fences.complete(stream, back);
            }
        }
        if self.rng.one_in(2) {
            self.heap.refresh_fences(&mut self.fences);
        }
    }

    fn take_behind_wait(&mut self) {
        let (size, align) = (self.size(), self.align());
        let Some(index) = self.heap.hold_fewest(size, align, &mut self.fences, Counted::waits) else { return };
        self.done[1] += 1;
        if self.rng.one_in(3) {
            self.heap.unhold(index, &mut self.fences);
            return;
        }
        let index = self.heap.own_held(index, &mut self.fences);
        self.owned(index, size, align, Access::AfterWait);
    }

    // ---- windows and pages --------------------------------------------------------------------------------------------------

    fn begin_job(&mut self) {
        let (size, align, access) = (self.size(), self.align(), self.access());
        let size = if self.rng.one_in(2) { size + self.rng.range(1, 4) * self.shape.page } else { size };
        let prefer = self.rng.pick(&[Preference::FewestPages, Preference::Inside]);
        let Some(window) = self.heap.best_window(size, align, prefer, access, &self.fences) else { return };
        assert_eq!((window.size, window.start % align), (size, 0));
        let claim = self.heap.claim(&window, &mut self.fences);
        let missing: u64 = claim.voids.iter().map(|index| self.heap.place(*index).2).sum();
        assert_eq!(missing, window.missing, "{window:?}");
        for index in &claim.voids {
            let (place, offset, size) = self.heap.place(*index);
            self.shadow.turn(place, offset, size, |kind| kind == Kind::Void, Kind::Filling);
        }
        for index in &claim.held {
            self.hold(*index, access);
        }
        let moves = !self.rng.one_in(4);
        let sources = if moves { self.gather(access, window.missing) } else { Vec::new() };
        let chunks = self.cut_chunks(&claim, &sources);
        self.job = Some(Job { window, claim, chunks });
    }

    fn hold(&mut self, index: u32, access: Access) {
        let (place, offset, size) = self.heap.place(index);
        let old = self.shadow.turn(place, offset, size, Kind::is_free, Kind::Held);
        assert!(Shadow::all_pass(&old, access, &self.fences), "b{index} is held for {access:?} over {old:?}");
        self.held.push((index, old));
    }

    /// Free pages elsewhere, held.
    fn gather(&mut self, access: Access, wanted: u64) -> Vec<u32> {
        let (mut left, mut sources) = (wanted, Vec::<Source>::new());
        if wanted > 0 {
            self.heap.sources(access, &self.fences, |source| {
                let source = self.heap.shrink_source(source, left);
                left -= source.size;
                sources.push(source);
                left > 0
            });
        }
        let page = self.shape.page;
        let hold = |source: Source| {
            assert!(source.size > 0 && source.start.is_multiple_of(page) && source.size.is_multiple_of(page));
            let index = self.heap.hold(source.index, source.start, source.size, &mut self.fences);
            self.hold(index, access);
            index
        };
        sources.into_iter().map(hold).collect()
    }

    fn cut_chunks(&mut self, claim: &Claim, sources: &[u32]) -> Vec<(u32, Option<u32>)> {
        let mut sources = sources.iter().copied();
        let mut source = sources.next();
        let mut chunks = Vec::new();
        for void in &claim.voids {
            let mut to = Some(*void);
            while let Some(void) = to {
                let wanted = self.heap.place(void).2;
                let size = source.map_or(wanted, |index| self.heap.place(index).2.min(wanted));
                to = (size < wanted).then(|| self.heap.cut_filling(void, size));
                if let Some(rest) = to {
                    self.same_again(&[void, rest], Kind::Filling);
                }
                chunks.push((void, source));
                source = match source {
                    Some(index) if self.heap.place(index).2 > size => Some(self.cut_held(index, size)),
                    Some(_) => sources.next(),
                    None => None,
                };
            }
        }
        assert!(source.is_none() || chunks.is_empty(), "more pages are held than needed");
        chunks
    }

    fn same_again(&mut self, parts: &[u32], kind: Kind) {
        for part in parts {
            let (place, offset, size) = self.heap.place(*part);
            self.shadow.turn(place, offset, size, |was| was == kind, kind);
        }
    }

    fn cut_held(&mut self, index: u32, size: u64) -> u32 {
        let rest = self.heap.cut_held(index, size, &mut self.fences);
        self.same_again(&[index, rest], Kind::Held);
        let mut pieces = self.let_go(index);
        let (mut first, mut left) = (Vec::new(), size);
        while left > 0 {
            let take = pieces[0].0.min(left);
            first.push((take, pieces[0].1));
            pieces[0].0 -= take;
            if pieces[0].0 == 0 {
                pieces.remove(0);
            }
            left -= take;
        }
        self.held.push((index, first));
        self.held.push((rest, pieces));
        rest
    }

    fn let_go(&mut self, index: u32) -> Vec<Piece> {
        let at = self.held.iter().position(|held| held.0 == index).expect("a held block");
        self.held.swap_remove(at).1
    }

    fn unhold(&mut self, index: u32) -> u32 {
        let (place, offset, size) = self.heap.place(index);
        assert_eq!(self.heap.view(index).state, State::Held);
        let pieces = self.let_go(index);
        self.shadow.take(place, offset, size);
        self.shadow.put(place, offset, &pieces);
        self.heap.unhold(index, &mut self.fences)
    }

    /// The driver has answered: some first chunks are done, the rest is as it was. Only when all are is there a window to take.
    fn finish_job(&mut self) {
        let Some(Job { window, claim, chunks }) = self.job.take() else { return };
        let count = chunks.len();
        let done = if self.rng.one_in(3) { self.rng.below(count as u64 + 1) as usize } else { count };
        let mut index = 0;
        for (to, from) in &chunks[..done] {
            index = match from {
                Some(from) => self.move_pages(*to, *from),
                None => self.fill(*to, FenceId::NONE, &[(self.heap.place(*to).2, Kind::Fresh)]),
            };
        }
        for (to, from) in &chunks[done..] {
            let (place, offset, size) = self.heap.place(*to);
            self.heap.unfill(*to);
            self.shadow.turn(place, offset, size, |kind| kind == Kind::Filling, Kind::Void);
            from.map(|from| self.unhold(from));
        }
        for held in &claim.held {
            index = self.unhold(*held);
        }
        if done == count {
            self.done[2] += 1;
            let taken = self.heap.carve(index, window.start, window.size, &mut self.fences);
            self.owned(taken, window.size, 1, Access::AfterWait);
        } else {
            self.done[3] += 1;
        }
    }

    fn fill(&mut self, to: u32, fence: FenceId, pieces: &[Piece]) -> u32 {
        let (place, offset, size) = self.heap.place(to);
        self.shadow.turn(place, offset, size, |kind| kind == Kind::Filling, Kind::Void);
        self.shadow.take(place, offset, size);
        self.shadow.put(place, offset, pieces);
        self.heap.fill(to, fence, &mut self.fences)
    }

    fn move_pages(&mut self, to: u32, from: u32) -> u32 {
        self.done[4] += 1;
        let pieces = self.let_go(from);
        let (place, offset, size) = self.heap.place(from);
        let fence = self.fences.copy(self.heap.fence(from));
        let index = self.fill(to, fence, &pieces);
        if self.rng.one_in(2) {
            self.heap.retire(from);
            self.shadow.turn(place, offset, size, |kind| kind == Kind::Held, Kind::Retired);
            self.retired.push((from, pieces));
        } else {
            self.heap.forget_backing(from, &mut self.fences);
            self.shadow.turn(place, offset, size, |kind| kind == Kind::Held, Kind::Void);
        }
        index
    }

    fn unmap_retired(&mut self) {
        let complete = |index: u32| self.fences.passes(self.heap.fence(index), Access::Completed);
        let (ready, waiting) = std::mem::take(&mut self.retired).into_iter().partition(|(index, _)| complete(*index));
        self.retired = waiting;
        let ready: Vec<(u32, Vec<Piece>)> = ready;
        for (index, pieces) in ready {
            assert!(
                Shadow::all_pass(&pieces, Access::Completed, &self.fences),
                "b{index} is unmapped under {pieces:?}"
            );
            let (place, offset, size) = self.heap.place(index);
            self.heap.forget_backing(index, &mut self.fences);
            self.shadow.turn(place, offset, size, |kind| kind == Kind::Retired, Kind::Void);
            self.done[5] += 1;
        }
    }

    fn return_pages(&mut self) {
        let wanted = self.rng.range(1, 8) * self.shape.page;
        let before = self.shadow.backed();
        let sources = self.gather(Access::Completed, wanted);
        let mut returned = 0;
        for index in sources {
            if self.rng.one_in(4) {
                self.unhold(index);
                continue;
            }
            self.let_go(index);
            let (place, offset, size) = self.heap.place(index);
            self.heap.forget_backing(index, &mut self.fences);
            self.shadow.turn(place, offset, size, |kind| kind == Kind::Held, Kind::Void);
            returned += size;
            self.done[6] += 1;
        }
        assert_eq!(before - self.shadow.backed(), returned);
    }

    fn change_segments(&mut self) {
        let free = |place: &u16| self.heap.whole(*place).is_some_and(|b| self.heap.view(b).state == State::Free);
        let at = self.segments.iter().position(free);
        match at {
            Some(at) if self.segments.len() > 1 => {
                let place = self.segments.swap_remove(at);
                self.heap.remove_region(place, &mut self.fences);
                self.shadow.remove(place);
                self.done[7] += 1;
            }
            _ if self.segments.len() < 4 => self.add_segment(),
            _ => {}
        }
    }

    // ---- the end ----------------------------------------------------------------------------------------------------------------

    /// Everything is freed, every region taken in one block, and taken away; no fence is left.
    pub fn end(mut self) -> [u64; 8] {
        self.finish_job();
        while !self.live.is_empty() {
            self.put();
        }
        (0..STREAMS).for_each(|stream| self.fences.complete(stream, 0));
        self.unmap_retired();
        self.heap.refresh_fences(&mut self.fences);
        self.check();
        assert_eq!((self.retired.len(), self.held.len(), self.heap.pending()), (0, 0, 0));
        let wanted = self.shape.region_pages * self.shape.page;
        for index in self.gather(Access::Completed, wanted) {
            self.let_go(index);
            let (place, offset, size) = self.heap.place(index);
            self.heap.forget_backing(index, &mut self.fences);
            self.shadow.turn(place, offset, size, |kind| kind == Kind::Held, Kind::Void);
        }
        self.check();
        for place in self.heap.places().collect::<Vec<_>>() {
            self.take_whole(place);
        }
        assert_eq!((self.heap.places().count(), self.fences.refs), (0, 0), "fences that were never ended");
        self.heap.check().unwrap();
        self.done
    }

    fn take_whole(&mut self, place: u16) {
        let (size, page) = self.heap.extent(place);
        let whole = self.heap.whole(place).expect("one block");
        let mut index = whole;
        if page.is_some() {
            let access = Access::Completed;
            let window = self.heap.best_window(size, 1, Preference::FewestPages, access, &self.fences).unwrap();
            assert_eq!((window.start, window.missing), (0, size));
            let claim = self.heap.claim(&window, &mut self.fences);
            index = self.heap.fill(claim.voids[0], FenceId::NONE, &mut self.fences);
        }
        let taken = self.heap.carve(index, 0, size, &mut self.fences);
        assert_eq!(self.heap.place(taken), (place, 0, size));
        self.heap.put(taken, FenceId::NONE, &mut self.fences);
        self.heap.remove_region(place, &mut self.fences);
    }
}
