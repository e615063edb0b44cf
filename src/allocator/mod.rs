//! The allocator: heaps, stream order, backend and policy joined.
//!
//! | file | what |
//! |---|---|
//! | `core` | what all handles share: pools, locks, limits, the first search; a block's way back is its drop, in `block` |
//! | `pool` | a pool's heap, clocks and figures behind one lock, and what happens to a block there |
//! | `ladder` | what is tried, in which order, when nothing free fits; `ladder/asking`: the rungs that wait or ask |
//! | `pages`, `segments` | growth and moves of memory, by page and by segment |
//! | `streams` | completed work, waits, stream handles |
//! | `reclaim` | trim, purge, tick, reclaim hooks |
//! | `recording` | open recordings, captures, and the memory that a graph keeps |
//! | `waiting` | requests with a deadline |
//! | `report` | snapshots and out-of-memory reports |
//! | `history` | the last events of each pool |
//! | `debug` | guards, poison and quarantine, when the config asks for them |
//! | `leaks` | what is still live, and what a stretch of code left behind |
//! | `block`, `request`, `tags`, `error` | what users hold, ask, label and get instead |

mod block;
pub(crate) mod core;
mod debug;
mod error;
mod history;
mod ladder;
mod leaks;
mod pages;
mod pool;
mod reclaim;
mod recording;
mod report;
mod request;
mod segments;
mod streams;
mod tags;
mod waiting;

use std::any::TypeId;
use std::marker::PhantomData;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use self::core::Core;
#[cfg(unix)]
use crate::backend::host::{Mmap, MmapConfig, limit::less_a_margin};
use crate::backend::host::{System, default_limit};
use crate::backend::sim::{Sim, SimConfig};
use crate::backend::{Backend, Capabilities};
use crate::ids::PoolId;
use crate::policy::{Config, ConfigError, PoolConfig};
use crate::pressure::Pressure;
use crate::snapshot::{Misuse, Snapshot};
use crate::stats::Stats;

pub use block::Block;
pub use error::AllocError;
pub use leaks::Scope;
pub use reclaim::{HookGuard, Shortage};
#[allow(unused_imports, reason = "used by devices with one queue, which a feature adds")]
pub(crate) use recording::OpenRecording;
pub use recording::{Capture, GraphMemory};
pub use request::Request;
pub use streams::Stream;
pub use tags::{TagGuard, TagId, tag};

pub(crate) mod sealed {
    pub trait Sealed {}
}

/// A kind of memory. It only unlocks accessors; it is erased to [`Any`] and costs nothing.
pub trait Memory: sealed::Sealed + 'static {
    /// What a block of this kind keeps at hand for its accessors.
    #[doc(hidden)]
    type Kept: Default + Send + Sync;
}

macro_rules! memory {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub enum $name {}
        impl sealed::Sealed for $name {}
        impl Memory for $name {
            type Kept = ();
        }
    )*};
}

memory! {
    /// Memory of any kind.
    Any,
    /// Memory that the CPU reads and writes.
    Host,
    /// Memory of the simulated device, which holds no bytes.
    Simulated
}

/// A caching allocator over one backend. Cheap to clone; all clones share everything.
///
/// ```
/// use larder::{Allocator, Config, units::MIB};
///
/// let host = Allocator::host(Config::default().limit(64 * MIB))?;
/// let mut a = host.alloc_zeroed(4 * MIB)?;
/// a.as_mut_slice::<f32>()?[0] = 1.0;
/// drop(a);
/// assert_eq!(host.stats().live.current, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Allocator<M: Memory = Any> {
    pub(crate) core: Arc<Core>,
    pool: PoolId,
    kind: PhantomData<fn() -> M>,
}

impl<M: Memory> Clone for Allocator<M> {
    fn clone(&self) -> Self {
        self.view(self.pool)
    }
}

