//! What the memory calls of a CUDA driver cost on this machine, idle and with work in flight, and whether one page at two addresses is
//! what this crate takes it to be. Prints a table in Markdown; where there is no driver, says why, and ends well.
//!
//! `cargo run --release --example cuda_probe`
#![allow(unsafe_code)]

use std::error::Error;
use std::mem::zeroed;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder::cuda::cudarc::driver::{CudaContext, CudaEvent, CudaSlice, CudaStream, sys};
use larder::units::{Bytes, MIB};
use larder::{Config, cuda};

type Answer<T = ()> = Result<T, Box<dyn Error>>;

/// Handles of so many bytes, and how many of them are measured.
const HANDLES: [(u64, usize); 3] = [(2 * MIB, 64), (16 * MIB, 16), (64 * MIB, 4)];
/// What keeps the device busy: copies of at most so many bytes, and so many of them.
const BUSY: (u64, usize) = (1024 * MIB, 200);

fn main() -> Answer {
    let probe = match cuda::probe() {
        Ok(probe) => probe,
        Err(reason) => {
            println!("nothing measured: {reason}");
            return Ok(());
        }
    };
    let device = probe.devices[0].as_ref().map_err(Clone::clone)?;
    println!("{}, {}, driver for CUDA {}", device.name, Bytes(device.memory), probe.version);
    let bench = Bench::new(probe.context(0)?)?;
    if device.virtual_memory {
        pages(&bench)?;
        aliases(&bench)?;
    } else {
        println!("no virtual memory: pages not measured");
    }
    events(&bench)?;
    allocators(&bench, device.memory_pools)
}

fn ok(code: sys::CUresult) -> Answer {
    if code == sys::CUresult::CUDA_SUCCESS { Ok(()) } else { Err(format!("{code:?}").into()) }
}

/// Microseconds for each of `count`.
fn micros(time: Duration, count: usize) -> f64 {
    time.as_secs_f64() * 1e6 / count as f64
}

struct Bench {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    other: Arc<CudaStream>,
    busy: (CudaSlice<u8>, CudaSlice<u8>),
}

impl Bench {
    fn new(context: Arc<CudaContext>) -> Answer<Bench> {
        let (stream, other) = (context.new_stream()?, context.new_stream()?);
        let bytes = BUSY.0.min(context.total_mem()? as u64 / 64) as usize;
        let busy = (stream.alloc_zeros(bytes)?, stream.alloc_zeros(bytes)?);
        stream.synchronize()?;
        Ok(Bench { context, stream, other, busy })
    }

    /// Gives the device work, and answers an event behind it.
    fn work(&mut self) -> Answer<CudaEvent> {
        for _ in 0..BUSY.1 {
            self.stream.memcpy_dtod(&self.busy.0, &mut self.busy.1)?;
        }
        Ok(self.stream.record_event(None)?)
    }
}

/// Addresses with pages behind them.
struct Mapped {
    address: u64,
    page: u64,
    handles: Vec<u64>,
}

/// Written through memory, since the structure's fields differ between versions of the bindings: a kind, and a device.
fn location(device: i32) -> sys::CUmemLocation {
    // SAFETY: all zeros are a value of it; it is 8 bytes, aligned to 4.
    unsafe {
        let mut location: sys::CUmemLocation = zeroed();
        let words = (&raw mut location).cast::<i32>();
        words.write(1);
        words.add(1).write(device);
        location
    }
}

impl Bench {
    fn create(&self, page: u64) -> Answer<u64> {
        let mut handle = 0;
        // SAFETY: all zeros are a value of it; the rest is written by name.
        unsafe {
            let mut kind: sys::CUmemAllocationProp = zeroed();
            kind.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
            kind.location = location(self.context.cu_device());
            ok(sys::cuMemCreate(&mut handle, page as usize, &kind, 0))?;
        }
        Ok(handle)
    }

    fn open(&self, address: u64, bytes: u64) -> Answer {
        // SAFETY: the range is mapped.
        unsafe {
            let mut access: sys::CUmemAccessDesc = zeroed();
            access.location = location(self.context.cu_device());
            access.flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
            ok(sys::cuMemSetAccess(address, bytes as usize, &access, 1))
        }
    }
}

fn reserve(bytes: u64) -> Answer<u64> {
    let mut address = 0;
    // SAFETY: plain values.
    unsafe { ok(sys::cuMemAddressReserve(&mut address, bytes as usize, 0, 0, 0))? };
    Ok(address)
}

impl Mapped {
    fn at(&self, index: usize) -> u64 {
        self.address + index as u64 * self.page
    }

    fn bytes(&self) -> u64 {
        self.handles.len() as u64 * self.page
    }

