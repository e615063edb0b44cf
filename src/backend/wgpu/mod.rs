//! Memory of a wgpu device: segments, each one buffer, over the caller's [`Device`] and [`Queue`].
//!
//! There is one queue. Every stream number stands for it: 0 for what is submitted, the others for recordings that the allocator keeps
//! count of. There are no addresses; each segment is given a made-up base, so that a block's address is one that no other block has.
//!
//! | file | what |
//! |---|---|
//! | `driver` | wgpu's calls with an answer for every failure |
//! | `staging` | belts of mapped buffers, for uploads and reads |
//! | `kernels` | fill, and copies within one buffer |
//! | `transfer` | bytes to, from and within segments, by both |
//!
//! Knows no blocks. Every call looks for completed work with [`Device::poll`] when it needs to, and so may run callbacks that
//! the program has given to wgpu, under locks of the allocator; these may only drop blocks.
//!
//! Invariants: `segments` holds what was granted and not released; `recorded` events were given, of which `reached` and all before it are
//! done.

mod driver;
mod kernels;
mod staging;
mod transfer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use wgpu::{BufferDescriptor, BufferUsages, Device, Limits, MapMode, Queue};

use self::driver::Driver;
use self::kernels::Kernels;
use self::staging::Belt;
use crate::backend::table::{contract, segment_size};
use crate::backend::{Backend, BackendError, Budget, Capabilities, Region, Span};
use crate::ids::{EventId, RegionId, StreamId};
use crate::units::{MIB, align_down};

const NAME: &str = "wgpu";
/// What made-up addresses are multiples of, and so the largest alignment that a request may ask for.
const BASE_ALIGN: u64 = MIB;
/// The quantum unless the device needs a larger one: what bindings of any device may start at.
const QUANTUM: u64 = 256;
/// The largest segment is a multiple of this, so that sizes rounded for the driver stay within it.
const SEGMENT_ALIGN: u64 = 4096;
/// wgpu copies and clears by words of so many bytes.
pub const WORD: u64 = 4;
/// The longest single wait, after which the device is asked whether it is still there.
const WAIT: Duration = Duration::from_millis(100);

/// How memory of a wgpu device is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WgpuConfig {
    /// What the segments may be used for. What a device does not support refuses every segment.
    pub usages: BufferUsages,
    /// The least segment, where the allocator's config has the default for all kinds of memory (2 MiB) and this is more. To create a buffer is dear on most drivers, and wgpu's own
    /// allocator takes as much at a time; on four real traces of models this needs half the buffers of the usual 2 MiB, or
    /// less, and no more memory. Set it to 0 where memory is scarce.
    pub segment_min: u64,
    /// Bytes of mapped buffers that each belt, that of uploads and that of reads, keeps for later transfers. Uploads that are under
    /// way beyond this are waited for, for a moment, before the next begins.
    pub staging_max: u64,
}

impl Default for WgpuConfig {
    fn default() -> Self {
        let copies = BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let usages = BufferUsages::STORAGE | BufferUsages::INDIRECT | copies;
        WgpuConfig { usages, segment_min: 64 * MIB, staging_max: 64 * MIB }
    }
}

/// A wgpu device as a backend of segments. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Wgpu {
    shared: Arc<Shared>,
}

struct Shared {
    driver: Driver,
    limits: Limits,
    config: WgpuConfig,
    caps: Capabilities,
    segments: RwLock<Segments>,
    /// Events given. Locked while one is recorded, so that their order is that of the queue.
    recorded: Mutex<u64>,
    /// Events done, from the first.
    reached: Arc<AtomicU64>,
    uploads: Belt,
    reads: Belt,
    /// Bytes of one transfer at most.
    piece: usize,
    kernels: OnceLock<Kernels>,
    created: AtomicU64,
    refusals: AtomicU32,
}

#[derive(Default)]
struct Segments {
    live: BTreeMap<RegionId, wgpu::Buffer>,
    given: u32,
    /// The next base, in units of `BASE_ALIGN`, less one: no address is 0.
    next_base: u64,
}

impl std::fmt::Debug for Wgpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wgpu").field("capabilities", &self.shared.caps).finish_non_exhaustive()
    }
}

