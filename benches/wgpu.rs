//! Memory of a wgpu device: this crate against a buffer created and dropped for each block.
//!
//! `cargo bench --bench wgpu` prints a table. On software drivers creation costs next to nothing, so that the number of buffers is what
//! counts there; time is meant for real ones. `LARDER_WGPU` names an adapter; `LARDER_TRACES` another folder of traces.

mod common;
#[path = "common/direct.rs"]
mod direct;

use direct::{Entrant, Source, requests};
use larder::trace::Trace;
use larder::wgpu::api::{BufferDescriptor, BufferUsages, Device, ErrorFilter, PollType};
use larder::wgpu::{Backing, Choice, Wgpu, open};
use larder::{Allocator, Config};

/// A buffer for each block, in scopes: what a careful program without an allocator does.
struct Buffers(Device);

impl Source for Buffers {
    type Block = larder::wgpu::api::Buffer;

    fn get(&self, bytes: u64) -> Result<Self::Block, String> {
        if bytes > self.0.limits().max_buffer_size {
            return Err(format!("{bytes} bytes are too many for one buffer"));
        }
        let scope = self.0.push_error_scope(ErrorFilter::OutOfMemory);
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let buffer =
            self.0.create_buffer(&BufferDescriptor { label: None, size: bytes, usage, mapped_at_creation: false });
        match pollster::block_on(scope.pop()) {
            Some(error) => Err(error.to_string()),
            None => Ok(buffer),
        }
    }

    fn look_after(&self) {
        // Without it nothing that was dropped goes back.
        let _ = self.0.poll(PollType::Poll);
    }
}

impl Source for Allocator<Wgpu> {
    type Block = larder::Block<Wgpu>;

    fn get(&self, bytes: u64) -> Result<Self::Block, String> {
        self.alloc(bytes).map_err(|error| error.to_string())
    }
}

fn row(name: &str, trace: &Trace, gpu: &Allocator<Wgpu>, passes: usize) {
    let backing = Backing::new(gpu.device(), gpu.queue(), Default::default()).expect("the device that was just opened");
    let ours = larder::wgpu::over(&backing, Config::default()).expect("the default config");
    let buffers = Buffers(gpu.device().clone());
    let (mut larder, mut direct) = (Entrant::new(&ours), Entrant::new(&buffers));
    for _ in 0..=passes {
        larder.play(trace);
        direct.play(trace);
    }
    let requests = requests(trace);
    let stats = ours.stats();
    let density = stats.reserved.peak as f64 / stats.requested.peak.max(1) as f64;
    match (larder.figures(trace), direct.figures(trace)) {
        (Ok((cold, warm)), Ok((_, direct))) => println!(
            "| {name} | {requests} | {} | {cold:.0} | {warm:.0} | {direct:.0} | {:.1} | {density:.3} |",
            backing.created(),
            direct / warm
        ),
        (Err(reason), _) | (_, Err(reason)) => {
            println!("| {name} | not played: {} |", reason.lines().next().unwrap_or_default());
        }
    }
    drop(ours);
    let _ = gpu.device().poll(PollType::wait_indefinitely());
}

fn main() {
    let figures = common::wants_figures();
    if common::skips() {
        return;
    }
    let choice = std::env::var("LARDER_WGPU").map_or(Choice::Best, Choice::Named);
    let gpu = match open(&choice, Default::default(), Config::default()) {
        Ok(gpu) => gpu,
        Err(reason) => return println!("not run: {reason}"),
    };
    let info = gpu.device().adapter_info();
    println!("{} by {:?} ({})\n", info.name, info.backend, info.driver_info);
    println!(
        "| trace | blocks a pass | buffers created in all passes | larder, first pass, ns an event | larder | create_buffer and drop | times | reserved / requested |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|");
    let (traces, passes) = if figures { (common::traces(), 5) } else { (common::smoke_traces(), 1) };
    for (name, trace) in &traces {
        row(name, trace, &gpu, passes);
    }
}
