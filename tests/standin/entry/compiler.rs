//! NVRTC, as far as source is its own code here: what it compiles is loaded as a module whose kernels are looked up by name
//! ([`crate::kernels`]). It finds no mistakes but one: a program without a kernel.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What the compiler is like: 0, as it should be, or one of these.
pub static COMPILER: AtomicU64 = AtomicU64::new(0);
const KNOWS_NO_ARCHITECTURE: u64 = 1;
const BROKEN: u64 = 2;
/// Compilations so far.
pub static COMPILATIONS: AtomicU64 = AtomicU64::new(0);

/// `NVRTC_ERROR_INVALID_PROGRAM`, `NVRTC_ERROR_INVALID_OPTION` and `NVRTC_ERROR_COMPILATION`.
const INVALID_PROGRAM: c_int = 4;
const INVALID_OPTION: c_int = 5;
const COMPILATION: c_int = 6;

/// The programs that are there, by handle: their source with the zero at its end.
static PROGRAMS: Mutex<BTreeMap<usize, Vec<u8>>> = Mutex::new(BTreeMap::new());

fn with(program: usize, answer: impl FnOnce(&[u8]) -> c_int) -> c_int {
    let programs = PROGRAMS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    programs.get(&program).map_or(INVALID_PROGRAM, |source| answer(source))
}

fn size_of_source(program: usize, size: *mut usize) -> c_int {
    // SAFETY: NVRTC's contract: it may be written.
    with(program, |source| done(unsafe { size.write(source.len()) }))
}

fn source(program: usize, room: *mut u8) -> c_int {
    // SAFETY: NVRTC's contract: there is room for as much as the size said.
    with(program, |source| done(unsafe { room.copy_from_nonoverlapping(source.as_ptr(), source.len()) }))
}

/// `NVRTC_SUCCESS`.
fn done((): ()) -> c_int {
    0
}

macro_rules! exports {
    ($(fn $name:ident($($arg:ident: $type:ty),*) $body:block)*) => {$(
        // SAFETY: nothing else in the library has this name.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> c_int $body
    )*};
}

exports! {
    fn nvrtcCreateProgram(
        out: *mut usize, text: *const c_char, _name: *const c_char, _headers: c_int, _sources: *const *const c_char,
        _includes: *const *const c_char
    ) {
        // SAFETY: NVRTC's contract: the source ends in zero, the handle may be written.
        let source = unsafe { CStr::from_ptr(text) }.to_bytes_with_nul().to_vec();
        let mut programs = PROGRAMS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let program = programs.last_key_value().map_or(1, |(last, _)| last + 1);
        programs.insert(program, source);
        // SAFETY: as above.
        done(unsafe { out.write(program) })
    }

    fn nvrtcCompileProgram(program: usize, options: c_int, _texts: *const *const c_char) {
        COMPILATIONS.fetch_add(1, Relaxed);
        // The only option that anybody gives is the architecture.
        match COMPILER.load(Relaxed) {
            KNOWS_NO_ARCHITECTURE if options > 0 => return INVALID_OPTION,
            BROKEN => return COMPILATION,
            _ => {}
        }
        with(program, |source| {
            if source.windows(10).any(|part| part == b"__global__") { 0 } else { COMPILATION }
        })
    }

    fn nvrtcDestroyProgram(program: *mut usize) {
        // SAFETY: NVRTC's contract: it points to a handle, which is cleared.
        let handle = unsafe { program.replace(0) };
        let mut programs = PROGRAMS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        programs.remove(&handle).map_or(INVALID_PROGRAM, |_| 0)
    }

    fn nvrtcGetProgramLogSize(program: usize, size: *mut usize) {
        // SAFETY: as in `size_of_source`.
        with(program, |_| done(unsafe { size.write(LOG.len()) }))
    }

    fn nvrtcGetProgramLog(program: usize, room: *mut u8) {
        // SAFETY: as in `source`.
        with(program, |_| done(unsafe { room.copy_from_nonoverlapping(LOG.as_ptr(), LOG.len()) }))
    }

    fn nvrtcGetCUBINSize(program: usize, size: *mut usize) { size_of_source(program, size) }

    fn nvrtcGetCUBIN(program: usize, room: *mut u8) { source(program, room) }

    fn nvrtcGetPTXSize(program: usize, size: *mut usize) { size_of_source(program, size) }

    fn nvrtcGetPTX(program: usize, room: *mut u8) { source(program, room) }
}

const LOG: &[u8] = b"a program needs a __global__ function\0";
