//! Two streams of a device share one heap: what may be reused at once, what waits on the device, and what never happens
//! (the host waiting). The device is simulated, so this runs anywhere.
//!
//! `cargo run --example two_streams`

use std::error::Error;

use larder::backend::sim::{Lag, SimConfig};
use larder::units::{Bytes, MIB};
use larder::{Allocator, Config};

fn main() -> Result<(), Box<dyn Error>> {
    // 64 MiB of device, whose work is not complete unless somebody waits for it.
    let device = SimConfig { capacity: 64 * MIB, lag: Lag::Never, ..SimConfig::default() };
    let (gpu, sim) = Allocator::simulated(device, Config::default())?;
    let (compute, copy) = (gpu.stream()?, gpu.stream()?);

    // Freed and taken by the same stream: the device works in order, so the bytes are free at once.
    let first = gpu.alloc_on(&compute, 40 * MIB)?;
    let address = first.address();
    drop(first);
    let again = gpu.alloc_on(&compute, 40 * MIB)?;
    println!("same stream:   40 MiB freed and had again at the same address: {}", again.address() == address);

    // A second stream reads the block too; dropping it remembers both.
    again.used_on(&copy);
    drop(again);
    println!("used on both:  pending {}", Bytes(gpu.stats().pending.current));

    // 40 of 64 MiB are behind unfinished work, so 40 more would not fit beside them: the copy stream waits, on the device.
    let other = gpu.alloc_on(&copy, 40 * MIB)?;
    println!("other stream:  40 MiB at {:#x}, behind {} wait on the device", other.address(), gpu.stats().stream_waits);
    println!("host waits:    {}", gpu.stats().host_waits);
    println!("reserved:      {} of {}", Bytes(gpu.stats().reserved.current), Bytes(64 * MIB));

    drop(other);
    println!("rules broken:  {}", sim.violations().len());
    Ok(())
}
