//! Regions and the physical memory behind them.
//!
//! Knows no stream, no owner and no capacity: whether there is room, and whether an address may be taken away, was
//! decided before. Page tables are sparse: the cost of a call is that of its span, whatever the size of the region.
//!
//! Invariants (re-proved by [`Memory::check`]):
//! * `refs[p]` = number of (region, page) that map physical page `p`; `p` is in the stock iff `refs[p] == 0`.
//! * `used` = page × (pages with `refs > 0`) + sum of the sizes of segments.
//! * a region's `high` is at least the end of its highest mapped page.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::calls::{Stop, ViolationKind, broken};
use crate::backend::{Region, Span};
use crate::ids::RegionId;
use crate::units::align_up;

/// Pages per chunk of a page table.
const CHUNK: usize = 1024;
/// No physical page.
const NONE: u32 = u32::MAX;
/// The first address that is given: high, so that an offset taken for an address shows.
const FIRST_BASE: u64 = 1 << 46;

/// Bytes that are contiguous both in a region and in physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) offset: u64,
    pub(super) physical: u64,
    pub(super) size: u64,
}

/// The pages of a span.
#[derive(Clone, Copy, Debug)]
struct Pages {
    first: u64,
    count: u64,
}

/// Virtual page to physical page; pages never mapped cost nothing.
#[derive(Debug, Default)]
struct Table {
    chunks: BTreeMap<u64, Box<[u32; CHUNK]>>,
}

impl Table {
    /// (chunk, first index, end index) of every chunk that `pages` touches.
    fn pieces(pages: Pages) -> impl Iterator<Item = (u64, usize, usize)> {
        let (end, chunk) = (pages.first + pages.count, CHUNK as u64);
        (pages.first / chunk..end.div_ceil(chunk)).map(move |number| {
            let start = number * chunk;
            let from = pages.first.max(start) - start;
            (number, from as usize, (end.min(start + chunk) - start) as usize)
        })
    }

    fn entries(&self, pages: Pages) -> impl Iterator<Item = u32> + '_ {
        Self::pieces(pages).flat_map(move |(number, from, to)| {
            let chunk = self.chunks.get(&number);
            (from..to).map(move |index| chunk.map_or(NONE, |chunk| chunk[index]))
        })
    }

    /// The first of some pages that has memory, by its place among them. Does not look where nothing ever was.
    fn first_mapped(&self, pages: Pages) -> Option<u64> {
        Self::pieces(pages).find_map(|(number, from, to)| {
            let at = self.chunks.get(&number)?[from..to].iter().position(|entry| *entry != NONE)?;
            Some(number * CHUNK as u64 + (from + at) as u64 - pages.first)
        })
    }

    fn set(&mut self, pages: Pages, values: &[u32]) {
        let mut rest = values;
        for (number, from, to) in Self::pieces(pages) {
            let chunk = self.chunks.entry(number).or_insert_with(|| Box::new([NONE; CHUNK]));
            let (now, later) = rest.split_at(to - from);
            chunk[from..to].copy_from_slice(now);
            rest = later;
        }
    }

    fn clear(&mut self, pages: Pages) {
        for (number, from, to) in Self::pieces(pages) {
            if let Some(chunk) = self.chunks.get_mut(&number) {
                chunk[from..to].fill(NONE);
            }
        }
    }

    /// Every mapped page: (page, physical page).
    fn mapped(&self) -> impl DoubleEndedIterator<Item = (u64, u32)> + '_ {
        self.chunks.iter().flat_map(|(number, chunk)| {
            let start = number * CHUNK as u64;
            chunk
                .iter()
                .enumerate()
                .filter(|(_, entry)| **entry != NONE)
                .map(move |(i, entry)| (start + i as u64, *entry))
        })
    }
}

#[derive(Debug)]
enum Behind {
    Pages { table: Table, mapped: u64 },
    Segment { physical: u64 },
}

#[derive(Debug)]
struct Space {
    size: u64,
    /// The highest end offset that was ever mapped.
    high: u64,
    behind: Behind,
}

/// Physical pages: reference counts, and those that are free, given lowest first.
#[derive(Debug, Default)]
struct Stock {
    refs: Vec<u32>,
    free: BinaryHeap<Reverse<u32>>,
}

