//! Belts of buffers that the host maps, on which bytes travel to the device and back.
//!
//! A mapped buffer is mapped as a whole, so each is lent whole to one transfer; it comes back when its work is complete and it is
//! mapped again (uploads) or read and unmapped (reads). Sizes are powers of two.
//!
//! Knows nothing of segments and spans. Invariants: `kept` is the sum of the sizes on the shelf and at most `max`; `lent` is the sum
//! of the sizes of all [`Lent`], `coming` of those that come back by themselves; buffers on the shelf of uploads are mapped, those for reads are not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::time::Instant;

use parking_lot::Mutex;
use wgpu::{BufferDescriptor, BufferUsages, CommandEncoder, MapMode};

use super::WAIT;
use super::driver::Driver;
use crate::backend::BackendError;
use crate::units::{KIB, MIB, align_down};

/// Bytes of one transfer at most; longer ones are several.
const PIECE: u64 = 16 * MIB;
/// The least buffer.
const LEAST: u64 = 4 * KIB;

/// Bytes of one transfer at most, on a device with buffers of at most so many bytes: with its buffer a power of two.
pub(super) fn piece(buffer_max: u64) -> usize {
    1 << PIECE.min(buffer_max.max(LEAST)).ilog2()
}

/// Buffers of one direction.
pub(super) struct Belt {
    mode: MapMode,
    max: u64,
    shelf: Arc<Mutex<Shelf>>,
}

#[derive(Default)]
struct Shelf {
    buffers: BTreeMap<u64, Vec<wgpu::Buffer>>,
    kept: u64,
    lent: u64,
    coming: u64,
}

/// A buffer on its way. Goes back to the shelf only by [`Lent::put_back`].
struct Lent {
    buffer: wgpu::Buffer,
    shelf: Arc<Mutex<Shelf>>,
    /// Whether it comes back by itself, because its work is submitted at once.
    is_coming: bool,
}

impl Lent {
    /// Back to the shelf, which lets others go so as to hold at most `max`: what comes back now is what is wanted now.
    fn put_back(self, max: u64) {
        let size = self.buffer.size();
        let Some(room) = max.checked_sub(size) else { return };
        let mut shelf = self.shelf.lock();
        let gone = shelf.shrink(room);
        shelf.kept += size;
        shelf.buffers.entry(size).or_default().push(self.buffer.clone());
        drop(shelf);
        drop(gone);
    }
}

impl Shelf {
    /// Takes buffers off until at most `most` bytes are left: the largest first, so that the fewest have to be made again.
    fn shrink(&mut self, most: u64) -> Vec<wgpu::Buffer> {
        let mut gone = Vec::new();
        while self.kept > most
            && let Some(mut largest) = self.buffers.last_entry()
        {
            if let Some(buffer) = largest.get_mut().pop() {
                self.kept -= buffer.size();
                gone.push(buffer);
            }
            if largest.get().is_empty() {
                largest.remove();
            }
        }
        gone
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let (size, mut shelf) = (self.buffer.size(), self.shelf.lock());
        shelf.lent -= size;
        if self.is_coming {
            shelf.coming -= size;
        }
    }
}

impl Belt {
    /// A belt for writing or reading by the host, which keeps at most `max` bytes that are not in use.
    pub fn new(mode: MapMode, max: u64) -> Belt {
        Belt { mode, max, shelf: Arc::default() }
    }

    /// Bytes of all its buffers, in use or not.
    pub fn bytes(&self) -> u64 {
        let shelf = self.shelf.lock();
        shelf.kept + shelf.lent
    }

    /// Bytes of buffers in use that come back by themselves.
    pub fn coming(&self) -> u64 {
        self.shelf.lock().coming
    }

    /// Lets the buffers go that are not in use.
    pub fn clear(&self) {
        let buffers = {
            let mut shelf = self.shelf.lock();
            shelf.kept = 0;
            std::mem::take(&mut shelf.buffers)
        };
        drop(buffers);
    }

    fn take(&self, driver: &Driver, bytes: u64, is_coming: bool) -> Result<Lent, BackendError> {
        let size = bytes.next_power_of_two().max(LEAST);
        let kept = {
            let mut shelf = self.shelf.lock();
            let kept = shelf.buffers.get_mut(&size).and_then(Vec::pop);
            if kept.is_some() {
                shelf.kept -= size;
            }
            kept
        };
        let buffer = match kept {
            Some(buffer) => buffer,
            None => driver.create("staging", &self.description(size))?,
        };
        let mut shelf = self.shelf.lock();
        shelf.lent += size;
        if is_coming {
            shelf.coming += size;
        }
        drop(shelf);
        Ok(Lent { buffer, shelf: self.shelf.clone(), is_coming })
    }

