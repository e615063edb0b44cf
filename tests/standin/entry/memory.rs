//! Plain, stream-ordered and pinned memory; copies and fills; questions about pointers.

use std::ffi::{c_int, c_uint, c_void};

use super::{entries, put};
use crate::code::{self, Outcome};
use crate::memory::{Device, Kind};
use crate::work::Op;
use crate::world::World;

/// Handles of the default pools begin here; the device is added.
const DEFAULT_POOL: usize = 0xD0_0000;

const ATTRIBUTE_THRESHOLD: c_int = 4;

impl World {
    fn is_pinned(&self, at: u64) -> bool {
        self.memory.mapping(at).is_some_and(|(_, mapping)| mapping.kind == Kind::Pinned)
    }

    /// A copy between the host and the device, in the order of a stream.
    fn upload(&mut self, to: u64, from: *const c_void, size: u64, stream: usize) -> Outcome {
        let queue = self.stream(stream)?;
        let source = from.expose_provenance() as u64;
        if size == 0 {
            return Ok(());
        }
        if self.is_pinned(source) {
            return self.submit(queue, Op::Copy { to, from: source, size });
        }
        // SAFETY: the caller's promise to the driver: `size` bytes are readable there.
        let bytes = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), size as usize) }.to_vec();
        self.submit(queue, Op::Upload { to, bytes })
    }

    fn download(&mut self, to: *mut c_void, from: u64, size: u64, stream: usize) -> Outcome {
        let queue = self.stream(stream)?;
        let target = to.expose_provenance() as u64;
        if size == 0 {
            return Ok(());
        }
        if self.is_pinned(target) {
            return self.submit(queue, Op::Copy { to: target, from, size });
        }
        self.submit(queue, Op::Download { to: target, from, size })?;
        self.wait_for_queue(queue)
    }

    fn fill(&mut self, to: u64, pattern: &[u8], count: usize, stream: usize) -> Outcome {
        let queue = self.stream(stream)?;
        if !to.is_multiple_of(pattern.len() as u64) {
            return Err(code::INVALID_VALUE);
        }
        let size = (pattern.len() * count) as u64;
        if size == 0 { Ok(()) } else { self.submit(queue, Op::Fill { to, pattern: pattern.to_vec(), size }) }
    }

    /// The host waits for what a queue holds.
    pub fn wait_for_queue(&mut self, queue: u32) -> Outcome {
        let marker = self.mark(queue);
        self.host_reach(&marker);
        Ok(())
    }

    /// A synchronous call: its work is on the legacy stream, and the host waits.
    fn at_once(&mut self, submit: impl FnOnce(&mut World) -> Outcome) -> Outcome {
        let legacy = self.stream(0)?;
        submit(self)?;
        self.wait_for_queue(legacy)
    }

    /// Stream-ordered memory. Short of memory, the pool waits for frees that are on their way.
    fn allocate_ordered(&mut self, size: u64, stream: usize) -> Outcome<u64> {
        let queue = self.stream(stream)?;
        self.refuse_on_captured(queue, code::STREAM_CAPTURE_UNSUPPORTED)?;
        if !self.machine.pools {
            return Err(code::NOT_SUPPORTED);
        }
        let device = self.device()?;
        let first = self.memory.allocate(device, size, Kind::Ordered);
        let at = match first {
            Err(code::OUT_OF_MEMORY) => {
                self.reach_frees();
                self.memory.allocate(device, size, Kind::Ordered)?
            }
            other => other?,
        };
        self.submit(queue, Op::Born { at, size })?;
        Ok(at)
    }

    fn reach_frees(&mut self) {
        while let Some(queue) = self
            .queues
            .iter()
            .find_map(|(id, queue)| queue.works.iter().any(|work| matches!(work.op, Op::Free { .. })).then_some(*id))
        {
            let marker = self.mark(queue);
            self.reach(&marker);
        }
    }

    fn pool(&self, pool: usize) -> Outcome<usize> {
        let default = pool.checked_sub(DEFAULT_POOL).is_some_and(|device| device < self.machine.devices as usize);
        if default || self.pools.contains_key(&pool) { Ok(pool) } else { Err(code::INVALID_VALUE) }
    }

    fn default_pool(&self, device: Device) -> Outcome<usize> {
        let device = self.checked_device(device)?;
        if self.machine.pools { Ok(DEFAULT_POOL + device as usize) } else { Err(code::NOT_SUPPORTED) }
    }
}

