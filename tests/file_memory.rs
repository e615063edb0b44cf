//! Memory kept in files: it holds what is written, more than is there is refused in words, folders that do not serve are told
//! from those that do, the process's limit of file sizes ends no process, and a forked one harms nobody.
#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use larder::backend::{Backend, BackendError, host::Mmap};
use larder::snapshot::Verdict;
use larder::units::{GIB, MIB};
use larder::{AllocError, Allocator, Config};

/// A folder of the temporary folder, gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("larder-file-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn is_empty(&self) -> bool {
        std::fs::read_dir(&self.0).unwrap().next().is_none()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

#[test]
fn what_is_written_is_read_and_no_file_is_seen() {
    let folder = Folder::new("story");
    let files = Allocator::host_file(&folder.0, Config::default().limit(64 * MIB)).unwrap();
    let mut blocks: Vec<_> = (0..15).map(|_| files.alloc(4 * MIB).unwrap()).collect();
    for (at, block) in blocks.iter_mut().enumerate() {
        block.as_mut_slice::<u64>().unwrap().fill(at as u64);
    }
    assert!(folder.is_empty());
    for (at, block) in blocks.iter().enumerate() {
        assert!(block.as_slice::<u64>().unwrap().iter().all(|word| *word == at as u64));
    }
    let at: Vec<usize> = (0..15).step_by(2).collect();
    at.iter().rev().for_each(|at| drop(blocks.remove(*at)));
    // 32 MiB are free in holes of 4 MiB: their pages go back, and as many are taken elsewhere.
    let large = files.alloc(32 * MIB).unwrap();
    assert!(blocks.iter().all(|block| block.as_slice::<u64>().unwrap().iter().all(|word| word % 2 == 1)));
    assert_eq!(files.stats().reserved.current, 60 * MIB);
    files.check().unwrap();
    drop((large, blocks));
    assert_eq!(files.purge().unwrap(), 60 * MIB);
    assert!(folder.is_empty());
}

#[test]
fn zeros_are_zero_where_something_was_written_before() {
    let files = Allocator::host_file(&std::env::temp_dir(), Config::default().limit(8 * MIB)).unwrap();
    files.alloc(8 * MIB).unwrap().as_mut_bytes().fill(0xA5);
    assert!(files.alloc_zeroed(8 * MIB).unwrap().as_bytes().iter().all(|byte| *byte == 0));
    files.purge().unwrap();
    assert!(files.alloc(8 * MIB).unwrap().as_bytes().iter().all(|byte| *byte == 0), "a hole reads as zeros");
}

#[test]
fn more_than_the_disk_has_is_out_of_memory_and_nothing_is_lost() {
    let folder = std::env::temp_dir();
    let Some(space) = Mmap::in_folder(&folder, Default::default()).unwrap().budget().unwrap() else {
        return println!("not run: {} has no end", folder.display());
    };
    let files = Allocator::host_file(&folder, Config::default().limit(u64::MAX)).unwrap();
    let mut kept = files.alloc(2 * MIB).unwrap();
    kept.as_mut_bytes().fill(1);
    let error = files.alloc(space.total / (2 * MIB) * (2 * MIB)).unwrap_err();
    let report = error.report().unwrap_or_else(|| panic!("{error}"));
    assert_eq!((report.verdict(), report.budget.unwrap().total), (Verdict::DeviceFull, space.total), "{error}");
    assert_eq!(files.stats().reserved.current, 2 * MIB);
    files.alloc(MIB).unwrap();
    assert!(kept.as_bytes().iter().all(|byte| *byte == 1));
}

#[test]
fn without_a_limit_it_is_what_the_disk_has_less_a_margin() {
    let folder = std::env::temp_dir();
    let files = Allocator::host_file(&folder, Config::default()).unwrap();
    let Some(space) = files.snapshot().budget else {
        return println!("not run: {} has no end", folder.display());
    };
    let limit = files.config().limit.unwrap();
    assert!(limit < space.total && limit > 0, "{limit} of {space:?}");
}

#[test]
fn folders_that_do_not_serve_are_typed_errors() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in [&here.join("no such folder"), &here.join("Cargo.toml"), Path::new("/proc"), Path::new("")] {
        let error = Allocator::host_file(folder, Config::default()).unwrap_err();
        assert!(
            matches!(&error, AllocError::Backend(BackendError::Driver { code, .. }) if *code != 0),
            "{}: {error:?}",
            folder.display()
        );
    }
    let error = Allocator::host_file(&std::env::temp_dir(), Config { page: Some(1000), ..Config::default() });
    assert!(matches!(error, Err(AllocError::Config(_))));
}

