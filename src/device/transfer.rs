//! Bytes of the caller's into a block and out of it, on any kind of memory. For small and rare amounts: each call waits for the work
//! before it.

use super::{cuda, wgpu};
use crate::allocator::{Any, Block};
use crate::backend::BackendError;
use crate::units::Bytes;

/// Why bytes were not copied.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// More bytes than the block has.
    #[error("{bytes} bytes ({}) do not fit in a block of {block} bytes ({})", Bytes(*.bytes), Bytes(*.block))]
    TooLong {
        /// Bytes given.
        bytes: u64,
        /// Bytes of the block.
        block: u64,
    },
    /// The memory holds no bytes: it is simulated.
    #[error("this memory is simulated and holds no bytes")]
    NoBytes,
    /// The device's work before it was not complete in the time that the config gives to waits.
    #[error("the device's work was not complete in time")]
    TimedOut,
    /// The driver failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Block<Any> {
    /// Copies `bytes` to the start of the block, after all that the streams it is in use on were given until now, which is waited
    /// for. The caller may do with `bytes` as they like then, and all work that is given to the device from now on finds them in the
    /// block: on wgpu they may be on their way still, in the order of the queue; elsewhere they are there.
    ///
    /// # Errors
    /// More bytes than the block has; memory that holds none; work that is not complete in time; what the driver says.
    pub fn upload(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        if bytes.len() as u64 > self.len() {
            return Err(TransferError::TooLong { bytes: bytes.len() as u64, block: self.len() });
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.settle()?;
        if let Some(view) = self.host_bytes_mut() {
            view[..bytes.len()].copy_from_slice(bytes);
            return Ok(());
        }
        cuda::upload(self, bytes).or_else(|| wgpu::upload(self, bytes)).unwrap_or(Err(TransferError::NoBytes))
    }

    /// The block's bytes, after all that the streams it is in use on were given until now, which is waited for.
    ///
    /// # Errors
    /// As [`Block::upload`].
    pub fn read(&self) -> Result<Vec<u8>, TransferError> {
        self.settle()?;
        if let Some(view) = self.host_bytes() {
            return Ok(view.to_vec());
        }
        cuda::read(self).or_else(|| wgpu::read(self)).unwrap_or(Err(TransferError::NoBytes))
    }

    fn settle(&self) -> Result<(), TransferError> {
        let Some(core) = self.core() else { return Ok(()) };
        let patience = core.config.read().wait_max;
        for stream in self.streams() {
            let event = core.backend.record(stream)?;
            let is_done = core.backend.host_wait(event, Some(patience));
            core.backend.forget(event);
            if !is_done? {
                return Err(TransferError::TimedOut);
            }
        }
        Ok(())
    }
}
