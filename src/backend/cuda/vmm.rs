//! Memory by the page: addresses reserved once, physical pages created, mapped, mapped again elsewhere, and kept for next time.
//!
//! One handle of the driver is one page: the driver maps handles only whole and unmaps only what one call mapped, so that a handle
//! of several pages would bind them together for ever, and none of them could move or go alone. Larger handles are had by a
//! larger page (`Config::page`).
//!
//! Knows no streams: that no work touches what is unmapped is the caller's promise. Access is set once for each run of pages that is
//! mapped, for the device and for every peer.
//!
//! Invariants: `pages[n]` of a region is what is mapped at `base + n * page`; a physical page is mapped as often as its `Arc` is held by
//! regions, and once held by none it is in the stock or released; the stock holds at most `most` pages.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::driver::{Current, Device, PhysicalPage};
use super::library::{Access, PageKind};
use crate::backend::table::{Table, contract, range_within};
use crate::backend::{BackendError, Region, Span};
use crate::ids::RegionId;

pub(super) struct Pages {
    device: Arc<Device>,
    page: u64,
    kind: PageKind,
    /// Who may touch the memory: the device itself, and its peers.
    access: Vec<Access>,
    region_max: u64,
    /// Bytes of the device's memory.
    total: u64,
    regions: Table<Reserved>,
    stock: Arc<Stock>,
}

/// Physical pages that are mapped nowhere, to be used again.
struct Stock {
    device: Arc<Device>,
    most: usize,
    pages: Mutex<Vec<PhysicalPage>>,
}

/// A reservation of addresses.
struct Reserved {
    device: Arc<Device>,
    stock: Arc<Stock>,
    base: u64,
    size: u64,
    page: u64,
    /// To the last page that was ever mapped.
    pages: Vec<Option<Arc<PhysicalPage>>>,
}

impl Pages {
    pub(super) fn new(
        device: Arc<Device>,
        page: u64,
        kind: PageKind,
        access: Vec<Access>,
        (total, region_max, stock): (u64, u64, u64),
    ) -> Pages {
        let most = usize::try_from(stock / page).unwrap_or(usize::MAX);
        let stock = Arc::new(Stock { device: device.clone(), most, pages: Mutex::default() });
        Pages { device, page, kind, access, region_max, total, regions: Table::new(), stock }
    }

    pub(super) fn reserve(&self, size: u64) -> Result<Region, BackendError> {
        let call = "reserve";
        if size == 0 || !size.is_multiple_of(self.page) {
            return Err(contract(call, format!("{size} bytes are not whole pages of {}", self.page)));
        }
        if size > self.region_max {
            return Err(BackendError::TooLarge { call, requested: size, max: self.region_max });
        }
        let base = self.device.enter()?.reserve(size, self.page)?;
        let (device, stock) = (self.device.clone(), self.stock.clone());
        let reserved = Reserved { device, stock, base, size, page: self.page, pages: Vec::new() };
        Ok(Region { id: self.regions.add(call, reserved)?, base, size })
    }

    /// Maps new or stocked pages: all, or none.
    pub(super) fn back(&self, span: Span) -> Result<(), BackendError> {
        self.regions.with("back", span.region, |region| {
            let range = region.vacant("back", span)?;
            let current = self.device.enter()?;
            let pages = self.acquire(&current, range.len())?;
            self.map_run(&current, region, range, pages)
        })
    }

    /// Unmaps pages: all, or none. Those that are mapped nowhere else go to the stock, or back to the device.
    pub(super) fn unback(&self, span: Span) -> Result<(), BackendError> {
        self.regions.with("unback", span.region, |region| {
            let range = region.mapped("unback", span)?;
            let current = self.device.enter()?;
            for at in range.clone() {
                if let Err(error) = current.unmap(region.address(at), self.page) {
                    let gone = range.start..at;
                    let pages = region.pages[gone.clone()].iter().flatten();
                    let again = if gone.is_empty() { Ok(()) } else { self.map(&current, region, gone, pages) };
                    again.map_err(|(_, undo)| self.broken(&error, &undo))?;
                    return Err(error);
                }
            }
            region.pages[range].iter_mut().filter_map(Option::take).for_each(|page| self.stock.let_go(&current, page));
            Ok(())
        })
    }

