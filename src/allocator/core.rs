//! The core that every allocator of one backend shares, and the two entry points: `alloc` on the way down, `free` on the way up.
//!
//! # Locks
//! `slow`, then one pool's `state`; never two states at once, and never the other way round. [`Rank`] has the whole order, which debug
//! builds hold every thread to.
//! * `slow`: one thread at a time on the rungs behind the first search, for all pools of the core. It may be held across driver
//!   calls. A drop never takes it.
//! * `state` of a pool: heap, clocks, tags. Held for arithmetic only: never across a driver call, user code or I/O.
//!
//! # Invariants
//! * `device.reserved` is the sum of the pools' reserved bytes and changes under `slow` only;
//! * events that the clocks know are recorded, queried and forgotten under `slow` only;
//! * pools are only ever added.

use std::any::{Any, TypeId};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use super::debug::Debug;
use super::error::AllocError;
use super::history::{Clock, Ring};
use super::ladder;
use super::pool::{Grant, Need, Note, Pool, State};
use super::reclaim::Hooks;
use super::recording::{Numbers, Unpinning};
use super::streams::{Handles, Retirement};
use super::waiting::Waiting;
use crate::backend::{Backend, BackendError, Capabilities, Span};
use crate::fence::Clocks;
use crate::ids::{Access, BlockId, PoolId, StreamId};
use crate::policy::{Config, ConfigError, PoolConfig};
use crate::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use crate::sync::{Mutex, Outside, Rank, RwLock};
use crate::units::align_up;

/// The most pools of one allocator.
pub(crate) const POOLS_MAX: usize = 256;
/// The longest region: sizes and sums of a few of them stay within 64 bits.
const REGION_MAX: u64 = 1 << 60;

/// What belongs to the slow lock.
#[derive(Default)]
pub(crate) struct Slow {
    /// Old addresses of moved pages of each pool, to be unmapped when their fence is complete.
    pub retired: Vec<Vec<u32>>,
    /// Streams whose last handle is gone.
    pub retiring: Vec<Retirement>,
    /// Pools whose graph is gone.
    pub unpinning: Vec<Unpinning>,
    /// When `tick` last returned memory.
    pub last_decay: Option<std::time::Duration>,
}

/// Everything behind the handles of one backend.
pub(crate) struct Core {
    /// Itself, for the pools.
    me: Weak<Core>,
    pub backend: Outside<Box<dyn Backend>>,
    /// What the backend can do and the config allows.
    pub caps: Capabilities,
    /// Whether moved pages stay mapped at their old address until they are unmapped there, whatever the config says.
    pub leaves_mapped: bool,
    pub config: RwLock<Config>,
    pub quantum: u64,
    /// The pool that every allocator has. Most requests are for it.
    first: Pool,
    /// The others, by their ids less one.
    others: Box<[OnceLock<Box<Pool>>; POOLS_MAX - 1]>,
    /// How many others there are: counted when they are whole. Changes under `slow` only.
    others_made: AtomicUsize,
    pub slow: Mutex<Slow>,
    pub hooks: Hooks,
    pub waiting: Waiting,
    /// Sum of the pools' reserved bytes.
    pub reserved: AtomicU64,
    /// Most of `reserved`.
    pub reserved_peak: AtomicU64,
    /// An error met where it could not be returned; the next slow call returns it.
    pub deferred: Mutex<Option<BackendError>>,
    pub lost: AtomicBool,
    /// Debug mode, when it is on.
    pub debug: Option<Box<Debug>>,
    /// What stamps the events of histories.
    pub clock: Arc<Clock>,
    /// When the last full report was made.
    pub last_full_report: Mutex<Option<Instant>>,
    /// The limit where the config has none.
    default_limit: Option<u64>,
    /// The kind of the memory, as the marker type's id.
    pub kind: TypeId,
    /// Streams whose last handle went and that a slow call should retire.
    pub abandoned: Mutex<Vec<StreamId>>,
    pub handles: Mutex<Handles>,
    /// Streams that are open on the device, besides the default one.
    pub open: Mutex<Vec<StreamId>>,
    /// Open recordings.
    pub recordings: Mutex<Numbers>,
    /// How much a request must ask about before it takes anything: pools of captures and graphs, the loss of the device, and
    /// debug mode.
    pub special: AtomicU32,
    /// Streams under announced captures, each with the capture's pool. Grows under `slow` only.
    pub captures: Mutex<Vec<(StreamId, PoolId)>>,
    /// Pools made for captures; one that is not pinned may serve the next.
    pub capture_pools: Mutex<Vec<PoolId>>,
    /// Pools whose graph went and that a slow call should let go.
    pub graphs_gone: Mutex<Vec<PoolId>>,
}

