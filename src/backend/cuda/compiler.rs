//! NVRTC, the compiler of CUDA source at run time, where it is installed.
//!
//! Called through its own library and not through `cudarc`, for the reasons that [`library`](super::library) gives. Knows no memory.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::mem::ManuallyDrop;
use std::ptr::null;

use libloading::Library;

use crate::backend::BackendError;

/// Its file names, with the versions that there are, the newest first.
const NAMES: &[&str] = if cfg!(windows) {
    &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll", "nvrtc64_112_0.dll"]
} else {
    &["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"]
};

/// `NVRTC_ERROR_INVALID_OPTION`: among others, an architecture that it does not know.
const INVALID_OPTION: i64 = 5;

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
    ptx_size: Ask,
    ptx: Fetch,
}

/// Compiles source for devices of a compute capability, by the first NVRTC that knows it. Where none does, the driver is to finish
/// it: then it is PTX. Answers what the driver loads as a module.
pub(super) fn compile(source: &CStr, capability: (i32, i32)) -> Result<Vec<u8>, BackendError> {
    let option = CString::new(format!("--gpu-architecture=sm_{}{}", capability.0, capability.1)).unwrap_or_default();
    let mut newest = None;
    for compiler in NAMES.iter().filter_map(|name| Compiler::load(name)) {
        match compiler.compile(source, Some(&option)) {
            Err(BackendError::Driver { code: INVALID_OPTION, .. }) => newest = newest.or(Some(compiler)),
            compiled => return compiled,
        }
    }
    let missing = BackendError::Unsupported { call: "compiling kernels without NVRTC", backend: "cuda" };
    newest.ok_or(missing)?.compile(source, None)
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
    /// Code for an architecture, or PTX.
    fn compile(&self, source: &CStr, architecture: Option<&CStr>) -> Result<Vec<u8>, BackendError> {
        let mut program = 0;
        // SAFETY: `program` may be written; the source ends with 0; there are no headers.
        let created = unsafe { (self.create)(&mut program, source.as_ptr(), null(), 0, null(), null()) };
        check("nvrtcCreateProgram", created, String::new)?;
        let options = architecture.map(CStr::as_ptr);
        let (count, options) = (options.iter().len() as c_int, options.as_slice().as_ptr());
        // SAFETY: the program was created, and so many options are given, which end with 0.
        let compiled = unsafe { (self.compile)(program, count, options) };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned();
        let log = || fetch(self.log_size, self.log, program).map(text).unwrap_or_default();
        let code = check("nvrtcCompileProgram", compiled, log).and_then(|()| match architecture {
            Some(_) => fetch(self.code_size, self.code, program),
            None => fetch(self.ptx_size, self.ptx, program),
        });
        // SAFETY: the program was created and is destroyed once.
        let _ = unsafe { (self.destroy)(&mut program) };
        code
    }

    /// The library of a name; `None` where there is none, or one that lacks something.
    fn load(name: &str) -> Option<Compiler> {
        // SAFETY: running the initialisers of NVRTC is what loading it is for.
        let library = unsafe { Library::new(name) }.ok()?;
        // It keeps threads and state of its own: it is never unloaded.
        let library = ManuallyDrop::new(library);
        fn symbol<F: Copy>(library: &Library, name: &str) -> Option<F> {
            // SAFETY: the fields of `Compiler` say how NVRTC declares what they are filled with.
            unsafe { library.get::<F>(name.as_bytes()) }.ok().map(|symbol| *symbol)
        }
        Some(Compiler {
            create: symbol(&library, "nvrtcCreateProgram")?,
            compile: symbol(&library, "nvrtcCompileProgram")?,
            destroy: symbol(&library, "nvrtcDestroyProgram")?,
            log_size: symbol(&library, "nvrtcGetProgramLogSize")?,
            log: symbol(&library, "nvrtcGetProgramLog")?,
            code_size: symbol(&library, "nvrtcGetCUBINSize")?,
            code: symbol(&library, "nvrtcGetCUBIN")?,
            ptx_size: symbol(&library, "nvrtcGetPTXSize")?,
            ptx: symbol(&library, "nvrtcGetPTX")?,
        })
    }
}