    /// Maps the pages behind `from` at `to` too: all, or none.
    pub(super) fn remap(&self, from: Span, to: Span) -> Result<(), BackendError> {
        let call = "remap";
        self.regions.with_pair(call, from.region, to.region, |mut pair| {
            let source = pair.from().mapped(call, from)?;
            let target = pair.to().vacant(call, to)?;
            if source.len() != target.len() {
                return Err(contract(call, format!("{} bytes to {} bytes", from.size, to.size)));
            }
            let pages = pair.from().pages[source].iter().flatten().cloned().collect();
            self.map_run(&self.device.enter()?, pair.to(), target, pages)
        })
    }

    pub(super) fn release(&self, region: RegionId) -> Result<(), BackendError> {
        self.regions.end("release", region, |region| {
            match region.pages.iter().position(Option::is_some) {
                Some(at) => return Err(contract("release", format!("page {at} is still mapped"))),
                None => self.device.enter()?.unreserve(region.base, region.size)?,
            }
            // Nothing is left for its end to do.
            region.size = 0;
            Ok(())
        })
    }

    /// The address of a span whose pages are all mapped.
    pub(super) fn address(&self, call: &'static str, span: Span) -> Result<u64, BackendError> {
        self.regions.with(call, span.region, |region| {
            let bytes = range_within(call, span, region.size)?;
            region.all_mapped(call, region.touched(&bytes))?;
            Ok(region.base + bytes.start)
        })
    }

    /// Bytes in the stock.
    pub(super) fn stocked(&self) -> u64 {
        self.stock.pages.lock().len() as u64 * self.page
    }

    pub(super) fn empty_stock(&self) {
        self.stock.empty();
    }

    /// So many pages: what the stock has, the rest new.
    fn acquire(&self, current: &Current<'_>, count: usize) -> Result<Vec<Arc<PhysicalPage>>, BackendError> {
        let mut pages: Vec<_> = self.stock.take(count).into_iter().map(Arc::new).collect();
        match self.create(current, count - pages.len(), &mut pages) {
            Ok(()) => Ok(pages),
            Err(error) => {
                pages.into_iter().for_each(|page| self.stock.let_go(current, page));
                Err(error)
            }
        }
    }

    /// New pages, for the caller to give back on failure. What the device says is free is a hint, so all but what it could never hold is
    /// tried: what does not fit costs the making of as many pages as do, once, and their release.
    fn create(
        &self,
        current: &Current<'_>,
        count: usize,
        pages: &mut Vec<Arc<PhysicalPage>>,
    ) -> Result<(), BackendError> {
        let requested = count as u64 * self.page;
        let refused = BackendError::OutOfMemory { call: "cuMemCreate", requested };
        if requested > self.total {
            return Err(refused);
        }
        for _ in 0..count {
            let page = current.create_page(self.page, &self.kind).map_err(|error| match error {
                BackendError::OutOfMemory { .. } => refused.clone(),
                error => error,
            })?;
            pages.push(Arc::new(page));
        }
        Ok(())
    }

    /// Maps these pages at a vacant run. On failure nothing of it is mapped, and the pages are let go.
    fn map_run(
        &self,
        current: &Current<'_>,
        region: &mut Reserved,
        range: Range<usize>,
        pages: Vec<Arc<PhysicalPage>>,
    ) -> Result<(), BackendError> {
        let Err((mapped, error)) = self.map(current, region, range.clone(), pages.iter()) else {
            region.put(range, pages);
            return Ok(());
        };
        for at in range.take(mapped) {
            current.unmap(region.address(at), self.page).map_err(|undo| self.broken(&error, &undo))?;
        }
        pages.into_iter().for_each(|page| self.stock.let_go(current, page));
        Err(error)
    }

    /// Maps pages one by one and opens the run to all who have access. On failure answers how many are mapped.
    fn map<'a>(
        &self,
        current: &Current<'_>,
        region: &Reserved,
        range: Range<usize>,
        pages: impl Iterator<Item = &'a Arc<PhysicalPage>>,
    ) -> Result<(), (usize, BackendError)> {
        let (start, size) = (region.address(range.start), range.len() as u64 * self.page);
        for (count, (at, page)) in range.clone().zip(pages).enumerate() {
            current.map(region.address(at), self.page, page).map_err(|error| (count, error))?;
        }
        current.set_access(start, size, &self.access).map_err(|error| (range.len(), error))
    }

    /// A failure that could not be undone: what is mapped is not known any more, so that nothing is touched again.
    fn broken(&self, error: &BackendError, undo: &BackendError) -> BackendError {
        self.device.give_up();
        BackendError::Lost { reason: format!("{error}; and undoing what was done before: {undo}") }
    }
}