impl<M: Memory> std::fmt::Debug for Allocator<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Allocator({} {})", self.core.caps.name, self.pool)
    }
}

impl Allocator<Host> {
    /// Host memory: reserved once and committed by the page where the system can, from the system's heap elsewhere. Without a
    /// limit in the config it is the cgroup's or the machine's memory less 5 %.
    ///
    /// # Errors
    /// A config that contradicts itself; a system that refuses addresses.
    pub fn host(config: Config) -> Result<Self, AllocError> {
        Self::host_default(config)
    }

    #[cfg(unix)]
    fn host_default(config: Config) -> Result<Self, AllocError> {
        let page = config.page.unwrap_or(MmapConfig::default().page);
        Self::host_mmap(MmapConfig { page, ..MmapConfig::default() }, config)
    }

    #[cfg(not(unix))]
    fn host_default(config: Config) -> Result<Self, AllocError> {
        Self::host_system(config)
    }

    /// As [`Allocator::host`], with choices about huge pages, pre-touch and addresses.
    ///
    /// # Errors
    /// As [`Allocator::host`].
    #[cfg(unix)]
    pub fn host_mmap(mmap: MmapConfig, config: Config) -> Result<Self, AllocError> {
        config.validate()?;
        let config = Config { page: Some(mmap.page), ..config };
        Self::over(Box::new(Mmap::new(mmap)?), config, Some(default_limit()))
    }

    /// Host memory that is kept in files of a folder, for more than the machine has; see
    /// [`Mmap::in_folder`](crate::backend::host::Mmap::in_folder). Without a limit in the config it is what the folder's file
    /// system has free now, less 5 %.
    ///
    /// ```no_run
    /// use larder::{Allocator, Config};
    ///
    /// let files = Allocator::host_file("/var/tmp".as_ref(), Config::default())?;
    /// let mut block = files.alloc(1 << 36)?;
    /// # Ok::<(), larder::AllocError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Allocator::host`]; a folder that cannot be used, with the system's reason.
    #[cfg(unix)]
    pub fn host_file(folder: &std::path::Path, config: Config) -> Result<Self, AllocError> {
        config.validate()?;
        let page = config.page.unwrap_or(MmapConfig::default().page);
        let mmap = Mmap::in_folder(folder, MmapConfig { page, ..MmapConfig::default() })?;
        let limit = mmap.space().map(less_a_margin);
        Self::over(Box::new(mmap), Config { page: Some(page), ..config }, limit)
    }

    /// Host memory in segments from the system's heap.
    ///
    /// # Errors
    /// A config that contradicts itself.
    pub fn host_system(config: Config) -> Result<Self, AllocError> {
        Self::over(Box::new(System::new()), config, Some(default_limit()))
    }
}

impl Allocator<Simulated> {
    /// A simulated device of the given make. Page and quantum of the config, where set, are the device's too.
    ///
    /// # Errors
    /// A config that contradicts itself.
    pub fn simulated(mut device: SimConfig, config: Config) -> Result<(Self, Sim), AllocError> {
        device.page = config.page.unwrap_or(device.page);
        device.quantum = config.quantum.unwrap_or(device.quantum);
        let sim = Sim::new(device);
        Ok((Self::over(Box::new(sim.clone()), config, None)?, sim))
    }
}

impl<M: Memory> Allocator<M> {
    /// An allocator over a backend of the kind `M` says.
    pub(crate) fn over(
        backend: Box<dyn Backend>,
        config: Config,
        default_limit: Option<u64>,
    ) -> Result<Self, AllocError> {
        let core = Core::new(backend, config, default_limit, TypeId::of::<M>())?;
        Ok(Allocator { core, pool: PoolId(0), kind: PhantomData })
    }

    fn view<N: Memory>(&self, pool: PoolId) -> Allocator<N> {
        Allocator { core: self.core.clone(), pool, kind: PhantomData }
    }

    /// The same allocator without the kind of its memory.
    pub fn erase(&self) -> Allocator<Any> {
        self.view(self.pool)
    }

