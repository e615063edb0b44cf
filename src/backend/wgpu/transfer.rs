//! Bytes to, from and within segments, in the order of the queue or of an encoder.
//!
//! Knows spans of segments, not blocks. Everything moves by whole words; reads are of any bytes.

use std::time::Duration;

use wgpu::CommandEncoder;

use super::kernels::Kernels;
use super::{WAIT, WORD, Wgpu, deadline};
use crate::backend::table::contract;
use crate::backend::{BackendError, Span};
use crate::ids::RegionId;

impl Wgpu {
    /// Writes into a segment behind all work submitted so far, before all that is submitted later. The offset is a multiple of
    /// [`WORD`]; so is the length, or else zeros follow up to the next one.
    ///
    /// # Errors
    /// Out of memory for the mapped buffer; a lost device; a span that is none.
    pub fn upload(&self, region: RegionId, offset: u64, bytes: &[u8]) -> Result<(), BackendError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.within("upload", words(region, offset, bytes))?;
        for (at, piece) in bytes.chunks(self.shared.piece).enumerate() {
            if self.shared.uploads.coming() > self.shared.config.staging_max {
                self.shared.driver.poll(Some(WAIT))?;
            }
            let offset = offset + (at * self.shared.piece) as u64;
            self.submit("upload", |encoder| self.record_upload((encoder, true), region, offset, piece))?;
        }
        Ok(())
    }

    /// As [`Wgpu::upload`], but in the order of the commands of an encoder.
    ///
    /// # Errors
    /// As [`Wgpu::upload`].
    pub fn upload_in(
        &self,
        encoder: &mut CommandEncoder,
        region: RegionId,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        self.record_upload((encoder, false), region, offset, bytes)
    }

    /// `at_once`: the encoder is submitted as soon as this is recorded.
    fn record_upload(
        &self,
        (encoder, at_once): (&mut CommandEncoder, bool),
        region: RegionId,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let buffer = self.within("upload", words(region, offset, bytes))?;
        for (at, piece) in bytes.chunks(self.shared.piece).enumerate() {
            let offset = offset + (at * self.shared.piece) as u64;
            let (driver, uploads) = (&self.shared.driver, &self.shared.uploads);
            self.with_memory(|| uploads.upload(driver, (&mut *encoder, at_once), (&buffer, offset), piece))?;
        }
        Ok(())
    }

    /// Reads from a segment behind all work submitted so far, for which it waits, at most for `patience`. Answers whether that was
    /// in time.
    ///
    /// # Errors
    /// Out of memory for the mapped buffer; a lost device; a span that is none.
    pub fn read(
        &self,
        region: RegionId,
        offset: u64,
        bytes: &mut [u8],
        patience: Duration,
    ) -> Result<bool, BackendError> {
        if bytes.is_empty() {
            return Ok(true);
        }
        let buffer = self.range("read", Span { region, offset, size: bytes.len() as u64 })?;
        let until = deadline(patience);
        // The first ends where a word does, so that each with its words is at most a piece.
        let first = (self.shared.piece - (offset % WORD) as usize).min(bytes.len());
        let (first, rest) = bytes.split_at_mut(first);
        let mut offset = offset;
        for piece in std::iter::once(first).chain(rest.chunks_mut(self.shared.piece)) {
            let read =
                self.with_memory(|| self.shared.reads.read(&self.shared.driver, (&buffer, offset), piece, until))?;
            if !read {
                return Ok(false);
            }
            offset += piece.len() as u64;
        }
        Ok(true)
    }

    /// Records that a span's words become `value`. Offset and size are multiples of [`WORD`].
    ///
    /// # Errors
    /// A device without compute shaders; a lost device; a span that is none.
    pub fn fill_in(&self, encoder: &mut CommandEncoder, span: Span, value: u32) -> Result<(), BackendError> {
        let buffer = self.within("fill", span)?;
        if value == 0 {
            return self
                .shared
                .driver
                .scoped("fill", 0, || encoder.clear_buffer(&buffer, span.offset, Some(span.size)));
        }
        self.kernels()?.fill(&self.shared.driver, encoder, (&buffer, span.offset), span.size, value)
    }

    /// Records a copy between two spans of one size that do not overlap. Offsets and size are multiples of [`WORD`].
    ///
    /// # Errors
    /// Within one segment, a device without compute shaders; a lost device; spans that are none.
    pub fn copy_in(&self, encoder: &mut CommandEncoder, from: Span, to: Span) -> Result<(), BackendError> {
        let (source, target) = (self.within("copy", from)?, self.within("copy", to)?);
        let overlap = from.region == to.region && from.offset.abs_diff(to.offset) < from.size;
        if from.size != to.size || overlap {
            return Err(contract("copy", format!("{from:?} to {to:?}")));
        }
        if from.region != to.region {
            return self.shared.driver.scoped("copy", 0, || {
                encoder.copy_buffer_to_buffer(&source, from.offset, &target, to.offset, from.size);
            });
        }
        self.kernels()?.copy(&self.shared.driver, encoder, &source, (from.offset, to.offset), from.size)
    }

    /// Records with `work` and submits it at once.
    ///
    /// # Errors
    /// What `work` says, what wgpu says about its commands, or a lost device; then nothing has been done, or nobody can tell. What the
    /// program's callbacks do wrong is none of these.
    pub fn submit(
        &self,
        call: &'static str,
        work: impl FnOnce(&mut CommandEncoder) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let driver = &self.shared.driver;
        let mut encoder = driver.scoped(call, 0, || driver.device.create_command_encoder(&Default::default()))?;
        work(&mut encoder)?;
        driver.submit(driver.scoped(call, 0, || encoder.finish())?)
    }

    fn kernels(&self) -> Result<&Kernels, BackendError> {
        if let Some(kernels) = self.shared.kernels.get() {
            return Ok(kernels);
        }
        let kernels = Kernels::new(&self.shared.driver, &self.shared.limits)?;
        Ok(self.shared.kernels.get_or_init(|| kernels))
    }
}

/// The whole words that bytes take.
fn words(region: RegionId, offset: u64, bytes: &[u8]) -> Span {
    Span { region, offset, size: (bytes.len() as u64).next_multiple_of(WORD) }
}
