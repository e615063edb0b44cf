//! Filling device memory with a pattern, in the order of a stream: by the driver where it can, else by a kernel of our own
//! (`shaders/memory.cu`), which is compiled when it is first needed.
//!
//! What was loaded stays so until the context ends: a kernel may have been given to a stream that is not known here, and may run still,
//! or have been captured by a graph.

use std::ffi::CStr;
use std::sync::{Arc, OnceLock};

use cudarc::driver::CudaStream;
use parking_lot::Mutex;

use super::compiler::compile;
use super::driver::{Current, Device, Kernel, Narrow};
use super::library::Attribute;
use crate::backend::BackendError;

const SOURCE: &str = concat!(include_str!("../../../shaders/memory.cu"), "\0");
const THREADS: u32 = 256;
/// Each thread goes on where all have ended, so that so many blocks do for any length.
const BLOCKS_MAX: u64 = 4096;

/// Fills of one device.
pub(super) struct Fills {
    device: Arc<Device>,
    /// Compiled when first needed, or why it cannot be: that does not change.
    code: OnceLock<Result<Vec<u8>, BackendError>>,
    /// For 8 and for 16 bytes; loaded when first needed.
    kernels: Mutex<Option<(Kernel, Kernel)>>,
}

impl Fills {
    pub(super) fn new(device: Arc<Device>) -> Fills {
        Fills { device, code: OnceLock::new(), kernels: Mutex::default() }
    }

    /// Repeats a pattern of 1, 2, 4, 8 or 16 bytes `count` times, from an address on that is a multiple of its length.
    pub(super) fn fill(
        &self,
        address: u64,
        pattern: &[u8],
        count: u64,
        stream: &CudaStream,
    ) -> Result<(), BackendError> {
        if ![1, 2, 4, 8, 16].contains(&pattern.len()) {
            return Err(BackendError::Unsupported { call: "filling with elements of this size", backend: "cuda" });
        }
        if !address.is_multiple_of(pattern.len() as u64) {
            let rule = format!("{address:#x} is not a multiple of the {} bytes of the pattern", pattern.len());
            return Err(BackendError::Contract { call: "fill", rule });
        }
        let current = self.device.enter()?;
        let word = |at: usize| pattern[at..at + 8].try_into().map_or(0, u64::from_ne_bytes);
        match *pattern {
            [a] => current.set(address, Narrow::One(a), count, stream),
            [a, b] => current.set(address, Narrow::Two(u16::from_ne_bytes([a, b])), count, stream),
            [a, b, c, d] => current.set(address, Narrow::Four(u32::from_ne_bytes([a, b, c, d])), count, stream),
            _ if pattern.len() == 8 => {
                let (kernel, _) = self.kernels(&current)?;
                current.launch(kernel, shape(count), &mut [address, word(0), count], stream)
            }
            _ => {
                let (_, kernel) = self.kernels(&current)?;
                current.launch(kernel, shape(count), &mut [address, word(0), word(8), count], stream)
            }
        }
    }

    /// The kernels for 8 and for 16 bytes.
    fn kernels(&self, current: &Current<'_>) -> Result<(Kernel, Kernel), BackendError> {
        let mut kernels = self.kernels.lock();
        if let Some(kernels) = *kernels {
            return Ok(kernels);
        }
        let attribute = |attribute| self.device.driver().attribute(self.device.number(), attribute);
        let capability = (attribute(Attribute::CapabilityMajor)?, attribute(Attribute::CapabilityMinor)?);
        let source = CStr::from_bytes_with_nul(SOURCE.as_bytes()).unwrap_or_default();
        let code = self.code.get_or_init(|| compile(source, capability)).as_ref().map_err(Clone::clone)?;
        let module = current.load_module(code)?;
        let (eight, sixteen) = (current.kernel(&module, c"fill_u64"), current.kernel(&module, c"fill_u128"));
        match (eight, sixteen) {
            (Ok(eight), Ok(sixteen)) => Ok(*kernels.insert((eight, sixteen))),
            (Err(error), _) | (_, Err(error)) => {
                let _ = current.unload_module(module);
                Err(error)
            }
        }
    }
}

fn shape(count: u64) -> (u32, u32) {
    (count.div_ceil(THREADS.into()).clamp(1, BLOCKS_MAX) as u32, THREADS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_compile_where_there_is_a_compiler() {
        match compile(CStr::from_bytes_with_nul(SOURCE.as_bytes()).unwrap(), (9, 0)) {
            Ok(code) if code.starts_with(b"\x7fELF") => println!("code for the device"),
            Ok(code) => assert!(String::from_utf8_lossy(&code).contains(".version"), "or PTX for the driver"),
            Err(BackendError::Unsupported { .. }) => println!("not run: there is no NVRTC"),
            Err(error) => panic!("{error}"),
        }
        match compile(c"extern \"C\" __global__ void broken(", (9, 0)) {
            Err(BackendError::Driver { reason, .. }) => assert!(reason.contains("error"), "{reason}"),
            Err(BackendError::Unsupported { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}