impl Stock {
    fn used(&self) -> u64 {
        (self.refs.len() - self.free.len()) as u64
    }

    fn take(&mut self, count: u64) -> Vec<u32> {
        let mut pages = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let page = match self.free.pop() {
                Some(Reverse(page)) => page,
                None => {
                    self.refs.push(0);
                    (self.refs.len() - 1) as u32
                }
            };
            self.refs[page as usize] = 1;
            pages.push(page);
        }
        pages
    }

    /// Lets go of one mapping of a page; whether it was the last.
    fn drop_one(&mut self, page: u32) -> bool {
        let refs = &mut self.refs[page as usize];
        *refs -= 1;
        if *refs == 0 {
            self.free.push(Reverse(page));
        }
        self.refs[page as usize] == 0
    }
}

/// All regions of the device.
#[derive(Debug)]
pub(super) struct Memory {
    page: u64,
    base_align: u64,
    /// Indexed by region id; ids are never given twice.
    regions: Vec<Option<Space>>,
    stock: Stock,
    next_base: u64,
    /// Segments have physical bytes of their own, never given twice.
    next_physical: u64,
    segment_bytes: u64,
    /// Sum of `high` over the regions.
    address_end: u64,
}

impl Memory {
    pub(super) fn new(page: u64, base_align: u64) -> Self {
        Memory {
            page,
            base_align,
            regions: Vec::new(),
            stock: Stock::default(),
            next_base: FIRST_BASE,
            next_physical: 0,
            segment_bytes: 0,
            address_end: 0,
        }
    }

    /// The most bytes of pages that can be held, by the width of a page's number.
    pub(super) fn most(&self) -> u64 {
        (NONE as u64 - 1).saturating_mul(self.page)
    }

    pub(super) fn used(&self) -> u64 {
        self.stock.used() * self.page + self.segment_bytes
    }

    pub(super) fn address_end(&self) -> u64 {
        self.address_end
    }

    /// A region with nothing behind it; `None` when addresses have run out.
    pub(super) fn reserve(&mut self, size: u64) -> Option<Region> {
        self.add(size, Behind::Pages { table: Table::default(), mapped: 0 })
    }

    /// A region with memory of its own; `None` when addresses have run out.
    pub(super) fn grow_segment(&mut self, size: u64) -> Option<Region> {
        let end = self.next_physical.checked_add(size)?;
        let region = self.add(size, Behind::Segment { physical: self.next_physical })?;
        self.next_physical = end;
        self.segment_bytes += size;
        self.raise(region.id, size);
        Some(region)
    }

    fn add(&mut self, size: u64, behind: Behind) -> Option<Region> {
        let id = RegionId(u32::try_from(self.regions.len()).ok()?);
        let base = self.next_base;
        // One unit between neighbours, so that running over the end of a region is seen.
        let end = base.checked_add(size)?.checked_add(self.base_align)?;
        self.next_base = align_up(end, self.base_align)?;
        self.regions.push(Some(Space { size, high: 0, behind }));
        Some(Region { id, base, size })
    }

    fn space(&self, id: RegionId) -> Result<&Space, Stop> {
        let found = self.regions.get(id.0 as usize).and_then(Option::as_ref);
        found.ok_or_else(|| broken(ViolationKind::Span, format!("{id} is not a region that lives")))
    }

    fn space_mut(&mut self, id: RegionId) -> Option<&mut Space> {
        self.regions.get_mut(id.0 as usize).and_then(Option::as_mut)
    }

    fn table_mut(&mut self, id: RegionId) -> Option<(&mut Table, &mut u64)> {
        match &mut self.space_mut(id)?.behind {
            Behind::Pages { table, mapped } => Some((table, mapped)),
            Behind::Segment { .. } => None,
        }
    }

    /// The region of a span that is not empty and lies in it.
    fn space_of(&self, span: Span) -> Result<&Space, Stop> {
        let space = self.space(span.region)?;
        let end = span.offset.checked_add(span.size);
        if span.size == 0 || end.is_none_or(|end| end > space.size) {
            let text = format!("{} is empty or outside its region of {} bytes", show(span), space.size);
            return Err(broken(ViolationKind::Span, text));
        }
        Ok(space)
    }