impl Wgpu {
    /// A backend over a device and its queue, with the limits that the device was requested with. Nothing is allocated
    /// yet. Whether the device is lost is asked at each call: the callback for that stays the caller's.
    ///
    /// # Errors
    /// A device that is lost.
    pub fn new(device: &Device, queue: &Queue, config: WgpuConfig) -> Result<Wgpu, BackendError> {
        let driver = Driver::new(device, queue)?;
        let limits = device.limits();
        let shared = Shared {
            caps: capabilities(&limits),
            driver,
            config,
            segments: RwLock::default(),
            recorded: Mutex::default(),
            reached: Arc::default(),
            uploads: Belt::new(MapMode::Write, config.staging_max),
            reads: Belt::new(MapMode::Read, config.staging_max),
            piece: staging::piece(limits.max_buffer_size),
            kernels: OnceLock::new(),
            created: AtomicU64::new(0),
            refusals: AtomicU32::new(0),
            limits,
        };
        Ok(Wgpu { shared: Arc::new(shared) })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.shared.driver.device
    }

    /// Its queue.
    pub fn queue(&self) -> &Queue {
        &self.shared.driver.queue
    }

    /// The limits that the device was requested with.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// How its memory is made.
    pub fn config(&self) -> WgpuConfig {
        self.shared.config
    }

    /// Segments created until now, those that were released among them.
    pub fn created(&self) -> u64 {
        self.shared.created.load(Relaxed)
    }

    /// The next `count` segments are refused as if the device had no memory left: for tests of what then happens.
    pub fn refuse_next(&self, count: u32) {
        self.shared.refusals.store(count, Relaxed);
    }

    /// The buffer of a segment; `None` for a region that is not live. A clone that outlives the segment keeps its memory from the device,
    /// as does a bind group.
    pub fn buffer(&self, region: RegionId) -> Option<wgpu::Buffer> {
        self.shared.segments.read().live.get(&region).cloned()
    }

    /// Tries once more when memory was short, after what wgpu still holds of complete work, and what the belts keep, went back.
    fn with_memory<R>(&self, mut work: impl FnMut() -> Result<R, BackendError>) -> Result<R, BackendError> {
        match work() {
            Err(error) if error.is_out_of_memory() => {
                self.tidy();
                work()
            }
            result => result,
        }
    }

    /// The buffer of a span of whole words in its segment.
    fn within(&self, call: &'static str, span: Span) -> Result<wgpu::Buffer, BackendError> {
        if !span.offset.is_multiple_of(WORD) || !span.size.is_multiple_of(WORD) {
            return Err(contract(call, format!("{span:?} is not of whole words of {WORD} bytes")));
        }
        self.range(call, span)
    }

    /// The buffer of a span that is not empty and lies in its segment.
    fn range(&self, call: &'static str, span: Span) -> Result<wgpu::Buffer, BackendError> {
        let buffer = self.buffer(span.region);
        let buffer = buffer.ok_or_else(|| contract(call, format!("{} is not a live region", span.region)))?;
        let inside = span.offset.checked_add(span.size).is_some_and(|end| end <= buffer.size());
        if span.size == 0 || !inside {
            return Err(contract(call, format!("{span:?} is empty or leaves its {} bytes", buffer.size())));
        }
        Ok(buffer)
    }

    fn create_segment(&self, region: RegionId, size: u64) -> Result<wgpu::Buffer, BackendError> {
        let call = "grow_segment";
        let refuse = |left: u32| left.checked_sub(1);
        if self.shared.refusals.fetch_update(Relaxed, Relaxed, refuse).is_ok() {
            return Err(BackendError::OutOfMemory { call, requested: size });
        }
        let (label, usage) = (format!("larder {region}"), self.shared.config.usages);
        let buffer = BufferDescriptor { label: Some(&label), size, usage, mapped_at_creation: false };
        let buffer = self.shared.driver.create(call, &buffer)?;
        // A lost device makes a buffer that is none, and says nothing.
        self.shared.driver.present()?;
        self.shared.created.fetch_add(1, Relaxed);
        Ok(buffer)
    }

    fn is_reached(&self, event: EventId) -> bool {
        event.0 < self.shared.reached.load(SeqCst)
    }

    /// Lets wgpu see what is complete, and counts what was recorded before as done when all of it is: somebody's callback that
    /// panics takes ours with it.
    fn look(&self, wait: Option<Duration>) -> Result<(), BackendError> {
        let recorded = *self.shared.recorded.lock();
        if self.shared.driver.poll(wait)? {
            self.shared.reached.fetch_max(recorded, SeqCst);
        }
        self.shared.driver.present()
    }

    fn known(&self, call: &'static str, event: EventId) -> Result<(), BackendError> {
        if event.0 < *self.shared.recorded.lock() {
            return Ok(());
        }
        Err(contract(call, format!("{event} was never recorded")))
    }
}

