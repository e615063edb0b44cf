//! Random programs over a heap, each step compared with the shadow: takes and puts in between the slow work of one rung, as in
//! the allocator, where the rung holds blocks while others go on.

use larder::heap::{Heap, Preference};
use larder::ids::{Access, BlockId, FenceId, RegionId, StreamId};
use larder::units::{KIB, MIB};

use super::common::Rng;
use super::fences::{Counted, STREAMS};
use super::jobs::Job;
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

pub const SMALL: Shape =
    Shape { quantum: 256, page: 4 * KIB, region_pages: 24, live_max: 24, align_max: 16 * KIB, check_every: 1 };
pub const MIDDLE: Shape =
    Shape { quantum: 512, page: 64 * KIB, region_pages: 64, live_max: 200, align_max: 256 * KIB, check_every: 64 };
pub const LARGE: Shape =
    Shape { quantum: 512, page: 2 * MIB, region_pages: 512, live_max: 700, align_max: 8 * MIB, check_every: 64 };

/// The parts of a program that are counted.
pub const PARTS: [&str; 10] = [
    "blocks taken",
    "blocks held behind a wait",
    "windows filled",
    "windows given up",
    "pages moved, in pieces",
    "old addresses unmapped, in pieces",
    "pages returned, in pieces",
    "segments removed",
    "blocks split off",
    "blocks that joined a neighbour",
];

pub struct Live {
    pub id: BlockId,
    pub index: u32,
    pub note: u64,
}

pub struct Program {
    pub shape: Shape,
    pub heap: Heap<u64>,
    pub fences: Counted,
    pub shadow: Shadow,
    pub rng: Rng,
    pub live: Vec<Live>,
    pub stale: Vec<BlockId>,
    /// What free pieces were when they were held, by index of the held block.
    pub held: Vec<(u32, Vec<Piece>)>,
    pub retired: Vec<(u32, Vec<Piece>)>,
    pub job: Option<Job>,
    pub next: u64,
    pub regions: u32,
    pub segments: Vec<u16>,
    /// How often each part of the program did something, so that a run can show that it did.
    pub done: [u64; PARTS.len()],
}

impl Program {
    pub fn new(shape: Shape, rng: Rng) -> Self {
        let mut program = Program {
            shape,
            heap: Heap::new(shape.quantum),
            fences: Counted::default(),
            shadow: Shadow::default(),
            rng,
            live: Vec::new(),
            stale: Vec::new(),
            held: Vec::new(),
            retired: Vec::new(),
            job: None,
            next: 0,
            regions: 0,
            segments: Vec::new(),
            done: [0; PARTS.len()],
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

    pub fn add_segment(&mut self) {
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

    /// So many steps, or fewer when chance is spent.
    pub fn run(&mut self, steps: u64) {
        for step in 0..steps {
            if self.rng.is_spent() {
                break;
            }
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

    pub fn access(&mut self) -> Access {
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

    pub fn size(&mut self) -> u64 {
        let quanta = match self.rng.below(8) {
            0 => self.rng.range(1, 8 * self.shape.page / self.shape.quantum),
            1 => self.rng.range(1, 8) * self.shape.page / self.shape.quantum,
            _ => self.rng.skewed(self.shape.page / self.shape.quantum),
        };
        quanta * self.shape.quantum
    }

    pub fn align(&mut self) -> u64 {
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
            // Free neighbours are joined at once, so one that is free beside a new block was one with it.
            let (place, offset, size) = self.heap.place(index);
            self.done[8] += u64::from(self.shadow.is_free_beside(place, offset, size));
        }
    }

    /// A block that was just taken: exact, aligned, out of free bytes that could be had in this way.
    pub fn owned(&mut self, index: u32, size: u64, align: u64, access: Access) {
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
        self.done[9] += u64::from(len > size);
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
        let Some(index) = self.heap.hold_fewest(size, align, &mut self.fences, |f, _, fence| Some(f.waits(fence)))
        else {
            return;
        };
        self.done[1] += 1;
        if self.rng.one_in(3) {
            self.heap.unhold(index, &mut self.fences);
            return;
        }
        let index = self.heap.own_held(index, &mut self.fences);
        self.owned(index, size, align, Access::AfterWait);
    }

    // ---- the end ----------------------------------------------------------------------------------------------------------------

    /// Everything is freed, every region taken in one block, and taken away; no fence is left.
    pub fn end(mut self) -> [u64; PARTS.len()] {
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
