//! NVRTC, the compiler of CUDA source at run time, where it is installed.
//!
//! Called through its own library and not through `cudarc`, for the reasons that [`library`](super::library) gives. Knows no memory.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::mem::ManuallyDrop;
use std::ptr::null;

use libloading::Library;

use crate::backend::BackendError;

/// Its file names, with the versions that there are.
const NAMES: &[&str] = if cfg!(windows) {
    &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll", "nvrtc64_112_0.dll"]
} else {
    &["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"]
};

type Ask = unsafe extern "system" fn(usize, *mut usize) -> c_int;
type Fetch = unsafe extern "system" fn(usize, *mut c_char) -> c_int;
type Create = unsafe extern "system" fn(
    *mut usize,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;

struct Compiler {
    create: Create,
    compile: unsafe extern "system" fn(usize, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "system" fn(*mut usize) -> c_int,
    log_size: Ask,
    log: Fetch,
    code_size: Ask,
    code: Fetch,
}

/// Compiles source for devices of a compute capability. Answers what the driver loads as a module.
pub(super) fn compile(source: &CStr, capability: (i32, i32)) -> Result<Vec<u8>, BackendError> {
    let compiler = Compiler::load()?;
    let option = CString::new(format!("--gpu-architecture=sm_{}{}", capability.0, capability.1)).unwrap_or_default();
    let mut program = 0;
    // SAFETY: `program` may be written; the source ends with 0; there are no headers.
    let created = unsafe { (compiler.create)(&mut program, source.as_ptr(), null(), 0, null(), null()) };
    check("nvrtcCreateProgram", created, String::new)?;
    // SAFETY: the program was created, and one option is given, which ends with 0.
    let compiled = unsafe { (compiler.compile)(program, 1, &option.as_ptr()) };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned();
    let code = check("nvrtcCompileProgram", compiled, || {
        fetch(compiler.log_size, compiler.log, program).map(text).unwrap_or_default()
    })
    .and_then(|()| fetch(compiler.code_size, compiler.code, program));
    // SAFETY: the program was created and is destroyed once.
    let _ = unsafe { (compiler.destroy)(&mut program) };
    code
}

/// What is asked for in two calls: how much it is, and what.
fn fetch(ask: Ask, fetch: Fetch, program: usize) -> Result<Vec<u8>, BackendError> {
    let mut size = 0;
    // SAFETY: the program lives; `size` may be written.
    check("nvrtc", unsafe { ask(program, &mut size) }, String::new)?;
    let mut bytes = vec![0; size];
    // SAFETY: so many bytes may be written.
    check("nvrtc", unsafe { fetch(program, bytes.as_mut_ptr().cast()) }, String::new).map(|()| bytes)
}

fn check(call: &'static str, code: c_int, reason: impl FnOnce() -> String) -> Result<(), BackendError> {
    if code == 0 { Ok(()) } else { Err(BackendError::Driver { call, reason: reason(), code: code.into() }) }
}

impl Compiler {
    fn load() -> Result<Compiler, BackendError> {
        // SAFETY: running the initialisers of NVRTC is what loading it is for.
        let library = NAMES.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
        let missing = BackendError::Unsupported { call: "compiling kernels without NVRTC", backend: "cuda" };
        // It keeps threads and state of its own: it is never unloaded.
        let library = ManuallyDrop::new(library.ok_or_else(|| missing.clone())?);
        fn symbol<F: Copy>(library: &Library, name: &str) -> Option<F> {
            // SAFETY: the fields of `Compiler` say how NVRTC declares what they are filled with.
            unsafe { library.get::<F>(name.as_bytes()) }.ok().map(|symbol| *symbol)
        }
        let resolve = || {
            Some(Compiler {
                create: symbol(&library, "nvrtcCreateProgram")?,
                compile: symbol(&library, "nvrtcCompileProgram")?,
                destroy: symbol(&library, "nvrtcDestroyProgram")?,
                log_size: symbol(&library, "nvrtcGetProgramLogSize")?,
                log: symbol(&library, "nvrtcGetProgramLog")?,
                code_size: symbol(&library, "nvrtcGetCUBINSize")?,
                code: symbol(&library, "nvrtcGetCUBIN")?,
            })
        };
        resolve().ok_or(missing)
    }
}
