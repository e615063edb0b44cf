//! The CUDA driver that tests talk to: the stand-in of `tests/standin`, built and loaded here, or the machine's own.
//!
//! With `LARDER_CUDA=real` in the environment nothing is built: [`any`] then lets tests run against the machine's driver, and what
//! needs the stand-in's controls ([`standin`]) is reported as not run. The library is loaded under the names that callers look
//! for, NVRTC's among them, and once for the process, so tests of one process take turns: each has the driver for itself while it
//! holds what it was given, and begins in a new world.
#![allow(dead_code, unsafe_code)]

use std::ffi::{CString, c_char, c_int};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, MutexGuard};
use std::{env, fs};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// What the stand-in pretends to be.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// How many devices there are.
    pub devices: i32,
    /// The driver's version, as `cuDriverGetVersion` says it.
    pub version: i32,
    /// What `cuInit` answers.
    pub init: i32,
    /// Whether there is virtual memory.
    pub virtual_memory: bool,
    /// Whether there is stream-ordered memory.
    pub pools: bool,
    /// Whether devices may touch each other's memory.
    pub peers: bool,
    /// Bytes of each device.
    pub capacity: u64,
    /// The granularity of virtual memory.
    pub page: u64,
}

/// What is alive.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    pub handles: u64,
    pub mappings: u64,
    pub mapped_bytes: u64,
    pub reservations: u64,
    pub reserved_bytes: u64,
    /// Plain and stream-ordered ones.
    pub allocations: u64,
    pub pinned: u64,
    /// Bytes that devices have given.
    pub used_bytes: u64,
    pub streams: u64,
    pub events: u64,
    /// Graphs and executable ones.
    pub graphs: u64,
    /// Operations that have not run.
    pub queued: u64,
    /// References to primary contexts.
    pub contexts: u64,
}

impl Totals {
    /// Everything given back but contexts, which whoever made them holds.
    pub fn is_clean(&self) -> bool {
        Totals { contexts: 0, ..*self } == Totals::default()
    }
}

static TURN: Mutex<()> = Mutex::new(());
static LOADED: LazyLock<Library> = LazyLock::new(load);

macro_rules! control {
    ($name:literal as fn($($type:ty),*) $(-> $answer:ty)?; $($value:expr),*) => {{
        // SAFETY: `control.rs` of the stand-in declares it so, and the library stays loaded.
        unsafe {
            let symbol = LOADED.get::<unsafe extern "C" fn($($type),*) $(-> $answer)?>($name).expect("a control");
            symbol($($value),*)
        }
    }};
}

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn is_real() -> bool {
    env::var_os("LARDER_CUDA").is_some_and(|value| value == "real")
}

/// The driver for tests that share it: no turn is taken and no world begun. Whoever asks whether work is done lets some of it run.
pub fn shared() {
    if !is_real() {
        patience(1);
    }
}

fn patience(queries: u64) {
    control!(b"standin_patience" as fn(u64); queries);
}

/// What the stand-in's NVRTC is like.
#[repr(u64)]
#[derive(Clone, Copy, Debug)]
pub enum Compiler {
    Usual = 0,
    /// It compiles for no device, only to PTX.
    KnowsNoArchitecture = 1,
    Broken = 2,
}

/// The driver of the machine where that is wanted, else the stand-in.
pub struct Any {
    pub standin: Option<Standin>,
    _turn: Option<MutexGuard<'static, ()>>,
}

/// For tests that run against either driver.
pub fn any() -> Any {
    if is_real() { Any { standin: None, _turn: Some(turn()) } } else { Any { standin: standin(), _turn: None } }
}

/// The stand-in; `None`, and a line that says so, where the machine's driver is wanted.
pub fn standin() -> Option<Standin> {
    if is_real() {
        println!("not run: needs the stand-in driver, and LARDER_CUDA=real");
        return None;
    }
    let standin = Standin { _turn: turn() };
    standin.reset(standin.machine());
    Some(standin)
}