#[test]
fn a_forked_process_that_drops_its_handles_harms_nobody() {
    const SIZE: u64 = 4 * MIB;
    let files = Allocator::host_file(&std::env::temp_dir(), Config::default().limit(64 * MIB)).unwrap();
    let (mut kept, idle) = (files.alloc(SIZE).unwrap(), files.alloc(SIZE).unwrap());
    kept.as_mut_bytes().fill(0xA5);
    // SAFETY: the child touches what it alone has, and ends without running anything of the parent's.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let fine = catch_unwind(AssertUnwindSafe(|| {
            let hole = std::ptr::with_exposed_provenance_mut::<libc::c_void>(kept.address() as usize);
            let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANON);
            // SAFETY: new memory at addresses that the child has nothing at, or none.
            let mine = unsafe { libc::mmap(hole, SIZE as usize, access, flags | libc::MAP_FIXED_NOREPLACE, -1, 0) };
            assert_eq!(mine, hole);
            // SAFETY: mapped just now.
            unsafe { mine.cast::<u8>().write_bytes(7, SIZE as usize) };
            drop(kept);
            assert!(matches!(files.purge(), Err(AllocError::Backend(BackendError::Driver { .. }))));
            assert!(files.alloc(16 * MIB).is_err() && files.alloc_zeroed(SIZE).is_err());
            drop((idle, files));
            // SAFETY: mapped above.
            let left = unsafe { std::slice::from_raw_parts(mine.cast::<u8>(), SIZE as usize) };
            assert!(left.iter().all(|byte| *byte == 7));
        }));
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(fine.is_err())) }
    }
    let mut status = 0;
    // SAFETY: the pointer is to a number of our own.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    assert!(kept.as_bytes().iter().all(|byte| *byte == 0xA5));
    drop(idle);
    assert_eq!(files.purge().unwrap(), SIZE);
    files.check().unwrap();
}

const CHILD: &str = "LARDER_TEST_CHILD";

/// Runs a test of this file in a process of its own, after `prelude` in its shell.
fn in_a_child(test: &str, prelude: &str) {
    let output = Command::new("sh")
        .args(["-c", &format!("{prelude}; exec \"$0\" --exact {test} --nocapture")])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{}: {text}", output.status);
}

#[test]
fn the_limit_of_file_sizes_is_an_error_and_no_signal() {
    if std::env::var_os(CHILD).is_none() {
        // In units of 512 or 1024 bytes, as the shell has it.
        return in_a_child("the_limit_of_file_sizes_is_an_error_and_no_signal", "ulimit -f 65536");
    }
    let mmap = Mmap::in_folder(&std::env::temp_dir(), Default::default()).unwrap();
    let most = mmap.capabilities().region_max;
    assert!(most == 32 * MIB || most == 64 * MIB, "{most}");
    let files = Allocator::host_file(&std::env::temp_dir(), Config::default()).unwrap();
    let full = files.alloc(most).unwrap();
    assert!(matches!(files.alloc(most + 1), Err(AllocError::TooLarge { .. })));
    drop(full);
    let error = Mmap::in_folder(
        &std::env::temp_dir(),
        larder::backend::host::MmapConfig { page: 128 * MIB, ..Default::default() },
    );
    assert!(matches!(error, Err(BackendError::Driver { .. })), "{error:?}");
}

/// The folder of a file system of memory of so many bytes, as `mount` writes it, in a process of its own that runs `test`; `None`
/// in the process that started that one, or could not. Where processes may have mounts of their own, CI insists on it.
fn in_memory_of(size: &str, test: &str) -> Option<PathBuf> {
    if std::env::var_os(CHILD).is_some() {
        return Some(std::env::var_os("LARDER_TEST_FOLDER").unwrap().into());
    }
    let folder = Folder::new(test);
    let path = folder.0.display();
    let mount = format!("mount -t tmpfs -o size={size} tmpfs {path}");
    let able = |command: &str| {
        Command::new("unshare").args(["-rm", "sh", "-c", command]).output().is_ok_and(|output| output.status.success())
    };
    if able(&mount) {
        let rest = format!("{mount}; LARDER_TEST_FOLDER={path} exec \"$0\" --exact \"$1\" --nocapture");
        in_a_child(test, &format!("set -- {test}; exec unshare -rm sh -c '{rest}' \"$0\" \"$1\""));
    } else {
        let insists = std::env::var("CI").is_ok_and(|value| value == "true") && able("true");
        assert!(!insists, "`{mount}` fails in a process with mounts of its own");
        println!("not run: this machine lets nobody mount a small file system");
    }
    None
}

#[test]
fn a_file_system_without_an_end_gives_what_it_can() {
    let Some(folder) = in_memory_of("0", "a_file_system_without_an_end_gives_what_it_can") else { return };
    let files = Allocator::host_file(&folder, Config::default()).unwrap();
    assert_eq!((files.config().limit, files.snapshot().budget), (None, None));
    files.alloc(4 * MIB).unwrap().as_mut_bytes().fill(1);
    assert!(files.alloc_zeroed(4 * MIB).unwrap().as_bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn a_full_file_system_is_out_of_memory() {
    let Some(folder) = in_memory_of("16m", "a_full_file_system_is_out_of_memory") else { return };
    let files = Allocator::host_file(&folder, Config::default().limit(GIB)).unwrap();
    let mut blocks = Vec::new();
    let error = loop {
        match files.alloc(2 * MIB) {
            Ok(mut block) => {
                block.as_mut_bytes().fill(1);
                blocks.push(block);
            }
            Err(error) => break error,
        }
    };
    assert_eq!((blocks.len(), error.report().unwrap().verdict()), (8, Verdict::DeviceFull), "{error}");
    blocks.pop();
    files.alloc(2 * MIB).unwrap().as_mut_bytes().fill(2);
    assert!(blocks.iter().all(|block| block.as_bytes().iter().all(|byte| *byte == 1)));
    files.check().unwrap();
}
