//! One reservation of addresses and the calls of the system on it. The only file of [`super::mmap`] with unsafe code.
//!
//! Knows no page size but the system's, no ids and no contract errors: ranges are checked by its caller, and asserted here
//! where memory safety rests on them.
//!
//! Invariants: the mapping owns `base .. base + size`, which nobody else maps, unmaps or protects; a byte in `backed` is
//! readable and writable; a byte outside has no memory behind it. With a file, offset `n` of the file is behind `base + n`,
//! it has space for what is in `backed`, and no other process uses it: one that was forked
//! from its maker has neither the addresses nor a right to the bytes, and is refused.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr;

use libc::{MAP_ANON, MAP_FAILED, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE, c_int, c_void};

use super::file;
use super::runs::Runs;
use crate::units::MIB;

/// Bytes of a huge page on the machines we know.
pub(super) const HUGE_PAGE: u64 = 2 * MIB;

/// Where systems count reserved addresses as memory unless told otherwise.
#[cfg(target_os = "linux")]
const NO_RESERVE: c_int = libc::MAP_NORESERVE;
#[cfg(not(target_os = "linux"))]
const NO_RESERVE: c_int = 0;

/// Addresses that are mapped until this is dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    base: u64,
    size: u64,
    backed: Runs,
    /// Where the bytes are kept; in the system's own memory without.
    file: Option<File>,
    /// Whose the addresses and the file are.
    process: u32,
}

impl Mapping {
    /// `size` bytes of addresses at a multiple of `align`, with nothing behind them.
    ///
    /// `size` is a multiple of the system's page and not 0, `align` a power of two of at least that page.
    pub(super) fn reserve(size: u64, align: u64) -> io::Result<Mapping> {
        assert!(align.is_power_of_two() && align >= system_page() && size > 0 && size.is_multiple_of(system_page()));
        let refused = || io::Error::from_raw_os_error(libc::ENOMEM);
        let padded = size.checked_add(align).and_then(|padded| usize::try_from(padded).ok()).ok_or_else(refused)?;
        let flags = MAP_PRIVATE | MAP_ANON | NO_RESERVE;
        // SAFETY: a new anonymous mapping where the system likes; it replaces no other.
        let pointer = unsafe { libc::mmap(ptr::null_mut(), padded, PROT_NONE, flags, -1, 0) };
        if pointer == MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = pointer.expose_provenance() as u64;
        let base = start.next_multiple_of(align);
        let (head, tail) = (start..base, base + size..start + padded as u64);
        for part in [head, tail].into_iter().filter(|part| !part.is_empty()) {
            // SAFETY: a part of the mapping made above that lies outside `base .. base + size`; nobody knows of it.
            // Should the system refuse, these addresses stay reserved, with nothing behind them.
            unsafe { libc::munmap(at(part.start), (part.end - part.start) as usize) };
        }
        Ok(Mapping { base, size, backed: Runs::default(), file: None, process: std::process::id() })
    }

