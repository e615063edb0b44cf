//! A stand-in for the CUDA driver library, so that everything above it can be tested where there is no GPU.
//!
//! The tests compile this folder into a shared library with plain `rustc` (`tests/common/driver.rs`) and load it before the first
//! driver call; whoever opens `libcuda.so` afterwards gets it. It exports the driver's names (`entry/`) and a control surface for
//! tests (`control.rs`). It knows nothing of larder. One process has one world ([`world::World`]) behind one lock.
//!
//! It is as unkind as the driver is allowed to be, and it checks what the driver leaves to luck:
//!
//! * **Nothing runs by itself.** Work stands in queues until somebody waits for it or a test steps a stream; only a query that is
//!   repeated (64 times, `standin_patience`) lets one operation of that stream run, so that polling ends.
//! * **Happens-before is checked on physical bytes.** Every operation and every event carries a vector clock; the host is a queue
//!   too (one for all threads, since how threads order themselves cannot be seen from here). Two touches of one byte, one a write,
//!   whose clocks do not order them are a violation, through whichever addresses they came and whether or not bytes got damaged.
//! * **Addresses are never given twice** and are no addresses of this process: a stale pointer is always found, and a host that
//!   follows a device pointer dies. Pinned memory alone is real. Fresh memory is not zero.
//!
//! Where the driver's words leave room, and what was chosen:
//!
//! * An access outside accessible memory is a violation and is left out; the driver ends the context (error 700). Leaving it out
//!   lets a test say what else went wrong.
//! * `cuMemFree` and `cuMemFreeHost` wait for the device, as the driver does without promising it; that work on the memory was
//!   unfinished, or that the host did not know it to be finished, is a violation. The same holds for `cuMemUnmap`, which waits for
//!   nothing.
//! * `cuMemUnmap` takes one or more whole mappings, `cuMemMap` only offset 0 and the whole handle, sizes are multiples of 2 MiB
//!   (or of less, where a test wants small pages).
//! * Copies from pageable memory are staged at the call, copies to it return when done; with pinned memory both are asynchronous.
//! * Stream 0 is the legacy default stream: it waits for earlier work of every blocking stream, and they for its; stream 2 is a
//!   blocking stream of each thread.
//! * During a capture, calls that allocate, free, map, unmap, wait or query are potentially unsafe: refused with error 900 to
//!   threads whose mode does not allow them, and the capture is over. The driver lets some of the mapping calls pass. Stream-ordered
//!   allocation, launches of graphs and copies with pageable memory within a capture are refused, which the driver allows.
//! * NVRTC, which is exported too, takes any source that has a kernel; kernels are found by name among those of `kernels.rs`.
//! * A graph runs its streams beside each other, as captured. Events, streams and graphs may be destroyed while work needs them.
//! * Errors of one call never show up at another, except for a lost device.
#![allow(non_snake_case)]

mod bytes;
mod capture;
mod clock;
mod code;
mod control;
mod entry;
mod history;
mod kernels;
mod memory;
mod queues;
mod work;
mod world;
