//! A caching memory allocator for host and GPU memory: it splits, coalesces, moves free pages together instead of fragmenting,
//! reuses memory in stream order without waiting for the device, and says why when memory runs out.
//!
//! ```
//! use larder::{Allocator, Config, units::MIB};
//!
//! let host = Allocator::host(Config::default().limit(64 * MIB))?;
//! let mut block = host.alloc_zeroed(4 * MIB)?;
//! block.as_mut_slice::<f32>()?[0] = 1.0;
//! drop(block); // back in the heap, not to the system: the next one is had in nanoseconds
//! assert_eq!((host.stats().live.current, host.stats().reserved.current), (0, 4 * MIB));
//!
//! let error = host.alloc(100 * MIB).unwrap_err();
//! println!("{error}"); // what was asked for, why it failed, what would help, who holds what, what was tried
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What there is
//! * **Host memory**: [`Allocator::host`] (addresses reserved once, committed by the page), [`Allocator::host_system`] (segments of
//!   the system's heap), `Allocator::host_file` (files, for more than the machine has).
//! * **CUDA**, with the feature `cuda` (module `cuda`): device memory over a context of yours, by the page or in segments; buffers that
//!   cudarc's calls take; pinned host memory.
//! * **wgpu**, with the feature `wgpu` (module `wgpu`): segments of a device of yours; bindings, recordings, bytes there and back.
//! * **A simulated device** ([`Allocator::simulated`]) with streams, capacity, and failures to order, which checks every rule that a
//!   device would punish.
//! * **Any of them**: [`Device`], chosen at run time, with the reasons why others cannot be had; [`Fallback`], from one memory to the next.
//!
//! A user meets six types: [`Allocator`] and [`Block`] (memory, owned: dropping gives it back), [`Stream`] (an order of device
//! work), [`Config`], [`Stats`], and [`OomReport`]. Everything else is for those who work inside or look from outside.
//!
//! # The floors
//! A file imports from lower floors only; `tests/floors.rs` reads the source and fails on an arrow that runs up, as it does when
//! this picture and the source differ.
//!
//! ```text
//! floor 3  native/ device/ fallback diag/ trace/
//!            native: blocks as their users take them. device: a device chosen at run time (knows native). fallback: this memory, else that
//!            one. diag: the segment map as text. trace: read, write, replay (on a device), models.
//! floor 2  allocator/
//!            heaps, stream order, backend and policy joined: core, pool, ladder, pages, segments, streams, reclaim, report,
//!            history, leaks, debug, handles
//! floor 1  heap/ fence policy stats pressure snapshot backend/
//!            rooms that do not know each other (snapshot names stats and the backend's budget).
//!            heap: where blocks lie. fence: which stream has seen which work. policy: config and pure choices.
//!            stats: the accounting. pressure: how short memory is, in levels. snapshot: state, events, leaks and reports as data.
//!            backend: the trait; the host, CUDA, wgpu, the simulated device.
//! floor 0  units ids sync/
//!            bytes and their text; newtypes of ids; locks with their order, atomics
//! ```
//!
//! The tool in `src/bin/larder` stands above all of them and uses the public API only.
//!
//! # The flow
//! Two entry points: [`Request::alloc`] on the way down, the drop of a [`Block`] on the way up.
//!
//! ```text
//! Request --round--> multiple of the quantum --find--> free block --split?--> Block
//! Block::drop --> stamp with its streams' counters --> heap.put (coalesce) --> bin
//! nothing fits --> the ladder, one rung at a time, each leaving one line in the trail --> OomReport
//! ```
//!
//! A hit is arithmetic under one lock and calls no driver. The rungs of the ladder, in order ([`snapshot::Rung`]): reuse; poll
//! completed work; grow within the slack; move free pages together; wait on the device; grow to the limit; idle memory of other
//! pools; return what is idle and grow; wait on the host; the quarantine of debug mode; the user's reclaim hooks; the request's
//! deadline; the error.
//!
//! # What always holds
//! * **Placement is arithmetic.** The [`heap`] knows no memory, no stream, no clock and no lock; the same calls give the same
//!   places. [`heap::Heap::check`] recomputes its invariants from nothing, [`Allocator::check`] those of everything.
//! * **Locks have one order**; `src/sync/rank.rs` has all of it. Two matter most, the first before the second: *slow*, one for all pools of
//!   a backend (one thread on the rungs above the first search; may call the driver), and *state*, one for each pool: a brief lock
//!   (`src/sync/brief.rs`) for arithmetic only, never held across a wait, a driver call, user code or I/O. A drop takes *state* only, but
//!   in debug mode, which looks at bytes and keeps a ledger. It never waits for the device, never panics on a driver's word, never calls
//!   user code. Debug builds stop a thread that takes a lock out of order, or calls out with one that is not to be held.
//! * **Bytes are reused in order**: by the same stream at once, by another after completion or behind a wait on the device
//!   ([`fence`]). Memory that the CPU touches is reused after completion only.
//! * **requested <= live <= active <= reserved <= limit**, at every instant that a reader can see ([`stats`]).
//! * **Ourselves we assert, the world gets errors**: a broken structure panics with its ids; a driver, a request or a file that
//!   is wrong is a typed error that carries what its reader would ask next.
//! * **Nothing is decided twice**: no clock, no environment, no hash order and no thread of its own in the core; the library
//!   prints nothing.
//!
//! # Words
//! | word | meaning |
//! |---|---|
//! | region | one address reservation, or one segment; blocks never join across regions |
//! | segment | a region that is granted and released as a whole |
//! | page, backed | the unit in which a paged backend commits, returns and moves memory; whether it holds memory now |
//! | block | a gap-free part of a region in exactly one state: live, free, pending, held, unbacked, retired |
//! | fence | the (stream, counter) pairs of work that a free block must wait for |
//! | bin, quantum | free blocks of like size; what every size and offset is a multiple of |
//! | pool, tag | a heap of its own under the same limit; a label for accounting that shares the pool |
//! | slack | how far reserved may exceed the peak of live before pages are moved instead |
//! | retired | the old address of moved pages, not yet unmapped |
//! | rung, ladder, trail | one remedy, their order, what happened |
//! | trim, purge | return idle memory down to so many bytes; all of it |
//! | site | where in the caller's code a block was asked for |
//! | event, history | one thing that happened; the last of them, in a ring for each pool ([`snapshot::History`]) |
//! | guard, poison, quarantine | bytes behind a block; the pattern in bytes that nobody owns; dropped blocks that are not used again yet ([`policy::DebugConfig`]) |
//! | snapshot, map, report | the state as data, its picture, and what an out-of-memory error carries |
//!
//! # Where to read first
//! [`backend`] states the contract that every kind of memory keeps; `src/heap/mod.rs` and `src/fence.rs` are the two ideas;
//! `src/allocator/ladder.rs` is the policy; `src/backend/sim` is the device that the tests believe.

pub mod allocator;
pub mod backend;
pub mod device;
pub mod diag;
pub mod fallback;
pub mod fence;
pub mod heap;
pub mod ids;
pub mod native;
pub mod policy;
pub mod pressure;
pub mod snapshot;
pub mod stats;
mod sync;
pub mod trace;
pub mod units;

pub use allocator::{AllocError, Allocator, Any, Block, Host, Memory, Request, Simulated, Stream, tag};
pub use device::Device;
pub use fallback::Fallback;
#[cfg(feature = "cuda")]
pub use native::cuda;
#[cfg(feature = "wgpu")]
pub use native::wgpu;
pub use policy::{Config, PoolConfig};
pub use snapshot::OomReport;
pub use stats::Stats;

#[cfg(all(doctest, feature = "cuda", feature = "wgpu"))]
#[doc = include_str!("../README.md")]
struct Readme;
