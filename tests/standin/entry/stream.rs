//! Streams, events, kernels.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::{entries, put};
use crate::capture::Event;
use crate::code::{self, Outcome};
use crate::kernels::KERNELS;
use crate::queues::Role;
use crate::work::Op;
use crate::world::World;

const NON_BLOCKING: c_uint = 1;

impl World {
    fn open_stream(&mut self, flags: c_uint) -> Outcome<usize> {
        let role = if flags & NON_BLOCKING != 0 { Role::NonBlocking } else { Role::Blocking };
        let device = self.device()?;
        let queue = self.add_queue(device, role);
        let handle = self.handle();
        self.streams.insert(handle, queue);
        Ok(handle)
    }

    /// Of modules that are gone.
    pub fn forget_functions(&mut self) {
        let modules = &self.modules;
        self.functions.retain(|_, (owner, _)| modules.contains_key(owner));
    }

    fn event(&self, event: usize) -> Outcome<Event> {
        self.events.get(&event).cloned().ok_or(code::INVALID_HANDLE)
    }
}

/// The arguments of a kernel, widened to 64 bits.
unsafe fn read_arguments(sizes: &[usize], arguments: *const *const c_void) -> Vec<u64> {
    let read = |(index, size): (usize, &usize)| {
        // SAFETY: the caller's promise to the driver: a pointer for every argument of the kernel, each to one of its size.
        unsafe {
            let place = *arguments.add(index);
            if *size == 8 {
                place.cast::<u64>().read_unaligned()
            } else {
                u64::from(place.cast::<u32>().read_unaligned())
            }
        }
    };
    sizes.iter().enumerate().map(read).collect()
}

entries! {
    Context fn cuStreamCreate(world, out: *mut usize, flags: c_uint) {
        let stream = world.open_stream(flags)?;
        put(out, stream)
    }

    Context fn cuStreamCreateWithPriority(world, out: *mut usize, flags: c_uint, priority: c_int) {
        let stream = world.open_stream(flags)?;
        put(out, stream)
    }

    Context fn cuStreamDestroy_v2(world, stream: usize) {
        let queue = world.streams.remove(&stream).ok_or(code::INVALID_HANDLE)?;
        let refused = world.refuse_on_captured(queue, code::STREAM_CAPTURE_INVALIDATED);
        if refused.is_ok() {
            world.queues.get_mut(&queue).expect("open").closed = true;
            world.drop_if_done(queue);
        }
        refused
    }

    Context fn cuStreamGetCtx(world, stream: usize, out: *mut usize) {
        let queue = world.stream(stream)?;
        put(out, world.context_of(world.queue(queue).device))
    }

    Unsafe fn cuStreamSynchronize(world, stream: usize) {
        let queue = world.stream(stream)?;
        world.refuse_on_captured(queue, code::STREAM_CAPTURE_UNSUPPORTED)?;
        world.keep_legacy_apart(queue)?;
        world.wait_for_queue(queue)
    }

    Unsafe fn cuStreamQuery(world, stream: usize) {
        let queue = world.stream(stream)?;
        world.refuse_on_captured(queue, code::STREAM_CAPTURE_UNSUPPORTED)?;
        if world.queue(queue).works.is_empty() {
            return world.wait_for_queue(queue);
        }
        world.polled(queue);
        Err(code::NOT_READY)
    }

    Context fn cuStreamWaitEvent(world, stream: usize, event: usize, flags: c_uint) {
        let (queue, event) = (world.stream(stream)?, world.event(event)?);
        world.wait_event(queue, &event)
    }

    Context fn cuLaunchHostFunc(world, stream: usize, function: unsafe extern "C" fn(*mut c_void), data: *mut c_void) {
        let queue = world.stream(stream)?;
        world.submit(queue, Op::Call { function, data: data.expose_provenance() })
    }

    Context fn cuEventCreate(world, out: *mut usize, flags: c_uint) {
        let event = world.handle();
        world.events.insert(event, Event::Never);
        put(out, event)
    }

    Context fn cuEventRecord(world, event: usize, stream: usize) {
        world.event(event)?;
        let queue = world.stream(stream)?;
        let recorded = world.record_event(queue)?;
        world.events.insert(event, recorded);
        Ok(())
    }

    Unsafe fn cuEventQuery(world, event: usize) {
        let event = world.event(event)?;
        let Some(marker) = world.uncaptured(&event)? else { return Ok(()) };
        if !marker.reached() {
            world.polled(marker.queue);
            return Err(code::NOT_READY);
        }
        world.learn(&marker);
        Ok(())
    }

    Unsafe fn cuEventSynchronize(world, event: usize) {
        let event = world.event(event)?;
        if let Some(marker) = world.uncaptured(&event)? {
            world.host_reach(&marker);
        }
        Ok(())
    }

    Context fn cuEventElapsedTime(world, out: *mut f32, start: usize, end: usize) { elapsed(world, out, start, end) }

    Context fn cuEventElapsedTime_v2(world, out: *mut f32, start: usize, end: usize) { elapsed(world, out, start, end) }

    Context fn cuEventDestroy_v2(world, event: usize) {
        world.events.remove(&event).map(drop).ok_or(code::INVALID_HANDLE)
    }

    Unsafe fn cuModuleLoadData(world, out: *mut usize, image: *const c_void) {
        if image.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let module = world.handle();
        let device = world.device()?;
        world.modules.insert(module, (device, 0));
        put(out, module)
    }

    Unsafe fn cuModuleUnload(world, module: usize) {
        world.modules.remove(&module).ok_or(code::INVALID_HANDLE)?;
        world.forget_functions();
        Ok(())
    }

    Context fn cuModuleGetFunction(world, out: *mut usize, module: usize, name: *const c_char) {
        // SAFETY: the caller passes a text that ends in zero.
        let name = unsafe { CStr::from_ptr(name) };
        let kernel = KERNELS.iter().find(|kernel| kernel.name.as_bytes() == name.to_bytes()).ok_or(code::NOT_FOUND)?;
        let function = world.handle();
        world.modules.get_mut(&module).ok_or(code::INVALID_HANDLE)?.1 += 1;
        world.functions.insert(function, (module, kernel));
        put(out, function)
    }

    /// The shape of the grid does not matter to the kernels here; an empty one is refused, as by the driver.
    Context fn cuLaunchKernel(
        world, function: usize, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared: c_uint, stream: usize, arguments: *const *const c_void, extra: *const c_void,
    ) {
        let queue = world.stream(stream)?;
        let (_, kernel) = *world.functions.get(&function).ok_or(code::INVALID_HANDLE)?;
        if [grid_x, grid_y, grid_z, block_x, block_y, block_z].contains(&0) {
            return Err(code::INVALID_VALUE);
        }
        // SAFETY: passed on from the caller.
        let arguments = unsafe { read_arguments(kernel.arguments, arguments) };
        world.submit(queue, Op::Kernel { kernel, arguments })
    }
}

/// There is no time here: one millisecond lies between any two events that are reached.
fn elapsed(world: &mut World, out: *mut f32, start: usize, end: usize) -> Outcome {
    for event in [start, end] {
        let event = world.event(event)?;
        let marker = world.uncaptured(&event)?.ok_or(code::INVALID_HANDLE)?;
        if !marker.reached() {
            return Err(code::NOT_READY);
        }
    }
    put(out, 1.0)
}
