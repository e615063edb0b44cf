//! Takes real memory, uses it, gives it back, shows what the allocator holds, and meets a limit on purpose.
//!
//! `cargo run --release --example quickstart`

use std::error::Error;
use std::time::{Duration, Instant};

use larder::diag::SegmentMap;
use larder::units::{Bytes, KIB, MIB};
use larder::{Allocator, Config};

fn main() -> Result<(), Box<dyn Error>> {
    let host = Allocator::host(Config::default().limit(256 * MIB))?;
    println!(
        "device: {} (this machine's memory: the only real device that larder serves so far)",
        host.capabilities().name
    );
    println!("limit:  256 MiB, set here; without one it would be {}\n", Bytes(larder::backend::host::default_limit()));

    // Memory is a value: a block gives itself back when it is dropped.
    let weights = {
        let _tag = larder::tag("weights");
        let mut weights = host.alloc_zeroed(96 * MIB)?;
        weights.as_mut_slice::<f32>()?.iter_mut().enumerate().for_each(|(at, weight)| *weight = at as f32);
        weights
    };
    println!(
        "96 MiB of weights at {:#x}, the last element is {}",
        weights.address(),
        weights.as_slice::<f32>()?.last().unwrap()
    );

    // What was freed is had again at once, without asking the system.
    let (cold, warm) = (use_and_drop(&host)?, use_and_drop(&host)?);
    println!("32 MiB taken and written: {cold:.1?} the first time, {warm:.1?} the second\n");

    let _tag = larder::tag("kv-cache");
    let caches = (1..=40).map(|n| host.alloc(n * 64 * KIB)).collect::<Result<Vec<_>, _>>()?;
    let kept: Vec<_> = caches.into_iter().step_by(2).collect(); // every second one goes, and leaves a hole
    let stats = host.stats();
    println!(
        "live {} in {} blocks, idle {}, reserved {}; {} asked for in all, and {} of it came from the system\n",
        Bytes(stats.live.current),
        stats.blocks.current,
        Bytes(stats.idle()),
        Bytes(stats.reserved.current),
        Bytes(stats.requested.allocated),
        Bytes(stats.reserved.allocated),
    );
    println!("{}", SegmentMap::new(&host.snapshot()));

    println!("Now 200 MiB, which the limit has no room for:\n");
    match host.request(200 * MIB).tag("experiment").alloc() {
        Ok(block) => println!("had {block:?} after all"),
        Err(error) => println!("{error}"),
    }

    drop((weights, kept));
    println!("All blocks are dropped; purge returned {} to the system.", Bytes(host.purge()?));
    Ok(())
}

/// Takes 32 MiB, writes every page of it, and gives it back.
fn use_and_drop(host: &Allocator<larder::Host>) -> Result<Duration, Box<dyn Error>> {
    let began = Instant::now();
    let mut block = host.alloc(32 * MIB)?;
    block.as_mut_bytes().iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    Ok(began.elapsed())
}
