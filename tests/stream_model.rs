//! The law of stream order: every reuse of physical bytes comes after every recorded use of them, whatever the device
//! completes and when, and no address is taken away under work that is not finished.
//!
//! The simulated device knows every piece of work by the bytes it touches and judges; the programs here only see to it that
//! there is much to judge: little memory, several streams, completion early, late, never, or in any order.
//! `LARDER_SEEDS` sets the number of random programs, `LARDER_FULL=1` makes it large and the traces whole.

#[path = "stream_model/density.rs"]
mod density;
#[path = "stream_model/programs.rs"]
mod programs;
#[path = "stream_model/stories.rs"]
mod stories;
#[path = "stream_model/traces.rs"]
mod traces;
#[path = "stream_model/world.rs"]
mod world;

/// Whether much more is to be tried than in a default run.
fn full() -> bool {
    std::env::var("LARDER_FULL").is_ok_and(|value| value == "1")
}

/// How many random programs to try.
fn seeds() -> u64 {
    let wished = std::env::var("LARDER_SEEDS").ok().and_then(|value| value.parse().ok());
    wished.unwrap_or(if full() { 20_000 } else { 240 })
}
