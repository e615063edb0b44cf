//! Physical memory and the addresses that lead to it. Knows no queues and no order, only what is where and who may touch it.
//!
//! Invariants: mappings do not overlap; an extent lives while something holds it (a handle, a mapping); what a device has given is
//! the sum of its extents.

use std::alloc::Layout;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::bytes::Bytes;
use crate::clock::Clock;
use crate::code::{self, Outcome};
use crate::history::History;

/// Plain allocations start at multiples of this.
pub const PLAIN_ALIGN: u64 = 512;
/// Where device addresses begin; nothing of this process lies here.
const FIRST_ADDRESS: u64 = 0x1000_0000_0000;

pub type ExtentId = u64;
pub type Device = i32;

/// Physical memory.
pub struct Extent {
    pub size: u64,
    /// The device that it is charged to; none for pinned memory.
    pub device: Option<Device>,
    pub history: History,
    bytes: Bytes,
    /// What keeps it alive.
    holders: u32,
}

/// `CUmemLocation`, of every version.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Location {
    pub kind: i32,
    pub id: Device,
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Properties {
    pub kind: i32,
    pub handle_types: u32,
    pub location: Location,
    pub metadata: u64,
    /// Compression, RDMA, usage.
    pub flags: [u8; 8],
}

/// How an address came to lead somewhere, and so which call ends it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Plain,
    Ordered,
    Pinned,
    Mapped,
}

/// A stretch of addresses that lead to an extent.
pub struct Mapping {
    pub size: u64,
    pub extent: ExtentId,
    pub kind: Kind,
    /// Per device: may read, may write.
    pub access: BTreeMap<Device, (bool, bool)>,
    /// The last touches through these addresses.
    pub touched: Clock,
}

/// A part of an extent.
pub struct Piece {
    pub extent: ExtentId,
    pub bytes: Range<u64>,
    pub mapping: u64,
}

/// Everything that has an address or bytes.
pub struct Memory {
    pub capacity: u64,
    /// Pages of virtual memory, and the granularity of everything in it.
    pub page: u64,
    /// Bytes of addresses that may be reserved at a time.
    pub address_limit: u64,
    pub extents: BTreeMap<ExtentId, Extent>,
    pub mappings: BTreeMap<u64, Mapping>,
    /// Address to size.
    pub reserved: BTreeMap<u64, u64>,
    /// Physical handle to its extent and the references that its holder has.
    pub handles: BTreeMap<u64, (ExtentId, u32)>,
    /// What each extent was asked to be.
    pub properties: BTreeMap<ExtentId, Properties>,
    /// Who may touch the plain memory of whom: (device, owner).
    pub peers: BTreeSet<(Device, Device)>,
    /// Addresses that led somewhere once, and what ended that.
    graves: BTreeMap<u64, (u64, &'static str)>,
    next_address: u64,
    next_id: u64,
}

impl Memory {
    pub fn new(capacity: u64, page: u64) -> Memory {
        Memory {
            capacity,
            page,
            address_limit: 1 << 45,
            extents: BTreeMap::new(),
            mappings: BTreeMap::new(),
            reserved: BTreeMap::new(),
            handles: BTreeMap::new(),
            properties: BTreeMap::new(),
            peers: BTreeSet::new(),
            graves: BTreeMap::new(),
            next_address: FIRST_ADDRESS,
            next_id: 0x6000,
        }
    }

    /// Bytes that a device has given.
    pub fn used(&self, device: Device) -> u64 {
        self.extents.values().filter(|extent| extent.device == Some(device)).map(|extent| extent.size).sum()
    }

    fn charge(&self, device: Device, size: u64) -> Outcome {
        if size > self.capacity.saturating_sub(self.used(device)) { Err(code::OUT_OF_MEMORY) } else { Ok(()) }
    }

    fn add(&mut self, extent: Extent) -> ExtentId {
        self.next_id += 1;
        self.extents.insert(self.next_id, extent);
        self.next_id
    }

    fn add_chunks(&mut self, device: Device, size: u64) -> Outcome<ExtentId> {
        self.charge(device, size)?;
        let bytes = Bytes::fresh();
        Ok(self.add(Extent { size, device: Some(device), history: History::default(), bytes, holders: 1 }))
    }

    fn addresses(&mut self, size: u64, align: u64) -> u64 {
        let base = self.next_address.next_multiple_of(align);
        // Never adjacent to what comes next: an access past the end leads nowhere.
        self.next_address = base + size + self.page;
        base
    }