impl Core {
    pub(crate) fn new(
        backend: Box<dyn Backend>,
        mut config: Config,
        default_limit: Option<u64>,
        kind: TypeId,
    ) -> Result<Arc<Core>, AllocError> {
        config.limit = config.limit.or(default_limit);
        config.validate()?;
        let mut caps = backend.capabilities();
        caps.region_max = caps.region_max.min(REGION_MAX);
        let leaves_mapped = caps.alias;
        caps.alias &= config.alias;
        let quantum = config.quantum.unwrap_or(caps.quantum);
        check_quantum(quantum, &caps)?;
        let debug = match config.debug {
            Some(debug) => Some(Box::new(Debug::new(debug, &*backend)?)),
            None => None,
        };
        let clock = Arc::default();
        Ok(Arc::new_cyclic(|me| Core {
            me: me.clone(),
            first: {
                let clocks = Clocks::new(caps.host_ordered);
                let mut state = State::new(me.clone(), quantum, clocks, &caps, config.poll_every);
                state.history = Ring::new(config.history, &clock, 0);
                Pool::new("default", PoolConfig::default(), state)
            },
            special: AtomicU32::new(u32::from(debug.is_some())),
            debug,
            backend: Outside(backend),
            caps,
            leaves_mapped,
            quantum,
            config: RwLock::new(Rank::Config, config),
            others: Box::new([const { OnceLock::new() }; POOLS_MAX - 1]),
            others_made: AtomicUsize::new(0),
            slow: Mutex::new(Rank::Slow, Slow { retired: vec![Vec::new()], ..Slow::default() }),
            hooks: Hooks::default(),
            waiting: Waiting::default(),
            reserved: AtomicU64::new(0),
            reserved_peak: AtomicU64::new(0),
            deferred: Mutex::new(Rank::Leaf, None),
            lost: AtomicBool::new(false),
            clock,
            last_full_report: Mutex::new(Rank::Leaf, None),
            default_limit,
            kind,
            abandoned: Mutex::new(Rank::Leaf, Vec::new()),
            handles: Mutex::new(Rank::Handles, Handles::default()),
            open: Mutex::new(Rank::Leaf, Vec::new()),
            recordings: Mutex::new(Rank::Recordings, Numbers::default()),
            captures: Mutex::new(Rank::Captures, Vec::new()),
            capture_pools: Mutex::new(Rank::Leaf, Vec::new()),
            graphs_gone: Mutex::new(Rank::Leaf, Vec::new()),
        }))
    }

    pub(crate) fn add_pool(&self, name: &str, config: PoolConfig) -> Result<PoolId, AllocError> {
        config.validate()?;
        self.add_pool_under(name, config, &mut self.slow.lock())
    }

    pub(crate) fn add_pool_under(&self, name: &str, config: PoolConfig, slow: &mut Slow) -> Result<PoolId, AllocError> {
        let at = self.others_made.load(Relaxed);
        let Some(place) = self.others.get(at) else { return Err(AllocError::TooManyPools { max: POOLS_MAX }) };
        // Held until the pool can be seen: what changes for all pools changes before it is made, or for it too.
        let (recordings, captures, current) = (self.recordings.lock(), self.captures.lock(), self.config.read());
        // A stream that exists already is known to the new pool too.
        let mut clocks = Clocks::new(self.caps.host_ordered);
        clocks.know(self.first.state.lock().clocks.streams());
        let mut state = State::new(self.me.clone(), self.quantum, clocks, &self.caps, current.poll_every);
        state.history = Ring::new(current.history, &self.clock, 0);
        recordings.open.iter().for_each(|number| state.recording_opened(*number));
        captures.iter().for_each(|(stream, _)| state.clocks.set_recording(*stream, true));
        slow.retired.push(Vec::new());
        let _ = place.set(Box::new(Pool::new(name, config, state)));
        self.others_made.store(at + 1, Release);
        Ok(PoolId(at as u16 + 1))
    }

    /// # Panics
    /// When the id was not given by this allocator: a defect of this crate.
    #[inline(always)]
    pub(crate) fn pool(&self, id: PoolId) -> &Pool {
        self.find_pool(id).expect("a pool of this allocator")
    }

    #[inline(always)]
    pub(crate) fn find_pool(&self, id: PoolId) -> Option<&Pool> {
        match id {
            PoolId(0) => Some(&self.first),
            PoolId(other) => self.others.get(usize::from(other) - 1)?.get().map(|pool| &**pool),
        }
    }

    pub(crate) fn pools(&self) -> impl Iterator<Item = &Pool> + Clone {
        let others = self.others[..self.others_made.load(Acquire)].iter().filter_map(OnceLock::get);
        std::iter::once(&self.first).chain(others.map(|pool| &**pool))
    }

    /// The backend as what it is.
    #[allow(dead_code, reason = "used by kinds of memory that features add")]
    pub(crate) fn backend_as<B: Backend>(&self) -> Option<&B> {
        let backend: &dyn Any = &*self.backend;
        backend.downcast_ref()
    }

