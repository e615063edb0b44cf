//! The stand-in CUDA driver, tested through cudarc: that it does what a driver does, finds what it is there to find, and accuses
//! nobody else.
#![cfg(all(target_os = "linux", feature = "cuda"))]
#![allow(unsafe_code)]

#[path = "standin_driver/capture.rs"]
mod capture;
#[path = "common/driver.rs"]
mod driver;
#[path = "standin_driver/faults.rs"]
mod faults;
#[path = "standin_driver/gpu.rs"]
mod gpu;
#[path = "standin_driver/memory.rs"]
mod memory;
#[path = "standin_driver/order.rs"]
mod order;
#[path = "standin_driver/virtual_memory.rs"]
mod virtual_memory;