    /// Plain or stream-ordered memory.
    pub fn allocate(&mut self, device: Device, size: u64, kind: Kind) -> Outcome<u64> {
        if size == 0 {
            return Err(code::INVALID_VALUE);
        }
        let size = size.checked_next_multiple_of(PLAIN_ALIGN).ok_or(code::OUT_OF_MEMORY)?;
        let extent = self.add_chunks(device, size)?;
        let at = self.addresses(size, PLAIN_ALIGN);
        let access = [(device, (true, true))].into();
        self.mappings.insert(at, Mapping { size, extent, kind, access, touched: Clock::default() });
        Ok(at)
    }

    /// Pinned memory of the host, which every device may touch.
    pub fn allocate_pinned(&mut self, size: u64, devices: Device) -> Outcome<u64> {
        let layout = Layout::from_size_align(size as usize, 4096).map_err(|_| code::OUT_OF_MEMORY)?;
        if size == 0 {
            return Err(code::INVALID_VALUE);
        }
        let (address, bytes) = Bytes::pinned(layout).ok_or(code::OUT_OF_MEMORY)?;
        let extent = self.add(Extent { size, device: None, history: History::default(), bytes, holders: 1 });
        let access = (0..devices).map(|device| (device, (true, true))).collect();
        self.graves.retain(|at, (end, _)| *end <= address || *at >= address + size);
        self.mappings.insert(address, Mapping { size, extent, kind: Kind::Pinned, access, touched: Clock::default() });
        Ok(address)
    }

    /// Ends the mapping that starts at `at`.
    pub fn unmap(&mut self, at: u64, why: &'static str) {
        let mapping = self.mappings.remove(&at).expect("a mapping that was looked up");
        self.graves.insert(at, (at + mapping.size, why));
        self.let_go(mapping.extent);
    }

    fn let_go(&mut self, id: ExtentId) {
        let extent = self.extents.get_mut(&id).expect("an extent lives while held");
        extent.holders -= 1;
        if extent.holders == 0 {
            self.extents.remove(&id);
            self.properties.remove(&id);
        }
    }

    pub fn reserve(&mut self, size: u64, align: u64) -> Outcome<u64> {
        if size == 0 || !size.is_multiple_of(self.page) || (align != 0 && !align.is_power_of_two()) {
            return Err(code::INVALID_VALUE);
        }
        let held: u64 = self.reserved.values().sum();
        if size > self.address_limit.saturating_sub(held) {
            return Err(code::OUT_OF_MEMORY);
        }
        let at = self.addresses(size, align.max(self.page));
        self.reserved.insert(at, size);
        Ok(at)
    }

    pub fn unreserve(&mut self, at: u64, size: u64) -> Outcome {
        if self.reserved.get(&at) != Some(&size) || self.mappings.range(at..at + size).next().is_some() {
            return Err(code::INVALID_VALUE);
        }
        self.reserved.remove(&at);
        self.graves.retain(|grave, _| !(at..at + size).contains(grave));
        self.graves.insert(at, (at + size, "its reservation was freed"));
        Ok(())
    }

    /// A physical handle.
    pub fn create(&mut self, device: Device, size: u64, properties: Properties) -> Outcome<u64> {
        if size == 0 || !size.is_multiple_of(self.page) {
            return Err(code::INVALID_VALUE);
        }
        let extent = self.add_chunks(device, size)?;
        self.handles.insert(extent << 8, (extent, 1));
        self.properties.insert(extent, properties);
        Ok(extent << 8)
    }

    pub fn release(&mut self, handle: u64) -> Outcome {
        let (extent, references) = self.handles.get_mut(&handle).ok_or(code::INVALID_VALUE)?;
        let extent = *extent;
        *references -= 1;
        if *references == 0 {
            self.handles.remove(&handle);
            self.let_go(extent);
        }
        Ok(())
    }

    /// One more reference to the handle of what is mapped at an address.
    pub fn retain(&mut self, at: u64) -> Outcome<u64> {
        let (_, mapping) =
            self.mapping(at).filter(|(_, mapping)| mapping.kind == Kind::Mapped).ok_or(code::INVALID_VALUE)?;
        let extent = mapping.extent;
        let held = self.handles.entry(extent << 8).or_insert((extent, 0));
        held.1 += 1;
        if held.1 == 1 {
            self.extents.get_mut(&extent).expect("mapped").holders += 1;
        }
        Ok(extent << 8)
    }

