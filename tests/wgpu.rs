//! Memory of wgpu devices, as its users have it: on wgpu's backend without a device, which copies but runs no shader, and on the
//! best adapter of this machine, software among them. Where there is none, what needs one says that it was not run; with
//! `LARDER_REQUIRE_WGPU=1` that is a failure.

mod common;

#[path = "wgpu/bindings.rs"]
mod bindings;
#[path = "wgpu/failures.rs"]
mod failures;
#[path = "wgpu/order.rs"]
mod order;
#[path = "wgpu/random.rs"]
mod random;
#[path = "wgpu/stage.rs"]
mod stage;
#[path = "wgpu/threads.rs"]
mod threads;
#[path = "wgpu/traces.rs"]
mod traces;
#[path = "wgpu/transfers.rs"]
mod transfers;
