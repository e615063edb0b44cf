//! Files without a name, as the place behind reserved addresses: for more memory than the machine has. Linux; elsewhere a
//! typed refusal.
//!
//! Knows a folder, sizes and ranges of a file; mapping is [`super::mapping`]'s. A file is open nowhere else, has no name, and
//! goes when it is closed, so nobody else can read it, shorten it, or find it after a crash.
//!
//! * Space is taken when a range is filled, so that a full disk is refused then, and never a signal later. Where the file
//!   system only promises space (ZFS; Btrfs with snapshots), that is its promise.
//! * No call passes the process's limit of the size of files: the system would not refuse, it would send a signal.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::backend::Budget;

/// Where files are made.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// An empty file, to ask the file system by.
    probe: File,
}

impl Folder {
    /// A folder in which files can be made that take space and give it back: one was, with a page of so many bytes. Answers
    /// the largest file too of at most as many bytes as are `wanted` of a file system with so much space, as far as it says.
    pub(super) fn open(path: &Path, page: u64, wanted: impl FnOnce(Option<u64>) -> u64) -> io::Result<(Folder, u64)> {
        let probe = unnamed(path)?;
        let largest = largest(&probe, page, wanted(space(&probe)?.map(|space| space.total)))?;
        probe.set_len(page)?;
        // On a file system that is full now, memory comes when there is room.
        if let Err(error) = fill(&probe, 0..page)
            && !is_full(&error)
        {
            return Err(error);
        }
        empty(&probe, 0..page)?;
        probe.set_len(0)?;
        Ok((Folder { path: path.to_owned(), probe }, largest))
    }

    /// A new file of `size` bytes, none of which takes space.
    pub(super) fn file(&self, size: u64) -> io::Result<File> {
        if size > size_limit() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let file = unnamed(&self.path)?;
        file.set_len(size)?;
        Ok(file)
    }

    /// Space of the file system, and how much of it this process may still take; `None` where it does not say.
    pub(super) fn space(&self) -> io::Result<Option<Budget>> {
        space(&self.probe)
    }
}

/// Takes space for a range, which reads as zeros. Changes nothing when it fails.
pub(super) fn fill(file: &File, range: Range<u64>) -> io::Result<()> {
    // What is known to be too much is not tried: the system would fill the disk before it refuses.
    if space(file)?.is_some_and(|space| space.free < range.end - range.start) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    allocate(file, 0, range.clone()).inspect_err(|_| {
        empty(file, range).ok();
    })
}

/// Whether an error says that there is no space.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The largest size at most `wanted` that the file can have, by halves, and at least a page.
fn largest(file: &File, page: u64, wanted: u64) -> io::Result<u64> {
    let mut size = wanted.min(size_limit());
    loop {
        if size < page {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        match file.set_len(size) {
            Ok(()) => return Ok(size),
            Err(error) if matches!(error.kind(), io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidInput) => {
                size /= 2
            }
            Err(error) => return Err(error),
        }
    }
}

/// Gives the space of a range back. It reads as zeros then.
#[cfg(target_os = "linux")]
pub(super) fn empty(file: &File, range: Range<u64>) -> io::Result<()> {
    allocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, range)
}

#[cfg(target_os = "linux")]
fn unnamed(folder: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    match private().custom_flags(libc::O_TMPFILE).open(folder) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => briefly_named(folder),
        result => result,
    }
}