    pub fn map(&mut self, at: u64, size: u64, handle: u64) -> Outcome {
        let (extent, _) = *self.handles.get(&handle).ok_or(code::INVALID_VALUE)?;
        let inside = self.reserved.range(..=at).next_back().is_some_and(|(base, whole)| at + size <= base + whole);
        if self.extents[&extent].size != size || !inside || !at.is_multiple_of(self.page) {
            return Err(code::INVALID_VALUE);
        }
        if self.overlapped(at, size).next().is_some() {
            return Err(code::ALREADY_MAPPED);
        }
        self.extents.get_mut(&extent).expect("held by its handle").holders += 1;
        let (access, touched) = (BTreeMap::new(), Clock::default());
        self.mappings.insert(at, Mapping { size, extent, kind: Kind::Mapped, access, touched });
        Ok(())
    }

    /// The starts of the mappings that make up the range, gapless and whole.
    pub fn whole_mappings(&self, at: u64, size: u64) -> Outcome<Vec<u64>> {
        let mut end = at;
        let mut starts = Vec::new();
        while end < at + size {
            let mapping = self.mappings.get(&end).filter(|mapping| mapping.kind == Kind::Mapped);
            starts.push(end);
            end += mapping.ok_or(code::INVALID_VALUE)?.size;
        }
        if end == at + size && size > 0 { Ok(starts) } else { Err(code::INVALID_VALUE) }
    }

    pub fn mapping(&self, at: u64) -> Option<(u64, &Mapping)> {
        let (start, mapping) = self.mappings.range(..=at).next_back()?;
        (at < start + mapping.size).then_some((*start, mapping))
    }

    fn overlapped(&self, at: u64, size: u64) -> impl Iterator<Item = u64> {
        self.mapping(at).map(|(start, _)| start).into_iter().chain(self.mappings.range(at..at + size).map(|(s, _)| *s))
    }

    /// Whether the driver knows these addresses as memory of its own, pinned memory among it.
    pub fn knows(&self, at: u64) -> bool {
        self.mapping(at).is_some() || at >= FIRST_ADDRESS && at < self.next_address
    }

    /// The physical bytes behind a range, or why `device` may not touch it so.
    pub fn resolve(&self, at: u64, size: u64, device: Option<Device>, write: bool) -> Result<Vec<Piece>, String> {
        let mut pieces = Vec::new();
        let mut next = at;
        while next < at + size {
            let (start, mapping) = self.mapping(next).ok_or_else(|| self.nothing_at(next))?;
            if !device.is_none_or(|device| self.allows(mapping, device, write)) {
                return Err(format!("{next:#x} is mapped, but device {} has no access to it", device.unwrap_or(-1)));
            }
            let end = (start + mapping.size).min(at + size);
            pieces.push(Piece { extent: mapping.extent, bytes: next - start..end - start, mapping: start });
            next = end;
        }
        Ok(pieces)
    }

    fn allows(&self, mapping: &Mapping, device: Device, write: bool) -> bool {
        let owner = self.extents[&mapping.extent].device;
        let is_peer = mapping.kind != Kind::Mapped && owner.is_some_and(|owner| self.peers.contains(&(device, owner)));
        is_peer || mapping.access.get(&device).is_some_and(|(read, written)| if write { *written } else { *read })
    }

    fn nothing_at(&self, at: u64) -> String {
        let grave = self.graves.range(..=at).next_back().filter(|(_, (end, _))| at < *end);
        let reserved = self.reserved.range(..=at).next_back().is_some_and(|(base, size)| at < base + size);
        match (grave, reserved) {
            (Some((_, (_, why))), _) => format!("{at:#x} leads nowhere any more: {why}"),
            (None, true) => format!("{at:#x} is reserved, but nothing was ever mapped there"),
            (None, false) => format!("{at:#x} never led anywhere"),
        }
    }

    pub fn read(&mut self, pieces: &[Piece]) -> Vec<u8> {
        let mut bytes = Vec::new();
        pieces.iter().for_each(|piece| self.bytes(piece).read(piece.bytes.clone(), &mut bytes));
        bytes
    }

    pub fn write(&mut self, pieces: &[Piece], mut bytes: &[u8]) {
        for piece in pieces {
            let (now, later) = bytes.split_at((piece.bytes.end - piece.bytes.start) as usize);
            self.bytes(piece).write(piece.bytes.clone(), now);
            bytes = later;
        }
    }

    /// Repeats a pattern; pieces are aligned to it.
    pub fn fill(&mut self, pieces: &[Piece], pattern: &[u8]) {
        pieces.iter().for_each(|piece| self.bytes(piece).fill(piece.bytes.clone(), pattern));
    }

    fn bytes(&mut self, piece: &Piece) -> &mut Bytes {
        &mut self.extents.get_mut(&piece.extent).expect("resolved").bytes
    }
}