entries! {
    Context fn cuMemGetInfo_v2(world, free: *mut usize, total: *mut usize) {
        let device = world.device()?;
        put(free, world.memory.capacity.saturating_sub(world.memory.used(device)) as usize)?;
        put(total, world.memory.capacity as usize)
    }

    Unsafe fn cuMemAlloc_v2(world, out: *mut u64, size: usize) {
        let device = world.device()?;
        let at = world.memory.allocate(device, size as u64, Kind::Plain)?;
        put(out, at)
    }

    Unsafe fn cuMemFree_v2(world, at: u64) {
        let kind = world.memory.mapping(at).map_or(Kind::Plain, |(_, mapping)| mapping.kind);
        // The driver takes stream-ordered memory here too.
        if at == 0 { Ok(()) } else { world.free("cuMemFree", at, if kind == Kind::Ordered { kind } else { Kind::Plain }) }
    }

    Unsafe fn cuMemHostAlloc(world, out: *mut u64, size: usize, flags: c_uint) {
        let devices = world.machine.devices;
        let at = world.memory.allocate_pinned(size as u64, devices)?;
        put(out, at)
    }

    Unsafe fn cuMemFreeHost(world, at: u64) { world.free("cuMemFreeHost", at, Kind::Pinned) }

    Context fn cuMemAllocAsync(world, out: *mut u64, size: usize, stream: usize) {
        let at = world.allocate_ordered(size as u64, stream)?;
        put(out, at)
    }

    Context fn cuMemAllocFromPoolAsync(world, out: *mut u64, size: usize, pool: usize, stream: usize) {
        world.pool(pool)?;
        let at = world.allocate_ordered(size as u64, stream)?;
        put(out, at)
    }

    Context fn cuMemFreeAsync(world, at: u64, stream: usize) {
        let queue = world.stream(stream)?;
        world.refuse_on_captured(queue, code::STREAM_CAPTURE_UNSUPPORTED)?;
        let mapping = world.memory.mappings.get(&at).filter(|mapping| mapping.kind == Kind::Ordered);
        let size = mapping.ok_or(code::INVALID_VALUE)?.size;
        world.submit(queue, Op::Free { at, size })
    }

    Context fn cuMemcpyHtoDAsync_v2(world, to: u64, from: *const c_void, size: usize, stream: usize) {
        world.upload(to, from, size as u64, stream)
    }

    Context fn cuMemcpyDtoHAsync_v2(world, to: *mut c_void, from: u64, size: usize, stream: usize) {
        world.download(to, from, size as u64, stream)
    }

    Context fn cuMemcpyDtoDAsync_v2(world, to: u64, from: u64, size: usize, stream: usize) {
        let queue = world.stream(stream)?;
        if size == 0 { Ok(()) } else { world.submit(queue, Op::Copy { to, from, size: size as u64 }) }
    }

    /// Either side may be of the host: the driver tells by the address.
    Context fn cuMemcpyAsync(world, to: u64, from: u64, size: usize, stream: usize) {
        let (size, queue) = (size as u64, world.stream(stream)?);
        match (world.memory.knows(to), world.memory.knows(from)) {
            (true, true) => world.submit(queue, Op::Copy { to, from, size }),
            (true, false) => world.upload(to, std::ptr::with_exposed_provenance(from as usize), size, stream),
            (false, true) => world.download(std::ptr::with_exposed_provenance_mut(to as usize), from, size, stream),
            (false, false) => Err(code::INVALID_VALUE),
        }
    }

    Context fn cuMemcpyPeerAsync(world, to: u64, to_context: usize, from: u64, from_context: usize, size: usize, stream: usize) {
        let queue = world.stream(stream)?;
        for (at, context, write) in [(to, to_context, true), (from, from_context, false)] {
            let device = world.device_of(context)?;
            if let Err(why) = world.memory.resolve(at, size as u64, Some(device), write) {
                world.violation(format!("illegal address: peer copy at {at:#x}: {why}"));
                return Err(code::INVALID_VALUE);
            }
        }
        world.submit(queue, Op::PeerCopy { to, from, size: size as u64 })
    }

    Unsafe fn cuMemcpyHtoD_v2(world, to: u64, from: *const c_void, size: usize) {
        world.at_once(|world| world.upload(to, from, size as u64, 0))
    }

    Unsafe fn cuMemcpyDtoH_v2(world, to: *mut c_void, from: u64, size: usize) {
        world.at_once(|world| world.download(to, from, size as u64, 0))
    }

    Unsafe fn cuMemcpyDtoD_v2(world, to: u64, from: u64, size: usize) {
        let queue = world.stream(0)?;
        world.submit(queue, Op::Copy { to, from, size: size as u64 })
    }

    Context fn cuMemsetD8Async(world, to: u64, value: u8, count: usize, stream: usize) {
        world.fill(to, &[value], count, stream)
    }

    Context fn cuMemsetD16Async(world, to: u64, value: u16, count: usize, stream: usize) {
        world.fill(to, &value.to_le_bytes(), count, stream)
    }

    Context fn cuMemsetD32Async(world, to: u64, value: u32, count: usize, stream: usize) {
        world.fill(to, &value.to_le_bytes(), count, stream)
    }

    /// Asynchronous towards the host, whatever its name says: the driver does not promise to wait.
    Unsafe fn cuMemsetD8_v2(world, to: u64, value: u8, count: usize) { world.fill(to, &[value], count, 0) }

    Unsafe fn cuMemsetD32_v2(world, to: u64, value: u32, count: usize) {
        world.fill(to, &value.to_le_bytes(), count, 0)
    }

    Context fn cuPointerGetAttribute(world, out: *mut c_void, attribute: c_int, at: u64) {
        let (start, mapping) = world.memory.mapping(at).ok_or(code::INVALID_VALUE)?;
        let device = world.memory.extents[&mapping.extent].device;
        let base = world.memory.reserved.range(..=at).next_back().filter(|(base, size)| at < *base + *size);
        let (first, size) = base.map_or((start, mapping.size), |(base, size)| (*base, *size));
        match attribute {
            1 => put(out.cast(), world.context_of(device.unwrap_or(0))),
            2 => put(out.cast(), if device.is_some() { 2_u32 } else { 1 }),
            3 | 4 => put(out.cast(), at),
            9 => put(out.cast(), device.unwrap_or(0)),
            11 => put(out.cast(), first),
            12 => put(out.cast(), size as usize),
            13 => put(out.cast(), true),
            _ => Err(code::NOT_SUPPORTED),
        }
    }

    Context fn cuMemGetAddressRange_v2(world, base: *mut u64, size: *mut usize, at: u64) {
        let (start, mapping) = world.memory.mapping(at).ok_or(code::NOT_FOUND)?;
        if !base.is_null() {
            put(base, start)?;
        }
        if size.is_null() { Ok(()) } else { put(size, mapping.size as usize) }
    }

    Context fn cuMemHostGetDevicePointer_v2(world, out: *mut u64, at: u64, flags: c_uint) {
        if world.is_pinned(at) { put(out, at) } else { Err(code::INVALID_VALUE) }
    }

    Driver fn cuDeviceGetDefaultMemPool(world, out: *mut usize, device: Device) { put(out, world.default_pool(device)?) }

    Driver fn cuDeviceGetMemPool(world, out: *mut usize, device: Device) { put(out, world.default_pool(device)?) }

    Driver fn cuDeviceSetMemPool(world, device: Device, pool: usize) {
        world.default_pool(device)?;
        world.pool(pool).map(drop)
    }

    Driver fn cuMemPoolCreate(world, out: *mut usize, properties: *const c_void) {
        if !world.machine.pools {
            return Err(code::NOT_SUPPORTED);
        }
        let pool = world.handle();
        world.pools.insert(pool, 0);
        put(out, pool)
    }

    Driver fn cuMemPoolDestroy(world, pool: usize) { world.pools.remove(&pool).map(drop).ok_or(code::INVALID_VALUE) }

    Driver fn cuMemPoolTrimTo(world, pool: usize, keep: usize) { world.pool(pool).map(drop) }

    Driver fn cuMemPoolSetAttribute(world, pool: usize, attribute: c_int, value: *const u64) {
        let pool = world.pool(pool)?;
        if attribute == ATTRIBUTE_THRESHOLD {
            // SAFETY: this attribute's value is 64 bits.
            world.pools.insert(pool, unsafe { value.read() });
        }
        Ok(())
    }

    Driver fn cuMemPoolGetAttribute(world, pool: usize, attribute: c_int, out: *mut u64) {
        let pool = world.pool(pool)?;
        let threshold = world.pools.get(&pool).copied().unwrap_or(0);
        put(out, if attribute == ATTRIBUTE_THRESHOLD { threshold } else { 0 })
    }

    Driver fn cuMemGetAllocationGranularity(world, out: *mut usize, properties: *const c_void, option: c_uint) {
        if world.machine.virtual_memory { put(out, world.memory.page as usize) } else { Err(code::NOT_SUPPORTED) }
    }
}