    fn pages(&self, span: Span) -> Result<(&Table, Pages), Stop> {
        let space = self.space_of(span)?;
        let Behind::Pages { table, .. } = &space.behind else {
            return Err(broken(ViolationKind::Span, format!("{} is a segment and has no pages", span.region)));
        };
        if !span.offset.is_multiple_of(self.page) || !span.size.is_multiple_of(self.page) {
            let text = format!("{} is not a multiple of the page of {} bytes", show(span), self.page);
            return Err(broken(ViolationKind::Span, text));
        }
        Ok((table, self.count(span)))
    }

    fn count(&self, span: Span) -> Pages {
        Pages { first: span.offset / self.page, count: span.size / self.page }
    }

    /// Rules 1 and 2 for a span that is to get memory.
    pub(super) fn vacant(&self, span: Span) -> Result<(), Stop> {
        let (table, pages) = self.pages(span)?;
        match table.first_mapped(pages) {
            None => Ok(()),
            Some(index) => {
                let at = span.offset + index * self.page;
                Err(broken(ViolationKind::Backed, format!("{} has memory at {at:#x} already", show(span))))
            }
        }
    }

    /// Rules 1 and 2 for a span that is to lose its memory.
    pub(super) fn occupied(&self, span: Span) -> Result<(), Stop> {
        let (table, pages) = self.pages(span)?;
        match table.entries(pages).position(|entry| entry == NONE) {
            None => Ok(()),
            Some(index) => {
                let at = span.offset + index as u64 * self.page;
                Err(broken(ViolationKind::Unbacked, format!("{} has nothing behind it at {at:#x}", show(span))))
            }
        }
    }

    /// Puts memory behind a span that is [`Memory::vacant`].
    pub(super) fn back(&mut self, span: Span) {
        let pages = self.count(span);
        let physical = self.stock.take(pages.count);
        self.map(span, &physical);
    }

    fn map(&mut self, span: Span, physical: &[u32]) {
        let pages = self.count(span);
        if let Some((table, mapped)) = self.table_mut(span.region) {
            table.set(pages, physical);
            *mapped += pages.count;
        }
        self.raise(span.region, span.offset + span.size);
    }

    fn raise(&mut self, id: RegionId, end: u64) {
        if let Some(space) = self.space_mut(id) {
            let more = end.saturating_sub(space.high);
            space.high += more;
            self.address_end += more;
        }
    }

    fn unmap(&mut self, span: Span) -> Vec<u32> {
        let pages = self.count(span);
        let Some((table, mapped)) = self.table_mut(span.region) else { return Vec::new() };
        let physical = table.entries(pages).collect();
        table.clear(pages);
        *mapped -= pages.count;
        physical
    }

    /// Unmaps a span that is [`Memory::occupied`]; gives the physical bytes that nobody maps any more.
    pub(super) fn unback(&mut self, span: Span) -> Vec<Run> {
        let mut freed = self.unmap(span);
        freed.retain(|page| self.stock.drop_one(*page));
        let mut runs = Vec::new();
        for (index, page) in freed.into_iter().enumerate() {
            join(&mut runs, index as u64 * self.page, u64::from(page) * self.page, self.page);
        }
        runs
    }

    /// Maps the memory behind `from` at `to` as well.
    pub(super) fn alias(&mut self, from: Span, to: Span) {
        let pages = self.count(from);
        let Some((table, _)) = self.table_mut(from.region) else { return };
        let physical: Vec<u32> = table.entries(pages).collect();
        for page in &physical {
            self.stock.refs[*page as usize] += 1;
        }
        self.map(to, &physical);
    }

    /// Maps the memory behind `from` at `to` instead.
    pub(super) fn shift(&mut self, from: Span, to: Span) {
        let physical = self.unmap(from);
        self.map(to, &physical);
    }

    /// Rules 1 and 2 for a region that is to end; gives its size.
    pub(super) fn releasable(&self, id: RegionId) -> Result<u64, Stop> {
        let space = self.space(id)?;
        match space.behind {
            Behind::Pages { mapped, .. } if mapped > 0 => {
                let text = format!("{id} is released with memory behind {mapped} of its pages");
                Err(broken(ViolationKind::Backed, text))
            }
            _ => Ok(space.size),
        }
    }