    /// Each page by one call, from `first` on. Answers the time.
    fn each(&self, call: impl Fn(u64, u64) -> Answer) -> Answer<Duration> {
        let start = Instant::now();
        for (index, handle) in self.handles.iter().enumerate() {
            call(self.at(index), *handle)?;
        }
        Ok(start.elapsed())
    }

    fn map(&self) -> Answer<Duration> {
        // SAFETY: the addresses are reserved and empty, the handles live.
        self.each(|address, handle| unsafe { ok(sys::cuMemMap(address, self.page as usize, 0, handle, 0)) })
    }

    fn unmap(&self) -> Answer<Duration> {
        // SAFETY: each was mapped by one call, and nothing touches it.
        self.each(|address, _| unsafe { ok(sys::cuMemUnmap(address, self.page as usize)) })
    }

    /// All pages by one call, which not every driver may take.
    fn unmap_run(&self) -> Option<Duration> {
        let start = Instant::now();
        // SAFETY: as above.
        unsafe { ok(sys::cuMemUnmap(self.address, self.bytes() as usize)) }.ok()?;
        Some(start.elapsed())
    }
}

fn pages(bench: &Bench) -> Answer {
    println!(
        "\nMicroseconds for each handle; *busy* with a copy in flight, and whether it was still in flight afterwards.\n"
    );
    println!(
        "| handle | create | map | open each | open as a run | second address | unmap each | unmap as a run | release |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|");
    let mut busy = Bench::new(bench.context.clone())?;
    for (page, count) in HANDLES {
        measure(bench, page, count, "idle", || Ok(None))?;
        measure(bench, page, count, "busy", || busy.work().map(Some))?;
    }
    Ok(())
}

fn measure(
    bench: &Bench,
    page: u64,
    count: usize,
    when: &str,
    work: impl FnOnce() -> Answer<Option<CudaEvent>>,
) -> Answer {
    let (address, second) = (reserve(page * count as u64)?, reserve(page * count as u64)?);
    let event = work()?;
    let in_flight = || match &event {
        Some(event) => event.try_is_complete().map(|done| if done { " (over)" } else { "" }),
        None => Ok(""),
    };
    let start = Instant::now();
    let handles = (0..count).map(|_| bench.create(page)).collect::<Answer<Vec<u64>>>()?;
    let create = (start.elapsed(), in_flight()?);
    let mapped = Mapped { address, page, handles };
    let map = (mapped.map()?, in_flight()?);
    let open_each = (mapped.each(|address, _| bench.open(address, page))?, in_flight()?);
    let alias = Mapped { address: second, page, handles: mapped.handles.clone() };
    let start = Instant::now();
    alias.map()?;
    bench.open(second, alias.bytes())?;
    let second_address = (start.elapsed(), in_flight()?);
    let unmap_each = (alias.unmap()?, in_flight()?);
    alias.map()?;
    let start = Instant::now();
    bench.open(second, alias.bytes())?;
    let open_run = (start.elapsed(), in_flight()?);
    let unmap_run = alias.unmap_run();
    if unmap_run.is_none() {
        alias.unmap()?;
    }
    let after = in_flight()?;
    mapped.unmap()?;
    // SAFETY: mapped nowhere any more.
    let release = mapped.each(|_, handle| unsafe { ok(sys::cuMemRelease(handle)) })?;
    let cell = |(time, state): (Duration, &str)| format!("{:.1}{state}", micros(time, count));
    println!(
        "| {} {when} | {} | {} | {} | {} | {} | {} | {} | {} |",
        Bytes(page),
        cell(create),
        cell(map),
        cell(open_each),
        cell(open_run),
        cell(second_address),
        cell(unmap_each),
        unmap_run.map_or("refused".into(), |time| cell((time, after))),
        cell((release, in_flight()?))
    );
    bench.context.synchronize()?;
    for reserved in [address, second] {
        // SAFETY: nothing is mapped there.
        unsafe { ok(sys::cuMemAddressFree(reserved, (page * count as u64) as usize))? };
    }
    Ok(())
}

