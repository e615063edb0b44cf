//! The caller's device and queue, with wgpu's silence and its panics turned into answers.
//!
//! wgpu reports a failed call to the error scopes of the calling thread, or else to a handler of the whole program, or else by a
//! panic. Here every call that can fail stands in scopes, but for those that run the program's callbacks ([`Driver::submit`],
//! [`Driver::poll`]): what is wrong in these is the program's to hear, and no failure of ours. A lost device is reported to nobody but one callback, which is the
//! program's to set, and calls on it succeed in silence; so the device is asked ([`Driver::present`]).
//!
//! Knows no segment and no block. Invariants: once lost, lost for ever; no scope is open while callbacks may run.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use wgpu::{BufferDescriptor, BufferUsages, CommandBuffer, Device, ErrorFilter, MapMode, PollError, PollType, Queue};

use crate::backend::BackendError;

pub(super) struct Driver {
    pub device: Device,
    pub queue: Queue,
    /// A destroyed buffer, to ask the device with; by one thread at a time.
    pulse: Mutex<wgpu::Buffer>,
    lost: AtomicBool,
}

impl Driver {
    pub fn new(device: &Device, queue: &Queue) -> Result<Driver, BackendError> {
        let (device, queue) = (device.clone(), queue.clone());
        let usage = BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC;
        let pulse = BufferDescriptor { label: Some("larder pulse"), size: 8, usage, mapped_at_creation: true };
        let pulse = scoped(&device, "open", 8, || device.create_buffer(&pulse))?;
        // What a lost device makes is invalid, and not mapped.
        let is_lost = pulse.get_mapped_range_mut(..).is_err();
        if !is_lost {
            pulse.unmap();
            pulse.destroy();
        }
        let driver = Driver { device, queue, pulse: Mutex::new(pulse), lost: AtomicBool::new(is_lost) };
        driver.present()?;
        Ok(driver)
    }

    /// Does `work`, a call of wgpu for `bytes` bytes, and answers what wgpu said about it. What a lost device makes is invalid, and
    /// its use a mistake: then the loss is what is said.
    pub fn scoped<R>(&self, call: &'static str, bytes: u64, work: impl FnOnce() -> R) -> Result<R, BackendError> {
        scoped(&self.device, call, bytes, work).or_else(|error| self.present().and(Err(error)))
    }

    /// A buffer that is valid unless the device is lost.
    pub fn create(&self, call: &'static str, buffer: &BufferDescriptor<'_>) -> Result<wgpu::Buffer, BackendError> {
        self.scoped(call, buffer.size, || self.device.create_buffer(buffer))
    }

    /// Refuses when the device is lost.
    pub fn present(&self) -> Result<(), BackendError> {
        if !self.lost.load(Relaxed) && self.has_pulse() {
            return Ok(());
        }
        self.lost.store(true, Relaxed);
        Err(BackendError::Lost { reason: "it was destroyed, removed, or stopped working".into() })
    }

    /// To map a destroyed buffer is a mistake that a device complains of at once, unless it is lost: then it says nothing. Nothing
    /// is changed either way.
    fn has_pulse(&self) -> bool {
        let pulse = self.pulse.lock();
        let complaint = scoped(&self.device, "map_async", 0, || pulse.map_async(MapMode::Write, .., |_| {})).is_err();
        // The handle believes now that it is being mapped.
        let _ = scoped(&self.device, "unmap", 0, || pulse.unmap());
        complaint
    }

    /// Submits commands that were finished without a mistake; of such, wgpu refuses only what a device cannot do that is lost by
    /// then. Runs the callbacks of the whole program that have become due.
    pub fn submit(&self, commands: CommandBuffer) -> Result<(), BackendError> {
        match catch_unwind(AssertUnwindSafe(|| self.queue.submit([commands]))) {
            Ok(_) => self.present(),
            Err(panic) => self.resume(panic),
        }
    }

    /// Lets wgpu see what is complete: at once, or after waiting until all work given so far is, for at most so long. Answers
    /// whether all is known to be. Runs the callbacks of the whole program that have become due.
    pub fn poll(&self, wait: Option<Duration>) -> Result<bool, BackendError> {
        let how = match wait {
            Some(_) => PollType::Wait { submission_index: None, timeout: wait },
            None => PollType::Poll,
        };
        match catch_unwind(AssertUnwindSafe(|| self.device.poll(how))) {
            Ok(Ok(status)) => Ok(status.wait_finished()),
            Ok(Err(PollError::Timeout)) => Ok(false),
            Ok(Err(error)) => Err(BackendError::Driver { call: "poll", reason: error.to_string(), code: 0 }),
            Err(panic) => self.resume(panic).map(|()| false),
        }
    }

    /// wgpu panics when the device is lost while it works; any other panic is that of somebody's callback, and theirs. While this
    /// thread unwinds already, that would end the process.
    fn resume(&self, panic: Box<dyn Any + Send>) -> Result<(), BackendError> {
        self.present()?;
        match std::thread::panicking() {
            true => Ok(()),
            false => resume_unwind(panic),
        }
    }
}

fn scoped<R>(device: &Device, call: &'static str, bytes: u64, work: impl FnOnce() -> R) -> Result<R, BackendError> {
    let validation = device.push_error_scope(ErrorFilter::Validation);
    let internal = device.push_error_scope(ErrorFilter::Internal);
    let memory = device.push_error_scope(ErrorFilter::OutOfMemory);
    let result = work();
    // Innermost first; what the scopes caught is there at once.
    let memory = pollster::block_on(memory.pop());
    let internal = pollster::block_on(internal.pop());
    let validation = pollster::block_on(validation.pop());
    if memory.is_some() {
        return Err(BackendError::OutOfMemory { call, requested: bytes });
    }
    match internal.or(validation) {
        Some(error) => Err(BackendError::Driver { call, reason: error.to_string(), code: 0 }),
        None => Ok(result),
    }
}