impl Stock {
    fn take(&self, count: usize) -> Vec<PhysicalPage> {
        let mut pages = self.pages.lock();
        let left = pages.len().saturating_sub(count);
        pages.split_off(left)
    }

    /// One holder of a page less. The last one's page is kept here, or goes back to the device.
    fn let_go(&self, current: &Current<'_>, page: Arc<PhysicalPage>) {
        let Some(page) = Arc::into_inner(page) else { return };
        let mut pages = self.pages.lock();
        if pages.len() < self.most {
            return pages.push(page);
        }
        drop(pages);
        self.release(current, page);
    }

    /// A page that the driver will not have back is kept, to be given back later.
    fn release(&self, current: &Current<'_>, page: PhysicalPage) {
        if let Err(page) = current.release_page(page) {
            self.pages.lock().push(page);
        }
    }

    fn empty(&self) {
        let Ok(current) = self.device.enter() else { return };
        let pages = std::mem::take(&mut *self.pages.lock());
        pages.into_iter().for_each(|page| self.release(&current, page));
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        self.empty();
    }
}

impl Reserved {
    fn address(&self, at: usize) -> u64 {
        self.base + at as u64 * self.page
    }

    /// The pages that some bytes lie in.
    fn touched(&self, bytes: &Range<u64>) -> Range<usize> {
        (bytes.start / self.page) as usize..bytes.end.div_ceil(self.page) as usize
    }

    fn whole_pages(&self, call: &'static str, span: Span) -> Result<Range<usize>, BackendError> {
        let bytes = range_within(call, span, self.size)?;
        if !bytes.start.is_multiple_of(self.page) || !bytes.end.is_multiple_of(self.page) {
            return Err(contract(call, format!("{bytes:?} of {} are not whole pages of {}", span.region, self.page)));
        }
        Ok(self.touched(&bytes))
    }

    fn is_mapped(&self, at: usize) -> bool {
        self.pages.get(at).is_some_and(Option::is_some)
    }

    /// The pages of a span, none of which is mapped.
    fn vacant(&self, call: &'static str, span: Span) -> Result<Range<usize>, BackendError> {
        let mut range = self.whole_pages(call, span)?;
        match range.find(|at| self.is_mapped(*at)) {
            Some(at) => Err(contract(call, format!("page {at} of {} is mapped", span.region))),
            None => self.whole_pages(call, span),
        }
    }

    /// The pages of a span, all of which are mapped.
    fn mapped(&self, call: &'static str, span: Span) -> Result<Range<usize>, BackendError> {
        let range = self.whole_pages(call, span)?;
        self.all_mapped(call, range.clone())?;
        Ok(range)
    }

    fn all_mapped(&self, call: &'static str, mut range: Range<usize>) -> Result<(), BackendError> {
        match range.find(|at| !self.is_mapped(*at)) {
            Some(at) => Err(contract(call, format!("page {at} is not mapped"))),
            None => Ok(()),
        }
    }

    fn put(&mut self, range: Range<usize>, pages: Vec<Arc<PhysicalPage>>) {
        if self.pages.len() < range.end {
            self.pages.resize(range.end, None);
        }
        self.pages[range].iter_mut().zip(pages).for_each(|(place, page)| *place = Some(page));
    }
}

impl Drop for Reserved {
    /// A backend that ends takes its regions along; nobody can be told of a failure.
    fn drop(&mut self) {
        if self.size == 0 {
            return;
        }
        let Some(current) = self.device.enter_to_free() else { return };
        for at in 0..self.pages.len() {
            let Some(page) = self.pages[at].take() else { continue };
            if current.unmap(self.address(at), self.page).is_ok() {
                self.stock.let_go(&current, page);
            }
        }
        let _ = current.unreserve(self.base, self.size);
    }
}