    /// Rounds a request and checks what can be known beforehand.
    #[inline(always)]
    pub(crate) fn round(&self, bytes: u64, align: u64) -> Result<u64, AllocError> {
        if !align.is_power_of_two() || align > self.caps.base_align {
            return Err(AllocError::BadAlignment { align, max: self.caps.base_align });
        }
        match align_up(bytes, self.quantum) {
            Some(size) if size <= self.caps.region_max => Ok(size),
            _ => Err(AllocError::TooLarge { requested: bytes, max: self.caps.region_max }),
        }
    }

    /// Bytes to ask the heap for, for so many of the user's.
    pub(crate) fn with_guard(&self, bytes: u64) -> u64 {
        self.debug.as_ref().map_or(bytes, |debug| debug.with_guard(bytes))
    }

    /// The first search for an ordinary request; nothing else happens on the hot path.
    #[inline(always)]
    pub(crate) fn alloc_at_once(&self, pool: &Pool, size: u64, align: u64, note: Note) -> Option<Grant> {
        let mut guard = pool.state.lock();
        let state = &mut *guard;
        if state.care_is_due(&pool.meter) || !state.heap.aligns(align) {
            return None;
        }
        let index = state.heap.take(size, Access::Now(note.stream()), &mut state.clocks)?;
        Some(state.hand_out(index, align, note, &pool.meter))
    }

    /// Serves what cannot be served at once.
    #[cold]
    #[inline(never)]
    pub(crate) fn alloc(&self, id: PoolId, need: &Need<'_>) -> Result<Grant, AllocError> {
        let pool = self.pool(id);
        let mut state = pool.state.lock();
        if state.care_is_due(&pool.meter) && state.care_begins(&pool.meter) {
            drop(state);
            self.care(id, need.stream);
            state = pool.state.lock();
        }
        if let Some(index) = state.take(need) {
            return Ok(state.grant(index, need, &pool.meter));
        }
        drop(state);
        ladder::climb(self, id, need)
    }

    pub(crate) fn use_on(&self, id: PoolId, block: BlockId, stream: StreamId) {
        self.pool(id).state.lock().use_on(block, stream);
    }

    /// The streams that a live block may be in use on: its own first.
    #[allow(dead_code, reason = "used by kinds of memory that features add")]
    pub(crate) fn streams_of(&self, id: PoolId, block: BlockId) -> Vec<StreamId> {
        let mut guard = self.pool(id).state.lock();
        let state = &mut *guard;
        let index = state.heap.live(block);
        let own = state.heap.note_mut(index).stream();
        std::iter::once(own).chain(state.users.get(&index).into_iter().flatten().copied()).collect()
    }

    /// The span of a live block.
    pub(crate) fn span(&self, id: PoolId, block: BlockId) -> Span {
        let state = self.pool(id).state.lock();
        let (place, offset, size) = state.heap.place(state.heap.live(block));
        Span { region: state.heap.region(place), offset, size }
    }

    /// Remembers that the device is gone, if that is what an error says.
    pub(crate) fn look_for_loss(&self, error: &BackendError) {
        if matches!(error, BackendError::Lost { .. }) && !self.lost.swap(true, Relaxed) {
            self.special.fetch_add(1, Relaxed);
        }
    }

    /// Remembers an error that no caller can be given now.
    pub(crate) fn defer(&self, error: BackendError) {
        self.look_for_loss(&error);
        self.deferred.lock().get_or_insert(error);
    }

    /// Adds to what is reserved, after the backend gave it. Under `slow`.
    pub(crate) fn count_reserved(&self, pool: &Pool, bytes: u64) {
        pool.meter.reserved(bytes);
        let reserved = self.reserved.load(Relaxed) + bytes;
        self.reserved.store(reserved, Relaxed);
        self.reserved_peak.fetch_max(reserved, Relaxed);
    }

    /// Takes off what is reserved, after the backend took it. Under `slow`.
    pub(crate) fn count_returned(&self, pool: &Pool, bytes: u64) {
        pool.meter.returned(bytes);
        self.reserved.store(self.reserved.load(Relaxed) - bytes, Relaxed);
    }