    /// Ends a region that is [`Memory::releasable`]; gives the physical bytes that went with it.
    pub(super) fn release(&mut self, id: RegionId) -> Option<Run> {
        let space = self.regions.get_mut(id.0 as usize)?.take()?;
        self.address_end -= space.high;
        match space.behind {
            Behind::Segment { physical } => {
                self.segment_bytes -= space.size;
                Some(Run { offset: 0, physical, size: space.size })
            }
            Behind::Pages { .. } => None,
        }
    }

    /// The physical bytes behind a span, which need not be whole pages, in order and as few runs as there are.
    pub(super) fn translate(&self, span: Span) -> Result<Vec<Run>, Stop> {
        let space = self.space_of(span)?;
        let table = match &space.behind {
            Behind::Segment { physical } => {
                return Ok(vec![Run { offset: span.offset, physical: physical + span.offset, size: span.size }]);
            }
            Behind::Pages { table, .. } => table,
        };
        let (first, end) = (span.offset / self.page, (span.offset + span.size).div_ceil(self.page));
        let mut runs = Vec::new();
        for (index, entry) in table.entries(Pages { first, count: end - first }).enumerate() {
            let start = (first + index as u64) * self.page;
            let from = start.max(span.offset);
            let to = (start + self.page).min(span.offset + span.size);
            if entry == NONE {
                let text = format!("{} is used, with nothing behind it at {from:#x}", show(span));
                return Err(broken(ViolationKind::Unbacked, text));
            }
            join(&mut runs, from, u64::from(entry) * self.page + (from - start), to - from);
        }
        Ok(runs)
    }

    /// Forgets how far regions once reached: `high` becomes the end of what is mapped now.
    pub(super) fn reset_high(&mut self) {
        self.address_end = 0;
        for space in self.regions.iter_mut().flatten() {
            space.high = match &space.behind {
                Behind::Segment { .. } => space.size,
                Behind::Pages { table, .. } => table.mapped().next_back().map_or(0, |(page, _)| (page + 1) * self.page),
            };
            self.address_end += space.high;
        }
    }

    /// Recomputes the invariants from the page tables.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut refs = vec![0u32; self.stock.refs.len()];
        let (mut segments, mut high) = (0, 0);
        for (id, space) in self.regions.iter().enumerate().filter_map(|(id, space)| Some((id, space.as_ref()?))) {
            high += space.high;
            let Behind::Pages { table, mapped } = &space.behind else {
                segments += space.size;
                continue;
            };
            let mut count = 0;
            for (page, physical) in table.mapped() {
                count += 1;
                let slot = refs.get_mut(physical as usize);
                *slot.ok_or_else(|| format!("r{id} maps page {physical}, which never was"))? += 1;
                if (page + 1) * self.page > space.high {
                    return Err(format!("r{id} maps page {page} above its high mark {:#x}", space.high));
                }
            }
            if count != *mapped {
                return Err(format!("r{id} counts {mapped} mapped pages and has {count}"));
            }
        }
        self.check_sums(&refs, segments, high)
    }

    fn check_sums(&self, refs: &[u32], segments: u64, high: u64) -> Result<(), String> {
        if let Some(page) = (0..refs.len()).find(|page| refs[*page] != self.stock.refs[*page]) {
            return Err(format!("page {page} counts {} mappings and has {}", self.stock.refs[page], refs[page]));
        }
        let mut free: Vec<usize> = self.stock.free.iter().map(|Reverse(page)| *page as usize).collect();
        free.sort_unstable();
        let unmapped: Vec<usize> = (0..refs.len()).filter(|page| refs[*page] == 0).collect();
        if free != unmapped {
            return Err(format!("{} pages in stock and {} that nobody maps", free.len(), unmapped.len()));
        }
        if (segments, high) != (self.segment_bytes, self.address_end) {
            return Err(format!("segments {} / {segments}, ends {} / {high}", self.segment_bytes, self.address_end));
        }
        Ok(())
    }
}

/// Adds bytes to the last run when they continue it.
fn join(runs: &mut Vec<Run>, offset: u64, physical: u64, size: u64) {
    match runs.last_mut() {
        Some(last) if last.offset + last.size == offset && last.physical + last.size == physical => last.size += size,
        _ => runs.push(Run { offset, physical, size }),
    }
}

/// A span as people search for it.
pub(super) fn show(span: Span) -> String {
    format!("{}[{:#x}..{:#x}]", span.region, span.offset, span.offset.saturating_add(span.size))
}
