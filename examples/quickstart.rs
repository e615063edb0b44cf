//! Takes real memory of the best device here, uses it, gives it back, shows what the allocator holds, and meets a limit on purpose.
//!
//! `cargo run --release --example quickstart`

use std::error::Error;
use std::time::{Duration, Instant};

use larder::diag::SegmentMap;
use larder::units::{Bytes, KIB, MIB};
use larder::{Config, Device};

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::best(Config::default().limit(256 * MIB))?;
    println!("device: {} ({})", device.kind(), device.name());
    for (kind, reason) in device.passed_over() {
        println!("        not {kind}: {reason}");
    }
    println!("limit:  256 MiB, set here; `larder probe` says what there is\n");
    let memory = device.allocator();

    // Memory is a value: a block gives itself back when it is dropped.
    let numbers: Vec<u8> = (0..24 * MIB as u32).flat_map(u32::to_le_bytes).collect();
    let weights = {
        let _tag = larder::tag("weights");
        let mut weights = device.alloc(96 * MIB)?;
        weights.upload(&numbers)?;
        weights
    };
    let last = weights.read()?.last_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    println!("96 MiB of weights at {:#x}, the last element read back is {last}", weights.address());

    // What was freed is had again at once, without asking the driver or the system.
    let (cold, warm) = (take_and_drop(&device)?, take_and_drop(&device)?);
    println!("32 MiB taken and written: {cold:.1?} the first time, {warm:.1?} the second\n");

    let _tag = larder::tag("kv-cache");
    let caches = (1..=40).map(|n| device.alloc(n * 64 * KIB)).collect::<Result<Vec<_>, _>>()?;
    let kept: Vec<_> = caches.into_iter().step_by(2).collect(); // every second one goes, and leaves a hole
    let stats = memory.stats();
    println!(
        "live {} in {} blocks, idle {}, reserved {} (pressure {}); {} asked for in all, and {} of it came from the device\n",
        Bytes(stats.live.current),
        stats.blocks.current,
        Bytes(stats.idle()),
        Bytes(stats.reserved.current),
        memory.pressure().level(),
        Bytes(stats.requested.allocated),
        Bytes(stats.reserved.allocated),
    );
    println!("{}", SegmentMap::new(&memory.snapshot()));

    println!("Now 200 MiB, which the limit has no room for:\n");
    match memory.request(200 * MIB).tag("experiment").alloc() {
        Ok(block) => println!("had {block:?} after all"),
        Err(error) => println!("{error}"),
    }

    drop((weights, kept));
    println!("All blocks are dropped; purge returned {}.", Bytes(memory.purge()?));
    Ok(())
}

/// Takes 32 MiB, writes them, and gives them back.
fn take_and_drop(device: &Device) -> Result<Duration, Box<dyn Error>> {
    let ones = vec![1; 32 * MIB as usize];
    let began = Instant::now();
    device.alloc(32 * MIB)?.upload(&ones)?;
    Ok(began.elapsed())
}
