//! Windows: stretches of free and void addresses that could hold a request once the voids among them are backed, and the
//! free pages elsewhere that could do it.
//!
//! A window is found by walking outward from the voids, so it costs as much as there are voids; it is only looked for when no
//! free block fits. Finding and claiming change nothing that is physical: the caller backs the voids of a [`Claim`], or moves
//! pages there, between [`Heap::claim`] and [`Heap::fill`].

use super::{Heap, State, whole_pages};
use crate::ids::{Access, FenceId, Fences};
use crate::units::{align_down, align_up};

/// How many neighbours on each side of a void may join a window.
const REACH: usize = 16;

/// Which window is best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference {
    /// The one that takes the fewest pages, new and free ones together, and so uses most of what is partly live; of equals the one that
    /// needs the fewest backed, then the lowest, the open end of a region last.
    FewestPages,
    /// As above among those below the open end; the open end only when there is no other.
    Inside,
    /// The one that begins lowest.
    Lowest,
}

/// A stretch of addresses that could hold a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Slot of the region.
    pub place: u16,
    /// First byte, aligned as asked for.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Bytes of voids to back, whole pages.
    pub missing: u64,
    /// Bytes of whole free pages used.
    pub whole: u64,
    /// Whether it uses the void that ends the region.
    pub open: bool,
    /// The block that covers `start`.
    first: u32,
}

/// A window taken out of the bins: its free parts are held, its voids are filling.
#[derive(Debug, Default)]
pub struct Claim {
    /// The free parts.
    pub held: Vec<u32>,
    /// The parts to back, by address.
    pub voids: Vec<u32>,
}

/// Whole pages of a free block that could move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The free block.
    pub index: u32,
    /// First byte.
    pub start: u64,
    /// Bytes, whole pages.
    pub size: u64,
}

impl<N: Copy + Default> Heap<N> {
    /// The best window for a request. Free parts count only when their fence lets `access` pass.
    pub fn best_window(
        &self,
        size: u64,
        align: u64,
        prefer: Preference,
        access: Access,
        fences: &impl Fences,
    ) -> Option<Window> {
        let mut best: Option<Window> = None;
        let mut bin = self.voids.next(0);
        while let Some(b) = bin {
            let mut index = self.voids.head(b);
            while index != 0 {
                if let Some(window) = self.window_around(index, size, align, access, fences)
                    && best.is_none_or(|best| key(&window, prefer) < key(&best, prefer))
                {
                    best = Some(window);
                }
                index = self.table[index].bin_next;
            }
            bin = self.voids.next(b + 1);
        }
        best
    }

    /// The better of the lowest and the highest placement in the run of free and void blocks around a void.
    fn window_around(&self, void: u32, size: u64, align: u64, access: Access, fences: &impl Fences) -> Option<Window> {
        let first = self.walk(void, access, fences, |record| record.prev);
        let last = self.walk(void, access, fences, |record| record.next);
        let low = self.table[first].offset;
        let high = self.table[last].offset + self.table[last].size;
        let open = self.table[last].next == 0 && self.table[last].state == State::Void;
        let lowest = align_up(low, align)?;
        let fits = |start: u64| start >= low && start.checked_add(size).is_some_and(|end| end <= high);
        if !fits(lowest) {
            return None;
        }
        let window = |start| self.window_at(first, start, size);
        let low_window = window(lowest);
        let highest = align_down(high - size, align);
        if open || !fits(highest) {
            return Some(low_window);
        }
        let high_window = window(highest);
        Some(if key(&high_window, Preference::FewestPages) < key(&low_window, Preference::FewestPages) {
            high_window
        } else {
            low_window
        })
    }

    fn walk(&self, from: u32, access: Access, fences: &impl Fences, step: impl Fn(&super::Record<N>) -> u32) -> u32 {
        let mut index = from;
        for _ in 0..REACH {
            let next = step(&self.table[index]);
            let record = &self.table[next];
            if record.state != State::Void && !(record.state == State::Free && fences.passes(record.fence, access)) {
                break;
            }
            index = next;
        }
        index
    }

    fn window_at(&self, first: u32, start: u64, size: u64) -> Window {
        let place = self.table[first].region;
        let page = self.extent(place).1.expect("only paged regions have voids");
        let mut first = first;
        while self.table[first].offset + self.table[first].size <= start {
            first = self.table[first].next;
        }
        let (mut missing, mut whole, mut open, mut index) = (0, 0, false, first);
        while index != 0 && self.table[index].offset < start + size {
            let record = &self.table[index];
            if record.state == State::Void {
                let (from, to) = overlap(record.offset, record.size, start, size, page);
                missing += to - from;
                open |= record.next == 0;
            } else {
                let pages = whole_pages(record.offset, record.size, page);
                let (from, to) = overlap(record.offset, record.size, start, size, page);
                whole += to.min(pages.end).saturating_sub(from.max(pages.start));
            }
            index = record.next;
        }
        Window { place, start, size, missing, whole, open, first }
    }