/// The stand-in's controls; the driver is this test's own while it is held.
pub struct Standin {
    _turn: MutexGuard<'static, ()>,
}

/// What went wrong for those who share the driver.
pub fn shared_violations() -> Vec<String> {
    if is_real() { Vec::new() } else { violations() }
}

fn violations() -> Vec<String> {
    lines(|room, size| control!(b"standin_violations" as fn(*mut u8, usize) -> usize; room, size))
}

impl Standin {
    /// The machine that the environment asks for; by default one device of 1 GiB that can everything.
    pub fn machine(&self) -> Machine {
        let mut machine = std::mem::MaybeUninit::uninit();
        control!(b"standin_machine" as fn(*mut Machine); machine.as_mut_ptr());
        // SAFETY: just written.
        unsafe { machine.assume_init() }
    }

    /// A new world on such a machine. Nothing of the old one may be used any more.
    pub fn reset(&self, machine: Machine) {
        control!(b"standin_reset" as fn(*const Machine); &machine);
    }

    /// Bytes that each device has from now on.
    pub fn capacity(&self, bytes: u64) {
        control!(b"standin_capacity" as fn(u64); bytes);
    }

    /// Bytes of addresses that may be reserved at a time.
    pub fn address_limit(&self, bytes: u64) {
        control!(b"standin_address_limit" as fn(u64); bytes);
    }

    /// The `k`th call from now of an entry point (`*`: of any) fails with a code.
    pub fn fail(&self, name: &str, k: u64, code: i32) {
        control!(b"standin_fail" as fn(*const c_char, u64, i32, c_int); text(name).as_ptr(), k, code, 0);
    }

    /// From the `k`th call from now on, every call of an entry point (`*`: of any) fails with a code.
    pub fn fail_from(&self, name: &str, k: u64, code: i32) {
        control!(b"standin_fail" as fn(*const c_char, u64, i32, c_int); text(name).as_ptr(), k, code, 1);
    }

    /// What NVRTC is like from now on, in this world; answers how often it has compiled until now.
    pub fn compiler(&self, is: Compiler) -> u64 {
        control!(b"standin_compiler" as fn(u64) -> u64; is as u64)
    }

    /// No failures to come, and the device is not lost.
    pub fn heal(&self) {
        control!(b"standin_heal" as fn(););
    }

    /// Every call fails with this code from now on.
    pub fn lose(&self, code: i32) {
        control!(b"standin_lose" as fn(i32); code);
    }

    /// The calls of an entry point so far; `*`: of all.
    pub fn calls(&self, name: &str) -> u64 {
        control!(b"standin_calls" as fn(*const c_char) -> u64; text(name).as_ptr())
    }

    /// After how many vain queries in a row one operation runs; 0: never.
    pub fn patience(&self, queries: u64) {
        patience(queries);
    }

    /// Runs at most `n` operations of a stream; answers how many ran before it was empty or had to wait.
    pub fn step(&self, stream: usize, n: u64) -> u64 {
        control!(b"standin_step" as fn(usize, u64) -> u64; stream, n)
    }

    /// Runs one operation of some queue; `false`: all are empty.
    pub fn step_any(&self, pick: u64) -> bool {
        control!(b"standin_step_any" as fn(u64) -> c_int; pick) != 0
    }

    /// Says that the host now reads or writes pinned memory.
    pub fn host_touch(&self, at: u64, size: u64, write: bool) {
        control!(b"standin_host_touch" as fn(u64, u64, c_int); at, size, c_int::from(write));
    }

    /// What went wrong since the last clear.
    pub fn violations(&self) -> Vec<String> {
        violations()
    }

    pub fn clear_violations(&self) {
        control!(b"standin_clear_violations" as fn(););
    }