    /// The same allocator with the kind of its memory, if it is that kind; `None` otherwise.
    ///
    /// ```
    /// use larder::{Allocator, Config, Host, Simulated};
    ///
    /// let any = Allocator::host(Config::default())?.erase();
    /// assert!(any.downcast::<Host>().is_some() && any.downcast::<Simulated>().is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn downcast<N: Memory>(&self) -> Option<Allocator<N>> {
        let is_any = TypeId::of::<N>() == TypeId::of::<Any>();
        (is_any || self.core.kind == TypeId::of::<N>()).then(|| self.view(self.pool))
    }

    /// A request for `bytes` bytes, to be completed.
    #[inline]
    #[track_caller]
    pub fn request(&self, bytes: u64) -> Request<'_, M> {
        Request::new(self, bytes, Location::caller())
    }

    /// A block of `bytes` bytes for the default stream. Zero bytes succeed and hold nothing.
    ///
    /// # Errors
    /// See [`Request::alloc`].
    #[inline]
    #[track_caller]
    pub fn alloc(&self, bytes: u64) -> Result<Block<M>, AllocError> {
        self.request(bytes).alloc()
    }

    /// A block of zeros for the default stream.
    ///
    /// # Errors
    /// See [`Request::alloc`].
    #[track_caller]
    pub fn alloc_zeroed(&self, bytes: u64) -> Result<Block<M>, AllocError> {
        self.request(bytes).zeroed().alloc()
    }

    /// A block for a stream.
    ///
    /// # Errors
    /// See [`Request::alloc`].
    #[inline]
    #[track_caller]
    pub fn alloc_on(&self, stream: &Stream, bytes: u64) -> Result<Block<M>, AllocError> {
        self.request(bytes).on(stream).alloc()
    }

    /// A new stream of the device; where there are no streams, the one order that there is.
    ///
    /// # Errors
    /// What the driver says.
    pub fn stream(&self) -> Result<Stream, AllocError> {
        Ok(self.core.open_stream()?)
    }

    /// The stream that requests without one are for.
    pub fn default_stream(&self) -> Stream {
        Stream::new(self.core.clone(), crate::ids::StreamId(0))
    }

    /// A new pool: memory and a lock of its own, under the same limit. Answers the allocator that takes from it.
    ///
    /// # Errors
    /// [`AllocError::TooManyPools`].
    pub fn pool(&self, name: &str, config: PoolConfig) -> Result<Self, AllocError> {
        let pool = self.core.add_pool(name, config)?;
        Ok(self.view(pool))
    }

    /// The pool that this handle takes from.
    pub fn pool_id(&self) -> PoolId {
        self.pool
    }

    /// The figures of this handle's pool, all of one instant. Takes no lock.
    pub fn stats(&self) -> Stats {
        self.core.pool(self.pool).meter.read()
    }

    /// Sums over all pools. Peaks are sums of the pools' peaks, and so bound the true peak; that of reserved is exact.
    pub fn total_stats(&self) -> Stats {
        self.core.total_stats()
    }

    /// Sets the peaks of every pool to what is current.
    pub fn reset_peak(&self) {
        for pool in self.core.pools() {
            let state = pool.state.lock();
            pool.meter.reset_peak();
            pool.meter.reset_addresses(state.addresses());
        }
        self.core.reset_reserved_peak();
    }

    /// How short memory is: what all pools hold of the limit, and what is held of the device, which is asked. A device that does
    /// not answer says nothing.
    pub fn pressure(&self) -> Pressure {
        let budget = self.core.backend.budget().ok().flatten();
        let limit = self.core.config.read().limit;
        Pressure::new(self.core.reserved.load(Relaxed), limit, budget.map(|budget| (budget.free, budget.total)))
    }

    /// Everything that the allocator holds, as plain data, with the events that the config lets it keep.
    ///
    /// A pool is locked while its blocks and events are copied; texts are made after that.
    pub fn snapshot(&self) -> Snapshot {
        self.core.snapshot()
    }

    /// fragmentation = 1 - largest free block / free bytes of this pool; 0 when nothing is free.
    pub fn fragmentation(&self) -> f64 {
        let state = self.core.pool(self.pool).state.lock();
        let stats = self.core.pool(self.pool).meter.read();
        let free = stats.reserved.current - stats.live.current;
        if free == 0 { 0.0 } else { 1.0 - state.heap.largest_free() as f64 / free as f64 }
    }

    /// Bytes of the allocator's own records.
    pub fn own_memory(&self) -> u64 {
        let of_pool = |pool: &pool::Pool| {
            let state = pool.state.lock();
            let history = state.history.as_ref().map_or(0, |ring| ring.memory());
            state.heap.memory() + state.clocks.memory() + history
        };
        let debug = self.core.debug.as_ref().map_or(0, |debug| debug.memory());
        debug + self.core.pools().map(of_pool).sum::<u64>()
    }

    /// Returns idle memory of all pools, whose work is complete, until at most `keep` idle bytes are left. Answers the bytes
    /// returned.
    ///
    /// # Errors
    /// What the backend says; what was returned until then is returned.
    pub fn trim(&self, keep: u64) -> Result<u64, AllocError> {
        Ok(self.core.trim(keep)?)
    }

    /// Waits for unfinished work and returns all idle memory of all pools. Answers the bytes returned.
    ///
    /// # Errors
    /// What the backend says.
    pub fn purge(&self) -> Result<u64, AllocError> {
        Ok(self.core.purge()?)
    }

    /// Lets time pass: by the config's watermarks and decay, idle memory goes back. `now` is the time since any fixed instant.
    /// Answers the bytes returned.
    ///
    /// # Errors
    /// What the backend says.
    pub fn tick(&self, now: Duration) -> Result<u64, AllocError> {
        Ok(self.core.tick(now)?)
    }

    /// Calls `hook` when memory runs short, with no lock held, until the guard is dropped. The hook may free blocks, trim, and even
    /// allocate; its own allocations do not call hooks.
    pub fn on_shortage(&self, hook: impl Fn(&Shortage) + Send + Sync + 'static) -> HookGuard {
        reclaim::Hooks::add(&self.core, Arc::new(hook))
    }

    /// The config in force.
    pub fn config(&self) -> Config {
        self.core.config.read().clone()
    }

    /// Changes limits, slack, watermarks, decay, report level, history and the like from now on. Quantum, page, alias and debug mode stay as they
    /// were.
    /// A history of another length begins anew.
    ///
    /// # Errors
    /// The first contradiction; then nothing is changed.
    pub fn set_config(&self, config: Config) -> Result<(), ConfigError> {
        self.core.set_config(config)
    }

    /// Changes the limit and guarantee of this handle's pool.
    ///
    /// # Errors
    /// The first contradiction; then nothing is changed.
    pub fn set_pool_config(&self, config: PoolConfig) -> Result<(), ConfigError> {
        self.core.set_pool_config(self.pool, config)
    }

    /// What debug mode found since this was called last, after a look at all memory that it watches now: the oldest 256 finds, the
    /// last of them with the number of those that are left out ([`Misuse::more`]). Nothing without debug mode ([`Config::debug`]).
    /// Time linear in the bytes that are watched; drops and allocations wait meanwhile.
    pub fn misuses(&self) -> Vec<Misuse> {
        self.core.misuses()
    }

    /// What the backend can do.
    pub fn capabilities(&self) -> Capabilities {
        self.core.caps
    }

    /// Recomputes every invariant and every figure from the blocks.
    ///
    /// # Errors
    /// The first thing found wrong, in words: a defect of this crate.
    pub fn check(&self) -> Result<(), String> {
        self.core.check()
    }
}