    /// Takes a window, as just found, out of the bins.
    pub fn claim(&mut self, window: &Window, fences: &mut impl Fences) -> Claim {
        let page = self.extent(window.place).1.expect("only paged regions have voids");
        let end = window.start + window.size;
        let mut claim = Claim::default();
        let mut index = window.first;
        while index != 0 && self.table[index].offset < end {
            let (offset, size) = (self.table[index].offset, self.table[index].size);
            let taken = match self.table[index].state {
                State::Free => {
                    let from = offset.max(window.start);
                    let to = (offset + size).min(end);
                    let taken = self.hold(index, from, to - from, fences);
                    claim.held.push(taken);
                    taken
                }
                State::Void => {
                    let (from, to) = overlap(offset, size, window.start, window.size, page);
                    let taken = self.detach_void(index, from, to - from);
                    claim.voids.push(taken);
                    taken
                }
                state => panic!("b{index} is {state:?} in a window"),
            };
            index = self.table[taken].next;
            // What was cut off behind the window is not part of it.
            if self.table[taken].offset + self.table[taken].size >= end {
                break;
            }
        }
        claim
    }

    fn detach_void(&mut self, index: u32, start: u64, size: u64) -> u32 {
        let offset = self.table[index].offset;
        self.remove_void(index);
        let mut taken = index;
        if start > offset {
            taken = self.cut(index, start - offset);
            self.insert_void(index);
        }
        if self.table[taken].size > size {
            let rest = self.cut(taken, size);
            self.insert_void(rest);
        }
        self.table[taken].state = State::Filling;
        taken
    }

    /// Cuts a filling block after `size` bytes, so that its parts can be filled one by one. Answers the second part.
    pub fn cut_filling(&mut self, index: u32, size: u64) -> u32 {
        debug_assert_eq!(self.table[index].state, State::Filling);
        let rest = self.cut(index, size);
        self.table[rest].state = State::Filling;
        rest
    }

    /// A filling block is backed now, by pages whose earlier work is in `fence`: it becomes free. Answers the free block that
    /// it became part of.
    pub fn fill(&mut self, index: u32, fence: FenceId, fences: &mut impl Fences) -> u32 {
        assert_eq!(self.table[index].state, State::Filling, "b{index} is filled");
        self.table[index].state = State::Held;
        self.put(index, fence, fences)
    }

    /// Nothing came behind a filling block: it is a void as before.
    pub fn unfill(&mut self, index: u32) {
        assert_eq!(self.table[index].state, State::Filling, "b{index} is not filled");
        self.make_void(index);
    }

    /// Free blocks that hold whole pages, from small to large, as the pages they hold. Linear in the free blocks of at least
    /// a page when all are asked for.
    pub fn sources(&self, access: Access, fences: &impl Fences, mut each: impl FnMut(Source) -> bool) {
        let Some(page) = self.places.iter().flatten().filter_map(|place| place.page).min() else { return };
        let mut bin = self.free.next(super::bin_of(page >> self.quantum_shift));
        while let Some(b) = bin {
            for index in self.list(self.free.head(b)) {
                let record = &self.table[index];
                let Some(page) = self.extent(record.region).1 else { continue };
                let pages = whole_pages(record.offset, record.size, page);
                if pages.is_empty() || !fences.passes(record.fence, access) {
                    continue;
                }
                if !each(Source { index, start: pages.start, size: pages.end - pages.start }) {
                    return;
                }
            }
            bin = self.free.next(b + 1);
        }
    }

    /// The end of a source from which pages are best taken first: the one that touches a void, else the upper.
    pub fn shrink_source(&self, source: Source, size: u64) -> Source {
        let record = &self.table[source.index];
        let no_pages = |index: u32| matches!(self.table[index].state, State::Void | State::Retired);
        if size >= source.size || (no_pages(record.prev) && !no_pages(record.next)) {
            Source { size: size.min(source.size), ..source }
        } else {
            Source { start: source.start + source.size - size, size, ..source }
        }
    }
}

/// Less is better.
fn key(window: &Window, prefer: Preference) -> impl Ord + use<> {
    let outside = prefer == Preference::Inside && window.open;
    let lowest = if prefer == Preference::Lowest { window.start } else { 0 };
    (outside, lowest, window.missing + window.whole, window.missing, window.open, window.place, window.start)
}

/// The pages of the block `[offset, offset + size)` that `[start, start + len)` touches.
fn overlap(offset: u64, size: u64, start: u64, len: u64, page: u64) -> (u64, u64) {
    let from = align_down(start.max(offset), page);
    let to = align_up((start + len).min(offset + size), page).unwrap_or(offset + size);
    (from, to)
}