/// Is what is written through one address of a page read through the other: later on the same stream, and on another behind an event?
fn aliases(bench: &Bench) -> Answer {
    let page = 2 * MIB;
    let handle = bench.create(page)?;
    let both: Vec<Mapped> =
        (0..2).map(|_| Ok(Mapped { address: reserve(page)?, page, handles: vec![handle] })).collect::<Answer<_>>()?;
    for mapped in &both {
        mapped.map()?;
        bench.open(mapped.address, page)?;
    }
    let (mut on_stream, mut behind_event) = (0, 0);
    const ROUNDS: u32 = 1000;
    for round in 0..ROUNDS {
        let (write, read) = (both[round as usize % 2].address, both[1 - round as usize % 2].address);
        let read_back = |stream: &Arc<CudaStream>| -> Answer<bool> {
            let mut bytes = vec![0_u8; 4096];
            // SAFETY: the page is mapped there, and open; the copy is waited for.
            unsafe {
                let (target, offset) = (bytes.as_mut_ptr(), read + page - 4096);
                ok(sys::cuMemcpyDtoHAsync_v2(target.cast(), offset, bytes.len(), stream.cu_stream()))?;
            }
            stream.synchronize()?;
            Ok(bytes.iter().all(|byte| *byte == round as u8))
        };
        // SAFETY: as above.
        unsafe { ok(sys::cuMemsetD8Async(write, round as u8, page as usize, bench.stream.cu_stream()))? };
        if round % 4 < 2 {
            on_stream += u32::from(read_back(&bench.stream)?);
        } else {
            bench.other.wait(&bench.stream.record_event(None)?)?;
            behind_event += u32::from(read_back(&bench.other)?);
        }
    }
    println!("\nOne page at two addresses: {on_stream} of {} reads right in the order of a stream,", ROUNDS / 2);
    println!("{behind_event} of {} right on another stream behind an event.", ROUNDS / 2);
    for mapped in &both {
        mapped.unmap()?;
        // SAFETY: nothing is mapped there any more.
        unsafe { ok(sys::cuMemAddressFree(mapped.address, page as usize))? };
    }
    // SAFETY: mapped nowhere any more.
    unsafe { ok(sys::cuMemRelease(handle)) }
}

fn events(bench: &Bench) -> Answer {
    const COUNT: usize = 1000;
    let event = bench.context.new_event(None)?;
    let start = Instant::now();
    (0..COUNT).try_for_each(|_| event.record(&bench.stream))?;
    let record = micros(start.elapsed(), COUNT);
    event.synchronize()?;
    let start = Instant::now();
    for _ in 0..COUNT {
        event.try_is_complete()?;
    }
    println!("\nAn event: {record:.2} us to record, {:.2} us to ask about.", micros(start.elapsed(), COUNT));
    Ok(())
}

/// Microseconds for an allocation and its free.
fn pairs(count: usize, mut pair: impl FnMut() -> Answer) -> Answer<f64> {
    pair()?;
    let start = Instant::now();
    (0..count).try_for_each(|_| pair())?;
    Ok(micros(start.elapsed(), count))
}

fn allocators(bench: &Bench, pools: bool) -> Answer {
    println!("\nMicroseconds for an allocation and its free, and a wait for the stream after each.\n");
    println!("| bytes | cuMemAlloc | cuMemAllocAsync, threshold 0 | cuMemAllocAsync, no threshold | larder |");
    println!("|---|--:|--:|--:|--:|");
    let gpu = cuda::allocator(&bench.context, Config::default())?;
    let known = gpu.stream_of(&bench.stream)?;
    for bytes in [MIB, 16 * MIB, 256 * MIB] {
        let count = 50;
        let plain = pairs(count, || {
            let mut address = 0;
            // SAFETY: freed at once.
            unsafe {
                ok(sys::cuMemAlloc_v2(&mut address, bytes as usize))?;
                ok(sys::cuMemFree_v2(address))?;
            }
            Ok(bench.stream.synchronize()?)
        })?;
        let pooled = |threshold: u64| -> Answer<String> {
            if !pools {
                return Ok("no pools".into());
            }
            set_threshold(bench, threshold)?;
            let stream = bench.stream.cu_stream();
            let time = pairs(count, || {
                let mut address = 0;
                // SAFETY: freed at once, in the order of the stream.
                unsafe {
                    ok(sys::cuMemAllocAsync(&mut address, bytes as usize, stream))?;
                    ok(sys::cuMemFreeAsync(address, stream))?;
                }
                Ok(bench.stream.synchronize()?)
            })?;
            Ok(format!("{time:.2}"))
        };
        let (zero, most) = (pooled(0)?, pooled(u64::MAX)?);
        let ours = pairs(count, || {
            drop(gpu.alloc_on(&known, bytes)?);
            Ok(bench.stream.synchronize()?)
        })?;
        println!("| {} | {plain:.2} | {zero} | {most} | {ours:.2} |", Bytes(bytes));
    }
    Ok(())
}

fn set_threshold(bench: &Bench, mut threshold: u64) -> Answer {
    // SAFETY: the attribute is a number of 8 bytes.
    unsafe {
        let mut pool = std::ptr::null_mut();
        ok(sys::cuDeviceGetDefaultMemPool(&mut pool, bench.context.cu_device()))?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        ok(sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()))
    }
}