    /// Panics with what went wrong, if anything did.
    #[track_caller]
    pub fn assert_clean(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "\n{}", violations.join("\n"));
    }

    /// The entry points that planted failures have struck.
    pub fn struck(&self) -> Vec<String> {
        lines(|room, size| control!(b"standin_struck" as fn(*mut u8, usize) -> usize; room, size))
    }

    /// What is alive, in words.
    pub fn leaks(&self) -> Vec<String> {
        lines(|room, size| control!(b"standin_leaks" as fn(*mut u8, usize) -> usize; room, size))
    }

    /// What is alive, in numbers.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        control!(b"standin_totals" as fn(*mut Totals); &mut totals);
        totals
    }
}

fn text(name: &str) -> CString {
    CString::new(name).expect("no zero in a name")
}

fn lines(give: impl Fn(*mut u8, usize) -> usize) -> Vec<String> {
    let mut room = vec![0; give(std::ptr::null_mut(), 0)];
    let size = give(room.as_mut_ptr(), room.len()).min(room.len());
    String::from_utf8_lossy(&room[..size]).lines().map(str::to_owned).collect()
}

// ---- building and loading

/// The name under which most callers look for the driver first; the one that the system's own library has; and NVRTC's.
const NAMES: [&str; 3] = ["libcuda.so", "libcuda.so.1", "libnvrtc.so"];

fn load() -> Library {
    let folder = built();
    let [library, driver, compiler] = NAMES.map(|name| {
        let path = folder.join(name);
        // SAFETY: our own library, whose loading runs nothing but what Rust's runtime does.
        unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    });
    // They stay for the life of the process, as the driver does.
    std::mem::forget((driver, compiler));
    library
}

/// The folder with the library, built unless it is there. Its name follows the sources, so it is never stale, and it appears
/// whole, so processes that build at once do not meet.
pub fn built() -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/standin");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut hash = DefaultHasher::new();
    hash_sources(&sources, &mut hash);
    rustc.hash(&mut hash);
    include_str!("driver.rs").hash(&mut hash);
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = base.join(format!("standin-{:016x}", hash.finish()));
    if folder.is_dir() {
        return folder;
    }
    let draft = base.join(format!("standin-draft-{}", std::process::id()));
    let _ = fs::remove_dir_all(&draft);
    fs::create_dir_all(&draft).expect("the target folder can be written");
    let [library, aliases @ ..] = NAMES;
    compile(&rustc, &sources.join("lib.rs"), &draft, library, &[]);
    // The other names: libraries of nothing that need the first, so that a symbol looked up in them is found there.
    let empty = draft.join("alias.rs");
    fs::write(&empty, "//! Another name for the library that it needs.\n").expect("the draft can be written");
    let needs = format!("link-arg=-Wl,--no-as-needed,-L{},-l:{library}", draft.display());
    for alias in aliases {
        compile(&rustc, &empty, &draft, alias, &[&needs]);
    }
    if fs::rename(&draft, &folder).is_err() {
        assert!(folder.is_dir(), "neither built here nor by another process");
        let _ = fs::remove_dir_all(&draft);
    }
    folder
}

fn compile(rustc: &std::ffi::OsStr, source: &Path, folder: &Path, name: &str, extra: &[&str]) {
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "standin", "-C", "opt-level=2"]);
    command.args(["-C", "debuginfo=line-tables-only", "-C", &format!("link-arg=-Wl,-soname,{name}")]);
    command.args(extra.iter().flat_map(|argument| ["-C", argument]));
    let output = command.arg("-o").arg(folder.join(name)).arg(source).output().expect("rustc can be run");
    assert!(output.status.success(), "the stand-in does not compile:\n{}", String::from_utf8_lossy(&output.stderr));
}

fn hash_sources(folder: &Path, hash: &mut DefaultHasher) {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).expect("the stand-in's sources").map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            hash_sources(&path, hash);
        } else {
            path.hash(hash);
            fs::read(&path).expect("readable").hash(hash);
        }
    }
}