    /// What a pool may still reserve.
    pub(crate) fn room(&self, id: PoolId) -> Room {
        let pool = self.pool(id);
        let own = pool.meter.read().reserved.current;
        let promised: u64 = self
            .pools()
            .filter(|other| !std::ptr::eq(*other, pool))
            .map(|other| other.config.read().guarantee.saturating_sub(other.meter.read().reserved.current))
            .fold(0, u64::saturating_add);
        let of_all = self.config.read().limit.map(|limit| {
            let limit = limit.saturating_sub(promised);
            (limit.saturating_sub(self.reserved.load(Relaxed)), limit)
        });
        let of_pool = pool.config.read().limit.map(|limit| (limit.saturating_sub(own), limit));
        match (of_all, of_pool) {
            (Some(all), Some(pool)) if pool.0 < all.0 => Room { left: pool.0, limit: Some(pool.1), of_pool: true },
            (Some(all), _) => Room { left: all.0, limit: Some(all.1), of_pool: false },
            (None, Some(pool)) => Room { left: pool.0, limit: Some(pool.1), of_pool: true },
            (None, None) => Room { left: u64::MAX, limit: None, of_pool: false },
        }
    }

    /// Whether a limit forbids so many more live bytes in a pool, whatever is returned or moved: only a free could help.
    pub(crate) fn forbids(&self, id: PoolId, bytes: u64) -> bool {
        let live = |pool: &Pool| pool.meter.read().live.current;
        let all: u64 = self.pools().map(live).sum();
        let over = |limit: Option<u64>, live: u64| limit.is_some_and(|limit| live.saturating_add(bytes) > limit);
        over(self.config.read().limit, all) || over(self.pool(id).config.read().limit, live(self.pool(id)))
    }

    /// As [`Core::room`], but by the pool's own limit when that forbids so many more live bytes.
    pub(crate) fn binding_room(&self, id: PoolId, bytes: u64) -> Room {
        let stats = self.pool(id).meter.read();
        let of_pool = self.pool(id).config.read().limit;
        match of_pool {
            Some(limit) if stats.live.current.saturating_add(bytes) > limit => {
                Room { left: limit.saturating_sub(stats.reserved.current), limit: Some(limit), of_pool: true }
            }
            _ => self.room(id),
        }
    }

    /// Bytes that other pools hold and need not give back: what is live there, or what they reserved within their guarantee.
    pub(crate) fn kept_by_others(&self, id: PoolId) -> u64 {
        let others = self.pools().filter(|other| !std::ptr::eq(*other, self.pool(id)));
        let kept = |other: &Pool| {
            let stats = other.meter.read();
            stats.live.current.max(stats.reserved.current.min(other.config.read().guarantee))
        };
        others.map(kept).fold(0, u64::saturating_add)
    }

    /// Changes what can be changed of a pool.
    pub(crate) fn set_pool_config(&self, id: PoolId, mut config: PoolConfig) -> Result<(), ConfigError> {
        config.validate()?;
        let mut current = self.pool(id).config.write();
        config.tag = current.tag.take();
        *current = config;
        Ok(())
    }

    pub(crate) fn set_config(&self, mut config: Config) -> Result<(), ConfigError> {
        config.limit = config.limit.or(self.default_limit);
        config.validate()?;
        let mut current = self.config.write();
        (config.quantum, config.page, config.alias) = (current.quantum, current.page, current.alias);
        config.debug = current.debug;
        *current = config;
        // The config is held meanwhile, so that pools end with what it says, whoever else changes it.
        self.keep_history(current.history);
        self.pools().for_each(|pool| pool.state.lock().set_poll_every(current.poll_every));
        Ok(())
    }

    pub(crate) fn reset_reserved_peak(&self) {
        let _slow = self.slow.lock();
        self.reserved_peak.store(self.reserved.load(Relaxed), Relaxed);
    }

    /// Recomputes the accounting of every pool from its heap.
    pub(crate) fn check(&self) -> Result<(), String> {
        let _slow = self.slow.lock();
        let mut reserved = 0;
        for (at, pool) in self.pools().enumerate() {
            reserved += pool.walk().map_err(|text| format!("pool p{at}: {text}"))?;
        }
        let said = self.reserved.load(Relaxed);
        if said == reserved { Ok(()) } else { Err(format!("reserved is {said}, the pools say {reserved}")) }
    }
}

/// What a pool may still reserve, and the limit that says so: its own or that of all, whichever leaves less.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub left: u64,
    pub limit: Option<u64>,
    /// Whether the limit is the pool's own.
    pub of_pool: bool,
}

/// A quantum must suit the memory: whole quanta make a page, and region bases are multiples of it.
fn check_quantum(quantum: u64, caps: &Capabilities) -> Result<(), ConfigError> {
    if !quantum.is_power_of_two() || !(16..=1 << 20).contains(&quantum) {
        return Err(ConfigError::NotPowerOfTwo { key: "quantum", value: quantum, min: 16, max: 1 << 20 });
    }
    let high = [("page", caps.page.unwrap_or(u64::MAX)), ("alignment of the memory", caps.base_align)];
    match high.into_iter().find(|(_, most)| quantum > *most) {
        Some((high, most)) => {
            Err(ConfigError::Contradiction { low: "quantum", low_value: quantum as f64, high, high_value: most as f64 })
        }
        None => Ok(()),
    }
}