/// For file systems without files that never had a name.
#[cfg(target_os = "linux")]
fn briefly_named(folder: &Path) -> io::Result<File> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let path = folder.join(format!(".larder-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let file = private().create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(target_os = "linux")]
fn private() -> std::fs::OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

#[cfg(target_os = "linux")]
fn allocate(file: &File, mode: libc::c_int, range: Range<u64>) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let too_large = |_| io::Error::from(io::ErrorKind::FileTooLarge);
    let offset = libc::off64_t::try_from(range.start).map_err(too_large)?;
    let length = libc::off64_t::try_from(range.end - range.start).map_err(too_large)?;
    loop {
        // SAFETY: the call takes numbers only, and the file is open as long as it is borrowed.
        if unsafe { libc::fallocate64(file.as_raw_fd(), mode, offset, length) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(target_os = "linux")]
fn space(file: &File) -> io::Result<Option<Budget>> {
    use std::os::fd::AsRawFd;
    let mut said = std::mem::MaybeUninit::<libc::statvfs64>::zeroed();
    // SAFETY: the pointer is to a `statvfs64` of our own, which the call may write as a whole.
    if unsafe { libc::fstatvfs64(file.as_raw_fd(), said.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroes are a `statvfs64`, and so is what a call that succeeded wrote.
    let said = unsafe { said.assume_init() };
    Ok(budget(said.f_blocks, said.f_bavail, said.f_frsize))
}

/// Of how many blocks of so many bytes a file system is, and how many are free. One without an end, as memory may be, says 0. The
/// numbers are of other types on other machines.
#[cfg(target_os = "linux")]
fn budget(blocks: impl Into<u64>, free: impl Into<u64>, bytes: impl Into<u64>) -> Option<Budget> {
    let (blocks, bytes) = (blocks.into(), bytes.into());
    let total = blocks.saturating_mul(bytes);
    (blocks > 0).then(|| Budget { total, free: free.into().saturating_mul(bytes).min(total) })
}

/// The most bytes that this process may give a file.
#[cfg(target_os = "linux")]
fn size_limit() -> u64 {
    let mut said = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to an `rlimit64` of our own, which the call may write.
    match unsafe { libc::getrlimit64(libc::RLIMIT_FSIZE, &mut said) } {
        0 => said.rlim_cur.min(i64::MAX as u64),
        _ => i64::MAX as u64,
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn empty(_file: &File, _range: Range<u64>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
fn unnamed(_folder: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
fn allocate(_file: &File, _mode: libc::c_int, _range: Range<u64>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
fn space(_file: &File) -> io::Result<Option<Budget>> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
fn size_limit() -> u64 {
    i64::MAX as u64
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const PAGE: u64 = 1 << 20;

    fn taken(file: &File) -> u64 {
        file.metadata().unwrap().blocks() * 512
    }

    #[test]
    fn space_is_taken_by_filling_and_given_back_by_emptying() {
        let (folder, largest) = Folder::open(&std::env::temp_dir(), PAGE, |_| 1 << 40).unwrap();
        let file = folder.file(largest).unwrap();
        assert_eq!((taken(&file), file.metadata().unwrap().len()), (0, largest));
        fill(&file, PAGE..9 * PAGE).unwrap();
        assert!(taken(&file) >= 8 * PAGE, "{}", taken(&file));
        empty(&file, 2 * PAGE..9 * PAGE).unwrap();
        assert!(taken(&file) <= 2 * PAGE, "{}", taken(&file));
    }

    #[test]
    fn what_the_disk_has_not_is_refused_and_takes_nothing() {
        let (folder, _) = Folder::open(&std::env::temp_dir(), PAGE, |_| 1 << 40).unwrap();
        let too_much = folder.space().unwrap().unwrap().total + PAGE;
        let file = unnamed(&std::env::temp_dir()).unwrap();
        let error = fill(&file, 0..too_much).unwrap_err();
        assert!(is_full(&error), "{error}");
        assert_eq!(taken(&file), 0);
    }

    #[test]
    fn a_file_that_had_a_name_is_as_good() {
        let file = briefly_named(&std::env::temp_dir()).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        file.set_len(PAGE).unwrap();
        fill(&file, 0..PAGE).unwrap();
    }

    #[test]
    fn no_file_is_larger_than_the_file_system_allows() {
        let (folder, largest) = Folder::open(&std::env::temp_dir(), PAGE, |_| u64::MAX).unwrap();
        assert!(largest >= PAGE && largest <= i64::MAX as u64);
        assert_eq!(folder.file(u64::MAX).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn a_file_system_that_says_nothing_has_no_budget() {
        assert_eq!(budget(0_u64, 0_u64, 4096_u32), None);
        assert_eq!(budget(10_u32, 4_u32, 4096_u64), Some(Budget { total: 40_960, free: 16_384 }));
    }
}
