//! The slow part of a random program: windows claimed and filled, pages moved, retired and returned, while others take and put.

use larder::heap::{Claim, Preference, Source, State, Window};
use larder::ids::{Access, FenceId, Fences};

use super::program::Program;
use super::shadow::{Kind, Piece, Shadow};

/// A slow rung at work: a claimed window, and held pages that will move into it.
pub struct Job {
    window: Window,
    claim: Claim,
    /// Target, and the source that moves there (none: new memory).
    chunks: Vec<(u32, Option<u32>)>,
}

impl Program {
    pub fn begin_job(&mut self) {
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
    pub fn gather(&mut self, access: Access, wanted: u64) -> Vec<u32> {
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

    pub fn let_go(&mut self, index: u32) -> Vec<Piece> {
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
    pub fn finish_job(&mut self) {
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

    pub fn unmap_retired(&mut self) {
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

    pub fn return_pages(&mut self) {
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

    pub fn change_segments(&mut self) {
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
}