fn capabilities(limits: &Limits) -> Capabilities {
    let quantum = QUANTUM.max(limits.min_storage_buffer_offset_alignment.into()).next_power_of_two();
    Capabilities {
        name: NAME,
        page: None,
        remap: false,
        alias: false,
        streams: true,
        captures: false,
        release_waits: false,
        host_ordered: false,
        base_align: BASE_ALIGN.max(quantum),
        quantum,
        region_max: align_down(limits.max_buffer_size, SEGMENT_ALIGN.max(quantum)),
    }
}

fn deadline(patience: Duration) -> Instant {
    Instant::now() + patience.min(Duration::from_secs(1 << 30))
}

impl Backend for Wgpu {
    fn capabilities(&self) -> Capabilities {
        self.shared.caps
    }

    fn grow_segment(&self, size: u64) -> Result<Region, BackendError> {
        let call = "grow_segment";
        // wgpu says of too large a buffer that it is invalid, and cannot be told from other mistakes.
        let rounded = segment_size(size, self.shared.caps.quantum, self.shared.caps.region_max)?;
        let (id, base) = {
            let mut segments = self.shared.segments.write();
            let id = segments.given;
            segments.given = id.checked_add(1).ok_or_else(|| BackendError::Driver {
                call,
                reason: "every region id has been given".into(),
                code: 0,
            })?;
            let base = (segments.next_base + 1) * self.shared.caps.base_align;
            segments.next_base += rounded.div_ceil(self.shared.caps.base_align);
            (RegionId(id), base)
        };
        let buffer = self.with_memory(|| self.create_segment(id, rounded))?;
        self.shared.segments.write().live.insert(id, buffer);
        Ok(Region { id, base, size: rounded })
    }

    fn release(&self, region: RegionId) -> Result<(), BackendError> {
        self.shared.driver.present()?;
        let buffer = self.shared.segments.write().live.remove(&region);
        // Not destroyed but dropped: to destroy waits, and lets all other calls of wgpu wait, until no thread waits in
        // `Device::poll`, for however long.
        buffer.map(drop).ok_or_else(|| contract("release", format!("{region} is not a live region")))
    }

    fn record(&self, _stream: StreamId) -> Result<EventId, BackendError> {
        self.shared.driver.present()?;
        let mut recorded = self.shared.recorded.lock();
        let event = *recorded;
        *recorded += 1;
        let reached = self.shared.reached.clone();
        self.queue().on_submitted_work_done(move || {
            reached.fetch_max(event + 1, SeqCst);
        });
        Ok(EventId(event))
    }

    fn done(&self, event: EventId) -> Result<bool, BackendError> {
        self.known("done", event)?;
        if !self.is_reached(event) {
            self.look(None)?;
        }
        Ok(self.is_reached(event))
    }

    fn stream_wait(&self, _stream: StreamId, event: EventId) -> Result<(), BackendError> {
        // All are one queue: what comes later comes later.
        self.known("stream_wait", event)
    }

    fn host_wait(&self, event: EventId, timeout: Option<Duration>) -> Result<bool, BackendError> {
        self.known("host_wait", event)?;
        let until = timeout.map(deadline);
        while !self.is_reached(event) {
            let left = until.map_or(WAIT, |until| until.saturating_duration_since(Instant::now()));
            self.look(Some(left.min(WAIT)))?;
            if left.is_zero() {
                break;
            }
            // Another thread may have seen the work complete and be about to say so.
            std::thread::yield_now();
        }
        Ok(self.is_reached(event))
    }

    fn forget(&self, _event: EventId) {}

    fn zero(&self, _stream: StreamId, span: Span) -> Result<(), BackendError> {
        self.range("zero", span)?;
        // A block's last word is its own to the end.
        let span = Span { size: span.size.next_multiple_of(WORD), ..span };
        self.submit("zero", |encoder| self.fill_in(encoder, span, 0))
    }

    fn budget(&self) -> Result<Option<Budget>, BackendError> {
        self.shared.driver.present().map(|()| None)
    }

    /// What wgpu's own allocator holds beyond what it gave out, where it says so, and the belts.
    fn beneath(&self) -> u64 {
        let report = self.device().generate_allocator_report();
        let spare = report.map_or(0, |report| report.total_reserved_bytes.saturating_sub(report.total_allocated_bytes));
        spare + self.shared.uploads.bytes() + self.shared.reads.bytes()
    }

    fn tidy(&self) {
        self.shared.uploads.clear();
        self.shared.reads.clear();
        // What was let go is given back when wgpu looks; a device that is lost has nothing to give.
        let _ = self.shared.driver.poll(None);
    }
}
