//! Captures and graphs.

use std::ffi::{c_char, c_uint, c_ulonglong, c_void};
use std::sync::Arc;

use super::{entries, put};
use crate::capture::Mode;
use crate::code::{self, Outcome};
use crate::queues::Role;
use crate::world::World;

impl World {
    fn instantiate(&mut self, out: *mut usize, graph: usize) -> Outcome {
        let graph = self.graphs.get(&graph).cloned().ok_or(code::INVALID_VALUE)?;
        let executable = self.handle();
        self.executables.insert(executable, graph);
        put(out, executable)
    }
}

entries! {
    Context fn cuStreamBeginCapture_v2(world, stream: usize, mode: c_uint) {
        let queue = world.stream(stream)?;
        world.begin_capture(queue, Mode::from_number(mode)?)
    }

    Context fn cuStreamEndCapture(world, stream: usize, out: *mut usize) {
        put(out, 0)?;
        let queue = world.stream(stream)?;
        let graph = world.end_capture(queue)?;
        let handle = world.handle();
        world.graphs.insert(handle, Arc::new(graph));
        put(out, handle)
    }

    Context fn cuStreamIsCapturing(world, stream: usize, out: *mut c_uint) {
        let queue = world.stream(stream)?;
        let blocking = world.queues.values().any(|queue| queue.role == Role::Blocking && queue.capture.is_some());
        if world.queue(queue).role == Role::Legacy && blocking {
            return Err(code::STREAM_CAPTURE_IMPLICIT);
        }
        put(out, world.capture_status(queue))
    }

    Driver fn cuThreadExchangeStreamCaptureMode(world, mode: *mut c_uint) {
        // SAFETY: the driver's contract: it points to a mode.
        let wanted = Mode::from_number(unsafe { mode.read() })?;
        let before = world.exchange_thread_mode(wanted);
        put(mode, before as c_uint)
    }

    Context fn cuGraphInstantiateWithFlags(world, out: *mut usize, graph: usize, flags: c_ulonglong) {
        world.instantiate(out, graph)
    }

    Context fn cuGraphInstantiate_v2(
        world, out: *mut usize, graph: usize, node: *mut usize, log: *mut c_char, room: usize,
    ) {
        world.instantiate(out, graph)
    }

    Context fn cuGraphInstantiateWithParams(world, out: *mut usize, graph: usize, parameters: *mut c_void) {
        world.instantiate(out, graph)
    }

    Context fn cuGraphUpload(world, executable: usize, stream: usize) {
        world.stream(stream)?;
        world.executables.get(&executable).map(drop).ok_or(code::INVALID_VALUE)
    }

    Context fn cuGraphLaunch(world, executable: usize, stream: usize) {
        let queue = world.stream(stream)?;
        let graph = world.executables.get(&executable).cloned().ok_or(code::INVALID_VALUE)?;
        world.launch_graph(queue, &graph)
    }

    Context fn cuGraphDestroy(world, graph: usize) { world.graphs.remove(&graph).map(drop).ok_or(code::INVALID_VALUE) }

    Context fn cuGraphExecDestroy(world, executable: usize) {
        world.executables.remove(&executable).map(drop).ok_or(code::INVALID_VALUE)
    }
}
