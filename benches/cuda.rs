//! Memory of a CUDA device: this crate, by the page and in segments, against the driver's own allocators.
//!
//! `cargo bench --bench cuda` prints a table in wall time; without a driver it says so. `LARDER_TRACES` names another folder of traces.
//! The third contestant is the driver's pool with its threshold at 0, as it comes, and raised to the most.
#![allow(unsafe_code)]

mod common;
#[path = "common/direct.rs"]
mod direct;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, result, sys};
use direct::{Entrant, Source};
use larder::cuda::{Cuda, CudaConfig, allocator_with, probe};
use larder::trace::Trace;
use larder::units::Bytes;
use larder::{Allocator, Config};

impl Source for Allocator<Cuda> {
    type Block = larder::Block<Cuda>;

    fn get(&self, bytes: u64) -> Result<Self::Block, String> {
        self.alloc(bytes).map_err(|error| error.to_string())
    }
}

/// `cuMemAlloc` and `cuMemFree`.
struct Plain(Arc<CudaContext>);

struct PlainBlock(sys::CUdeviceptr);

impl Drop for PlainBlock {
    fn drop(&mut self) {
        // SAFETY: the address came from `malloc_sync`, is freed once, and nothing was ever given work with it.
        let _ = unsafe { result::free_sync(self.0) };
    }
}

impl Source for Plain {
    type Block = PlainBlock;

    fn get(&self, bytes: u64) -> Result<PlainBlock, String> {
        // SAFETY: the context is current on this thread, made so by `main`.
        let block = unsafe { result::malloc_sync(bytes as usize) };
        block.map(PlainBlock).map_err(|error| format!("{:?} (device {})", error.0, self.0.ordinal()))
    }
}

/// `cuMemAllocAsync` and `cuMemFreeAsync` of the device's default pool.
struct Pool(Arc<CudaStream>);

struct PoolBlock {
    address: sys::CUdeviceptr,
    stream: Arc<CudaStream>,
}

impl Drop for PoolBlock {
    fn drop(&mut self) {
        // SAFETY: the address came from `malloc_async` on this stream and is freed once.
        let _ = unsafe { result::free_async(self.address, self.stream.cu_stream()) };
    }
}

impl Source for Pool {
    type Block = PoolBlock;

    fn get(&self, bytes: u64) -> Result<PoolBlock, String> {
        // SAFETY: the stream lives as long as the block.
        let address = unsafe { result::malloc_async(self.0.cu_stream(), bytes as usize) };
        let address = address.map_err(|error| format!("{:?}", error.0))?;
        Ok(PoolBlock { address, stream: self.0.clone() })
    }

    fn look_after(&self) {
        // A threshold of 0 acts when a stream is waited for, as programs do at each step.
        let _ = self.0.synchronize();
    }
}

/// Says how much the default pool keeps.
fn set_threshold(context: &CudaContext, bytes: u64) -> Result<(), result::DriverError> {
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let mut bytes = bytes;
    // SAFETY: the attribute is a number of 64 bits, and the pool is that of a device that there is.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        result::mem_pool::trim_to(pool, 0)?;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut bytes).cast())
    }
}

/// One source on one trace: the first pass, and the median of those after it.
fn time<S: Source>(source: &S, trace: &Trace, passes: usize) -> Result<(f64, f64), String> {
    let mut entrant = Entrant::new(source);
    (0..=passes).for_each(|_| entrant.play(trace));
    entrant.figures(trace).map_err(|reason| reason.lines().next().unwrap_or_default().to_owned())
}

fn show(figures: &Result<(f64, f64), String>) -> String {
    match figures {
        Ok((cold, warm)) => format!("{cold:.0} / {warm:.0}"),
        Err(reason) => reason.clone(),
    }
}

fn row(name: &str, trace: &Trace, context: &Arc<CudaContext>, passes: usize) -> Result<(), String> {
    let words = |error: result::DriverError| format!("{:?}", error.0);
    let ours = |plain| {
        let gpu = allocator_with(context, CudaConfig { plain, ..CudaConfig::default() }, Config::default());
        let gpu = gpu.map_err(|error| error.to_string())?;
        let figures = time(&gpu, trace, passes);
        let stats = gpu.stats();
        Ok::<_, String>((figures, stats.reserved.peak as f64 / stats.requested.peak.max(1) as f64))
    };
    let (pages, density) = ours(false)?;
    let (segments, plain_density) = ours(true)?;
    let plain = time(&Plain(context.clone()), trace, 1);
    let stream = context.new_stream().map_err(words)?;
    let pool = Pool(stream);
    set_threshold(context, 0).map_err(words)?;
    let strict = time(&pool, trace, passes);
    set_threshold(context, u64::MAX).map_err(words)?;
    let raised = time(&pool, trace, passes);
    set_threshold(context, 0).map_err(words)?;
    let times = match (&pages, &raised) {
        (Ok(pages), Ok(raised)) => format!("{:.1}", raised.1 / pages.1),
        _ => "-".to_owned(),
    };
    println!(
        "| {name} | {} | {density:.3} | {} | {plain_density:.3} | {} | {} | {} | {times} |",
        show(&pages),
        show(&segments),
        show(&plain),
        show(&strict),
        show(&raised)
    );
    Ok(())
}

fn main() -> Result<(), String> {
    let figures = common::wants_figures();
    if common::skips() {
        return Ok(());
    }
    let found = match probe() {
        Ok(found) => found,
        Err(reason) => {
            println!("not run: {reason}");
            return Ok(());
        }
    };
    let context = found.context(0).map_err(|error| error.to_string())?;
    context.bind_to_thread().map_err(|error| format!("{:?}", error.0))?;
    let device = found.devices[0].as_ref().map_err(|error| error.to_string())?;
    println!("{}, {}, driver for CUDA {}\n", device.name, Bytes(device.memory), found.version);
    println!(
        "Nanoseconds an event, first pass / median of the passes after it; times: raised pool against larder by the page.\n"
    );
    println!(
        "| trace | larder, pages | reserved / requested | larder, segments | reserved / requested | cuMemAlloc | cuMemAllocAsync, threshold 0 | cuMemAllocAsync, raised | times |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|");
    let (traces, passes) = if figures { (common::traces(), 5) } else { (common::smoke_traces(), 1) };
    for (name, trace) in &traces {
        row(name, trace, &context, passes)?;
    }
    Ok(())
}