    /// As [`Mapping::reserve`], with a file of `size` bytes behind the addresses, which takes no space and is open nowhere else.
    pub(super) fn of_file(file: File, size: u64, align: u64) -> io::Result<Mapping> {
        use std::os::fd::AsRawFd;
        let mut mapping = Mapping::reserve(size, align)?;
        let (start, length) = mapping.place(&(0..size));
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | NO_RESERVE;
        // SAFETY: `place` has checked that the addresses are ours; what is replaced is empty and nobody knows of it.
        let pointer = unsafe { libc::mmap(start, length, PROT_NONE, flags, file.as_raw_fd(), 0) };
        if pointer == MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        mapping.keep_from_children()?;
        mapping.file = Some(file);
        Ok(mapping)
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn backed(&self) -> &Runs {
        &self.backed
    }

    /// Asks for huge pages behind the whole mapping, now and later.
    #[cfg(target_os = "linux")]
    pub(super) fn advise_huge(&self) -> io::Result<()> {
        self.advise(0..self.size, libc::MADV_HUGEPAGE)
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn advise_huge(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// A process forked from this one would share the bytes of a file with it: it gets no such addresses.
    #[cfg(target_os = "linux")]
    fn keep_from_children(&self) -> io::Result<()> {
        self.advise(0..self.size, libc::MADV_DONTFORK)
    }

    #[cfg(not(target_os = "linux"))]
    fn keep_from_children(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether this process was forked from the one whose file this is: that one has the bytes still, and what is at these
    /// addresses here is somebody else's. Memory without a file is each process's own.
    fn is_foreign(&self) -> bool {
        self.file.is_some() && self.process != std::process::id()
    }

    fn own(&self) -> io::Result<()> {
        match self.is_foreign() {
            true => Err(io::Error::other(
                "memory in files belongs to the process that made it, not to those forked from it",
            )),
            false => Ok(()),
        }
    }

    /// Lets a range be used: its memory comes when it is first touched, as zeros. Changes nothing when it fails.
    pub(super) fn open(&mut self, range: Range<u64>) -> io::Result<()> {
        assert!(!self.backed.touches(&range));
        self.own()?;
        if let Some(file) = &self.file {
            file::fill(file, range.clone())?;
        }
        if let Err(error) = self.protect(range.clone(), PROT_READ | PROT_WRITE) {
            // A part may have been opened already. Should this fail too, it is open and not backed: harmless.
            self.protect(range.clone(), PROT_NONE).ok();
            if let Some(file) = &self.file {
                file::empty(file, range).ok();
            }
            return Err(error);
        }
        self.backed.insert(range);
        Ok(())
    }

    /// Takes the memory behind a range away. Changes nothing when it fails.
    ///
    /// The range is closed first and emptied second, so that a stray write faults and takes no new memory. When the system
    /// will not close it (that may split its record of the mapping, and it keeps only so many), it is emptied all the same:
    /// giving memory back must work when everything else is refused.
    pub(super) fn close(&mut self, range: Range<u64>) -> io::Result<()> {
        assert!(self.backed.covers(&range));
        self.own()?;
        self.protect(range.clone(), PROT_NONE).ok();
        if let Err(error) = self.discard(range.clone()) {
            self.protect(range.clone(), PROT_READ | PROT_WRITE).inspect_err(|_| {
                // Neither way: what cannot be opened again is not backed, whatever memory is left behind it.
                self.backed.remove(range);
            })?;
            return Err(error);
        }
        self.backed.remove(range);
        Ok(())
    }

    /// Fills a backed range with zeros.
    pub(super) fn zero(&mut self, range: Range<u64>) -> io::Result<()> {
        assert!(self.backed.covers(&range));
        self.own()?;
        // SAFETY: a backed range is mapped, writable and ours; any byte may be zero. That nobody uses it now is what the
        // caller of the backend promises (4).
        unsafe { ptr::write_bytes(at(self.base + range.start).cast::<u8>(), 0, (range.end - range.start) as usize) }
        Ok(())
    }

    /// The bytes of a backed range, which nobody else uses meanwhile.
    pub(super) fn bytes(&mut self, range: Range<u64>) -> io::Result<&mut [u8]> {
        assert!(self.backed.covers(&range));
        self.own()?;
        // SAFETY: a backed range is mapped, readable, writable, initialised by the system and ours, as long as this is borrowed. That
        // nobody else uses it meanwhile is what the caller of the backend promises (4).
        Ok(unsafe {
            std::slice::from_raw_parts_mut(at(self.base + range.start).cast::<u8>(), (range.end - range.start) as usize)
        })
    }

    /// Makes the system put memory behind a range that was opened just now and not touched since, with up to `threads`
    /// threads, none of which gets a part of a huge page.
    pub(super) fn populate(&mut self, range: Range<u64>, threads: NonZeroUsize) -> io::Result<()> {
        assert!(self.backed.covers(&range));
        let slice = (range.end - range.start).div_ceil(threads.get() as u64).next_multiple_of(HUGE_PAGE);
        let slices = || range.clone().step_by(slice as usize).map(|start| start..(start + slice).min(range.end));
        let this: &Mapping = self;
        std::thread::scope(|scope| {
            let mut result = Ok(());
            let mut helpers = Vec::new();
            for slice in slices().skip(1) {
                let work = slice.clone();
                match std::thread::Builder::new().spawn_scoped(scope, move || this.populate_slice(work)) {
                    Ok(helper) => helpers.push(helper),
                    Err(_) => result = result.and(this.populate_slice(slice)),
                }
            }
            result = result.and(slices().next().map_or(Ok(()), |slice| this.populate_slice(slice)));
            helpers.into_iter().fold(result, |result, helper| {
                result.and(helper.join().unwrap_or_else(|_| Err(io::Error::other("a helper thread panicked"))))
            })
        })
    }

    #[cfg(target_os = "linux")]
    fn populate_slice(&self, range: Range<u64>) -> io::Result<()> {
        match self.advise(range.clone(), libc::MADV_POPULATE_WRITE) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.touch(range),
            result => result,
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn populate_slice(&self, range: Range<u64>) -> io::Result<()> {
        self.touch(range)
    }

    /// Writes to every system page of a range that is backed and was not touched since it was opened.
    fn touch(&self, range: Range<u64>) -> io::Result<()> {
        assert!(self.backed.covers(&range));
        for offset in range.step_by(system_page() as usize) {
            // SAFETY: a backed byte is mapped and writable; it is zero already and its address not yet given to anybody.
            unsafe { ptr::write_volatile(at(self.base + offset).cast::<u8>(), 0) }
        }
        Ok(())
    }

    /// Unmaps everything, in the process whose it is. The mapping is empty afterwards.
    pub(super) fn unmap(&mut self) -> io::Result<()> {
        if self.size > 0 && !self.is_foreign() {
            // SAFETY: these addresses are ours, and after this they are no longer in the mapping.
            check(unsafe { libc::munmap(at(self.base), self.size as usize) })?;
        }
        self.size = 0;
        self.backed = Runs::default();
        Ok(())
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        match &self.file {
            // The system takes the pages of a hole out of every mapping.
            Some(file) => file::empty(file, range),
            None => self.discard_memory(range),
        }
    }

    #[cfg(target_os = "linux")]
    fn discard_memory(&self, range: Range<u64>) -> io::Result<()> {
        match self.advise(range.clone(), libc::MADV_DONTNEED) {
            // Memory that was locked (mlockall) is only let go when told so.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.advise(range, libc::MADV_DONTNEED_LOCKED),
            result => result,
        }
    }

    /// Elsewhere `MADV_DONTNEED` is only advice: new empty addresses in the place of the old.
    #[cfg(not(target_os = "linux"))]
    fn discard_memory(&self, range: Range<u64>) -> io::Result<()> {
        let (start, length) = self.place(&range);
        let flags = MAP_PRIVATE | MAP_ANON | libc::MAP_FIXED | NO_RESERVE;
        // SAFETY: `place` has checked that the range is ours; what it replaces is what the caller gives up.
        let pointer = unsafe { libc::mmap(start, length, PROT_NONE, flags, -1, 0) };
        if pointer == MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    #[cfg(target_os = "linux")]
    fn advise(&self, range: Range<u64>, advice: c_int) -> io::Result<()> {
        let (start, length) = self.place(&range);
        // SAFETY: `place` has checked that the range is ours. Of the advice given in this file only the discarding one
        // changes contents, and its caller gives them up.
        check(unsafe { libc::madvise(start, length, advice) })
    }

    fn protect(&self, range: Range<u64>, access: c_int) -> io::Result<()> {
        let (start, length) = self.place(&range);
        // SAFETY: `place` has checked that the range is ours; whoever may read or write it holds a block of backed memory,
        // which the caller keeps open.
        check(unsafe { libc::mprotect(start, length, access) })
    }

    /// The address and the length of a range, which must be in the mapping.
    fn place(&self, range: &Range<u64>) -> (*mut c_void, usize) {
        assert!(range.start < range.end && range.end <= self.size, "{range:?} leaves {self:?}");
        (at(self.base + range.start), (range.end - range.start) as usize)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.unmap().ok();
    }
}

/// The pointer for an address that `reserve` got from the system.
fn at(address: u64) -> *mut c_void {
    ptr::with_exposed_provenance_mut(address as usize)
}

fn check(code: c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn sysconf(name: c_int) -> Option<u64> {
    // SAFETY: `sysconf` takes any number and only reads.
    u64::try_from(unsafe { libc::sysconf(name) }).ok().filter(|value| *value > 0)
}

/// Bytes of the system's page.
pub(super) fn system_page() -> u64 {
    sysconf(libc::_SC_PAGESIZE).filter(|page| page.is_power_of_two()).unwrap_or(4096)
}

/// Bytes of physical memory.
pub(super) fn physical_memory() -> Option<u64> {
    sysconf(libc::_SC_PHYS_PAGES)?.checked_mul(system_page())
}

/// Whether the system would put huge pages behind memory that asks for them.
pub(super) fn huge_pages_enabled() -> bool {
    std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|text| !text.contains("[never]"))
        && huge_pages_allowed()
}

/// Whether this process has not switched them off for itself.
#[cfg(target_os = "linux")]
fn huge_pages_allowed() -> bool {
    const UNUSED: libc::c_ulong = 0;
    const PR_GET_THP_DISABLE: c_int = 42;
    // SAFETY: this option takes no pointer and only reads.
    unsafe { libc::prctl(PR_GET_THP_DISABLE, UNUSED, UNUSED, UNUSED, UNUSED) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn huge_pages_allowed() -> bool {
    false
}