    fn description(&self, size: u64) -> BufferDescriptor<'static> {
        let (label, usage) = match self.mode {
            MapMode::Write => ("larder upload", BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC),
            MapMode::Read => ("larder read-back", BufferUsages::MAP_READ | BufferUsages::COPY_DST),
        };
        let mapped_at_creation = matches!(self.mode, MapMode::Write);
        BufferDescriptor { label: Some(label), size, usage, mapped_at_creation }
    }

    /// Records that `bytes`, at most a [`piece`], go to `offset` of `target`, a multiple of 4. A length that is none is filled up
    /// with zeros to the next one. `at_once`: the encoder is submitted as soon as this is recorded.
    pub fn upload(
        &self,
        driver: &Driver,
        (encoder, at_once): (&mut CommandEncoder, bool),
        (target, offset): (&wgpu::Buffer, u64),
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        let padded = bytes.len().next_multiple_of(4);
        let lent = self.take(driver, padded as u64, at_once)?;
        {
            let view = lent.buffer.get_mapped_range_mut(..padded as u64);
            let mut view = view.map_err(|error| unmappable(driver, &error))?;
            view.slice(..bytes.len()).copy_from_slice(bytes);
            view.slice(bytes.len()..).fill(0);
        }
        driver.scoped("upload", padded as u64, || {
            lent.buffer.unmap();
            encoder.copy_buffer_to_buffer(&lent.buffer, 0, target, offset, padded as u64);
        })?;
        let (buffer, max) = (lent.buffer.clone(), self.max);
        encoder.map_buffer_on_submit(&buffer, self.mode, .., move |mapped| {
            if mapped.is_ok() {
                lent.put_back(max);
            }
        });
        Ok(())
    }

    /// Reads at most a [`piece`] at any `offset` of `source`, after all work given so far. Answers whether that was complete in time;
    /// if not, `bytes` are as they were.
    pub fn read(
        &self,
        driver: &Driver,
        (source, offset): (&wgpu::Buffer, u64),
        bytes: &mut [u8],
        until: Instant,
    ) -> Result<bool, BackendError> {
        let start = align_down(offset, 4);
        let skip = (offset - start) as usize;
        let whole = (skip + bytes.len()).next_multiple_of(4) as u64;
        let lent = self.take(driver, whole, true)?;
        let answer = Arc::new(AtomicU8::new(PENDING));
        let commands = driver.scoped("read", whole, || {
            let mut encoder = driver.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(source, start, &lent.buffer, 0, whole);
            encoder.finish()
        })?;
        driver.submit(commands)?;
        driver.scoped("read", whole, || {
            let answer = answer.clone();
            lent.buffer.map_async(self.mode, .., move |mapped| {
                answer.store(if mapped.is_ok() { MAPPED } else { REFUSED }, SeqCst);
            });
        })?;
        while answer.load(SeqCst) == PENDING {
            let left = until.saturating_duration_since(Instant::now());
            driver.poll(Some(left.min(WAIT)))?;
            driver.present()?;
            if answer.load(SeqCst) == PENDING && left.is_zero() {
                return Ok(false);
            }
        }
        let view = lent.buffer.get_mapped_range(..whole).map_err(|error| unmappable(driver, &error))?;
        bytes.copy_from_slice(&view[skip..skip + bytes.len()]);
        drop(view);
        lent.buffer.unmap();
        lent.put_back(self.max);
        Ok(true)
    }
}

/// How a request to map stands.
const PENDING: u8 = 0;
const MAPPED: u8 = 1;
const REFUSED: u8 = 2;

pub(super) fn unmappable(driver: &Driver, error: &wgpu::MapRangeError) -> BackendError {
    let lost = driver.present().err();
    lost.unwrap_or_else(|| BackendError::Driver { call: "map", reason: error.to_string(), code: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lent_by(belt: &Belt) -> u64 {
        belt.shelf.lock().lent
    }

    #[test]
    fn what_waits_in_an_encoder_is_lent_and_not_coming() {
        let (device, queue) = wgpu::Device::noop(&Default::default());
        let (driver, belt) = (Driver::new(&device, &queue).unwrap(), Belt::new(MapMode::Write, MIB));
        let description =
            BufferDescriptor { label: None, size: 8, usage: BufferUsages::COPY_DST, mapped_at_creation: false };
        let target = driver.create("test", &description).unwrap();
        let encoder = || device.create_command_encoder(&Default::default());
        let (mut first, mut second) = (encoder(), encoder());
        belt.upload(&driver, (&mut first, false), (&target, 0), &[1; 8]).unwrap();
        belt.upload(&driver, (&mut second, true), (&target, 0), &[2; 8]).unwrap();
        assert_eq!((lent_by(&belt), belt.coming()), (2 * LEAST, LEAST));
        driver.submit(second.finish()).unwrap();
        driver.poll(Some(WAIT)).unwrap();
        assert_eq!((lent_by(&belt), belt.coming()), (LEAST, 0));
        drop(first);
        assert_eq!((lent_by(&belt), belt.bytes()), (0, LEAST));
    }

    #[test]
    fn a_shelf_full_of_other_sizes_keeps_what_comes_back() {
        let (device, queue) = wgpu::Device::noop(&Default::default());
        let driver = Driver::new(&device, &queue).unwrap();
        let belt = Belt::new(MapMode::Write, MIB);
        let lend =
            |sizes: &[u64]| sizes.iter().map(|size| belt.take(&driver, *size, false).unwrap()).collect::<Vec<_>>();
        let put_back = |lent: Vec<Lent>| lent.into_iter().for_each(|lent| lent.put_back(MIB));
        put_back(lend(&[512 * KIB, 256 * KIB, 256 * KIB]));
        assert_eq!((belt.bytes(), lent_by(&belt)), (MIB, 0));
        let small = lend(&[4 * KIB]);
        let first = small[0].buffer.clone();
        put_back(small);
        let again = lend(&[4 * KIB]);
        assert!(again[0].buffer == first, "the same buffer");
        put_back(again);
        assert_eq!((belt.bytes(), lent_by(&belt)), (516 * KIB, 0), "the largest went");
        put_back(lend(&[2 * MIB]));
        assert_eq!(belt.bytes(), 516 * KIB, "what is larger than the shelf leaves it as it is");
        let mut seed = 1_u64;
        for _ in 0..300 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let size = LEAST << ((seed >> 33) % 10);
            put_back(lend(&[size]));
            let kept: u64 = belt.shelf.lock().buffers.iter().map(|(size, buffers)| size * buffers.len() as u64).sum();
            assert!(kept <= MIB && kept == belt.bytes());
            assert!(size > MIB || belt.shelf.lock().buffers.contains_key(&size));
        }
        belt.clear();
        assert_eq!(belt.bytes(), 0);
    }
}
