//! Replays what a real model asked of its device, a ResNet-50 server with batches of varying size, and shows what density costs:
//! the less memory may be held above the peak of live, the more pages are moved.
//!
//! `cargo run --release --example replay_trace [TRACE]`

use std::error::Error;

use larder::Config;
use larder::trace::Trace;
use larder::trace::replay::{ReplayConfig, Stage, replay};
use larder::units::Bytes;

fn main() -> Result<(), Box<dyn Error>> {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/06_resnet50_server.gz");
    let trace = Trace::load(std::env::args().nth(1).unwrap_or_else(|| committed.into()))?;
    println!("{} events; at most {} asked for at once\n", trace.events(), Bytes(trace.peak_requested()));
    println!("{:<28} {:>12} {:>7} {:>8} {:>12}", "", "reserved", "ratio", "moved", "host waits");
    for slack in [1.2, 1.1, 1.05, 1.01] {
        let config = ReplayConfig { config: Config::default().slack(slack), ..ReplayConfig::default() };
        row(&trace, &format!("pages, slack {slack}"), &config)?;
    }
    row(&trace, "segments (cannot be moved)", &ReplayConfig { stage: Stage::SimSegments, ..ReplayConfig::default() })
}

fn row(trace: &Trace, name: &str, config: &ReplayConfig) -> Result<(), Box<dyn Error>> {
    let stats = replay(trace, config, |_| true)?.stats;
    println!(
        "{name:<28} {:>12} {:>7.4} {:>6.2} % {:>12}",
        Bytes(stats.reserved.peak).to_string(),
        stats.reserved.peak as f64 / trace.peak_requested() as f64,
        stats.moved as f64 * 100.0 / trace.total_allocated() as f64,
        stats.host_waits,
    );
    Ok(())
}
