//! CUDA memory over the stand-in driver: every call fails once and nothing is lost, work is ordered whatever the device does first,
//! captures are not disturbed, and everything goes back.
//!
//! What is ordered is decided by the stand-in (`tests/standin`), which knows nothing of this crate.
#![cfg(all(target_os = "linux", feature = "cuda"))]
#![allow(unsafe_code)]

#[path = "cuda/captures.rs"]
mod captures;
#[path = "common/mod.rs"]
mod common;
#[path = "common/driver.rs"]
mod driver;
#[path = "cuda/failures.rs"]
mod failures;
#[path = "cuda/options.rs"]
mod options;
#[path = "cuda/pinned.rs"]
mod pinned;
#[path = "cuda/probes.rs"]
mod probes;
#[path = "cuda/programs.rs"]
mod programs;
#[path = "cuda/stories.rs"]
mod stories;
#[path = "cuda/threads.rs"]
mod threads;
#[path = "cuda/traces.rs"]
mod traces;
#[path = "cuda/world.rs"]
mod world;
