//! What physical memory holds. Memory of a device is kept in chunks, and a chunk that holds one byte everywhere costs no more than
//! that; pinned memory is memory of this process.

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes that are kept together.
const CHUNK: u64 = 64 << 10;
/// What fresh memory holds.
const FRESH: u8 = 0xCD;

pub enum Chunk {
    Same(u8),
    Each(Box<[u8]>),
}

impl Chunk {
    fn each(&mut self) -> &mut [u8] {
        if let Chunk::Same(byte) = *self {
            *self = Chunk::Each(vec![byte; CHUNK as usize].into());
        }
        match self {
            Chunk::Each(bytes) => bytes,
            Chunk::Same(_) => unreachable!("just made"),
        }
    }
}

pub enum Bytes {
    /// By number; one that is not here is fresh.
    Chunks(BTreeMap<u64, Chunk>),
    Pinned {
        address: u64,
        layout: Layout,
    },
}

impl Bytes {
    pub fn fresh() -> Bytes {
        Bytes::Chunks(BTreeMap::new())
    }

    /// Memory of this process, zeroed; the layout is not empty.
    pub fn pinned(layout: Layout) -> Option<(u64, Bytes)> {
        // SAFETY: the layout is not empty.
        let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
        let address = pointer.expose_provenance() as u64;
        (!pointer.is_null()).then_some((address, Bytes::Pinned { address, layout }))
    }

    /// Appends the bytes of a range.
    pub fn read(&mut self, range: Range<u64>, to: &mut Vec<u8>) {
        let pinned = self.as_pinned(&range);
        match (self, pinned) {
            (_, Some(bytes)) => to.extend_from_slice(bytes),
            (Bytes::Chunks(chunks), None) => parts(range).for_each(|(number, part)| match chunks.get(&number) {
                None => to.resize(to.len() + part.len(), FRESH),
                Some(Chunk::Same(byte)) => to.resize(to.len() + part.len(), *byte),
                Some(Chunk::Each(bytes)) => to.extend_from_slice(&bytes[part]),
            }),
            (Bytes::Pinned { .. }, None) => unreachable!("pinned memory has its bytes"),
        }
    }

    /// Sets the bytes of a range.
    pub fn write(&mut self, range: Range<u64>, mut from: &[u8]) {
        self.change(range, |place| {
            let (now, later) = from.split_at(place.len());
            place.copy_from_slice(now);
            from = later;
        });
    }

    /// Repeats a pattern over a range that is aligned to it.
    pub fn fill(&mut self, range: Range<u64>, pattern: &[u8]) {
        let (first, last) = (range.start.next_multiple_of(CHUNK), range.end / CHUNK * CHUNK);
        match (&mut *self, pattern) {
            (Bytes::Chunks(chunks), [byte]) if first < last => {
                (first / CHUNK..last / CHUNK).for_each(|number| drop(chunks.insert(number, Chunk::Same(*byte))));
                self.repeat(range.start..first, pattern);
                self.repeat(last..range.end, pattern);
            }
            _ => self.repeat(range, pattern),
        }
    }

    fn repeat(&mut self, range: Range<u64>, pattern: &[u8]) {
        self.change(range, |place| match pattern {
            [byte] => place.fill(*byte),
            _ => place.chunks_exact_mut(pattern.len()).for_each(|place| place.copy_from_slice(pattern)),
        });
    }

    /// Calls `change` with the range's bytes, part by part.
    fn change(&mut self, range: Range<u64>, mut change: impl FnMut(&mut [u8])) {
        let pinned = self.as_pinned(&range);
        match (self, pinned) {
            (_, Some(bytes)) => change(bytes),
            (Bytes::Chunks(chunks), None) => parts(range).for_each(|(number, part)| {
                change(&mut chunks.entry(number).or_insert(Chunk::Same(FRESH)).each()[part])
            }),
            (Bytes::Pinned { .. }, None) => unreachable!("pinned memory has its bytes"),
        }
    }

    fn as_pinned(&self, range: &Range<u64>) -> Option<&'static mut [u8]> {
        let Bytes::Pinned { address, .. } = self else { return None };
        let pointer = std::ptr::with_exposed_provenance_mut::<u8>((address + range.start) as usize);
        // SAFETY: the memory is allocated, initialised and holds the range, which was checked against it; it is used before it goes.
        Some(unsafe { std::slice::from_raw_parts_mut(pointer, (range.end - range.start) as usize) })
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Bytes::Pinned { address, layout } = *self {
            // SAFETY: allocated with this layout in `pinned` and nowhere else freed.
            unsafe { std::alloc::dealloc(std::ptr::with_exposed_provenance_mut(address as usize), layout) }
        }
    }
}

/// A range as chunks' numbers and the part of each.
fn parts(range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let (number, skip) = (at / CHUNK, at % CHUNK);
        let count = (CHUNK - skip).min(range.end.saturating_sub(at));
        at += count;
        (count > 0).then_some((number, skip as usize..(skip + count) as usize))
    })
}
