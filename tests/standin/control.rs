//! What tests say to the stand-in, beside the driver's own calls. None of it counts as a driver call, and none can be made to fail.

use std::ffi::{CStr, c_char, c_int};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::clock::HOST;
use crate::code::Code;
use crate::entry::compiler;
use crate::history::Stamp;
use crate::memory::Kind;
use crate::queues::Step;
use crate::world::{Fault, Machine, World, world};

/// What is alive, as `tests/common/driver.rs` reads it.
#[repr(C)]
#[derive(Default)]
pub struct Totals {
    handles: u64,
    mappings: u64,
    mapped_bytes: u64,
    reservations: u64,
    reserved_bytes: u64,
    allocations: u64,
    pinned: u64,
    used_bytes: u64,
    streams: u64,
    events: u64,
    graphs: u64,
    queued: u64,
    contexts: u64,
}

impl World {
    fn totals(&self) -> Totals {
        let of = |wanted: fn(Kind) -> bool| self.memory.mappings.values().filter(move |mapping| wanted(mapping.kind));
        Totals {
            handles: self.memory.handles.len() as u64,
            mappings: of(|kind| kind == Kind::Mapped).count() as u64,
            mapped_bytes: of(|kind| kind == Kind::Mapped).map(|mapping| mapping.size).sum(),
            reservations: self.memory.reserved.len() as u64,
            reserved_bytes: self.memory.reserved.values().sum(),
            allocations: of(|kind| matches!(kind, Kind::Plain | Kind::Ordered)).count() as u64,
            pinned: of(|kind| kind == Kind::Pinned).count() as u64,
            used_bytes: (0..self.machine.devices).map(|device| self.memory.used(device)).sum(),
            streams: self.streams.len() as u64,
            events: self.events.len() as u64,
            graphs: (self.graphs.len() + self.executables.len()) as u64,
            queued: self.queues.values().map(|queue| queue.works.len() as u64).sum(),
            contexts: self.retained.values().map(|held| u64::from(*held)).sum(),
        }
    }

    fn leaks(&self) -> Vec<String> {
        let memory = &self.memory;
        let handles = memory.handles.keys().map(|handle| format!("physical handle {handle:#x}"));
        let mappings = memory.mappings.iter().map(|(at, mapping)| format!("{:?} memory at {at:#x}", mapping.kind));
        let reserved = memory.reserved.iter().map(|(at, size)| format!("{size} bytes of addresses at {at:#x}"));
        let streams = self.streams.keys().map(|stream| format!("stream {stream:#x}"));
        let events = self.events.keys().map(|event| format!("event {event:#x}"));
        let modules = self.modules.keys().map(|module| format!("module {module:#x}"));
        let graphs = self.graphs.keys().map(|graph| format!("graph {graph:#x}"));
        let executables = self.executables.keys().map(|graph| format!("executable graph {graph:#x}"));
        let held = self.retained.iter().filter(|(_, held)| **held > 0);
        let contexts = held.map(|(device, held)| format!("{held} references to the context of device {device}"));
        handles
            .chain(mappings)
            .chain(reserved)
            .chain(streams)
            .chain(events)
            .chain(modules)
            .chain(graphs)
            .chain(executables)
            .chain(contexts)
            .collect()
    }
}

/// Copies a text into the caller's room as far as it goes; answers how long it is.
fn give(text: &str, room: *mut u8, size: usize) -> usize {
    // SAFETY: the caller gives `size` bytes of room.
    unsafe { room.copy_from_nonoverlapping(text.as_ptr(), text.len().min(size)) };
    text.len()
}

macro_rules! controls {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $answer:ty)? $body:block)*) => {$(
        $(#[$meta])*
        // SAFETY: nothing else has this name.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) $(-> $answer)? $body
    )*};
}

controls! {
    /// What the environment says of the machine.
    fn standin_machine(machine: *mut Machine) {
        // SAFETY: the caller passes room for one.
        unsafe { machine.write(Machine::from_environment()) }
    }

    /// A new world: nothing is left of the old one.
    fn standin_reset(machine: *const Machine) {
        // SAFETY: the caller passes one.
        *world() = World::new(unsafe { machine.read() });
        compiler::COMPILER.store(0, Relaxed);
    }

    /// Bytes that each device has.
    fn standin_capacity(bytes: u64) { world().memory.capacity = bytes }

    /// Bytes of addresses that may be reserved at a time.
    fn standin_address_limit(bytes: u64) { world().memory.address_limit = bytes }

    /// The `k`th call from now of an entry point (`*`: of any) fails with this code, or all from then on.
    fn standin_fail(name: *const c_char, k: u64, code: Code, for_ever: c_int) {
        // SAFETY: the caller passes a text that ends in zero.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        let mut world = world();
        let at = world.count(&name) + k;
        world.faults.push(Fault { name, at, code, for_ever: for_ever != 0 });
    }

    /// What NVRTC is like from now on; answers how often it compiled until now.
    fn standin_compiler(is: u64) -> u64 {
        compiler::COMPILER.store(is, Relaxed);
        compiler::COMPILATIONS.load(Relaxed)
    }

    /// No failures to come.
    fn standin_heal() {
        let mut world = world();
        world.faults.clear();
        world.lost = None;
    }

    /// Every call fails with this code from now on: the device is lost, or the driver is shutting down.
    fn standin_lose(code: Code) { world().lost = Some(code) }

    /// The calls of an entry point so far; `*`: of all.
    fn standin_calls(name: *const c_char) -> u64 {
        // SAFETY: the caller passes a text that ends in zero.
        world().count(&unsafe { CStr::from_ptr(name) }.to_string_lossy())
    }

    /// Queries in a row that find work unfinished before one operation runs; 0: none ever does.
    fn standin_patience(queries: u64) { world().patience = queries }

    /// Runs at most `n` operations of a stream; answers how many ran before it was empty or had to wait.
    fn standin_step(stream: usize, n: u64) -> u64 {
        let mut world = world();
        let Some(queue) = world.streams.get(&stream).copied().or_else(|| {
            let legacy = world.defaults.iter().find(|((_, thread), _)| stream < 2 && *thread == 0);
            legacy.map(|(_, queue)| *queue)
        }) else { return 0 };
        (0..n).take_while(|_| matches!(world.step(queue), Step::Ran)).count() as u64
    }

    /// Runs one operation of the `pick`th queue (of those that hold work, modulo their number) that can run; answers whether any ran.
    fn standin_step_any(pick: u64) -> c_int {
        let mut world = world();
        let busy: Vec<u32> = world.queues.iter().filter(|(_, queue)| !queue.works.is_empty()).map(|(id, _)| *id).collect();
        let ran = (0..busy.len()).any(|turn| {
            matches!(world.step(busy[(pick as usize + turn) % busy.len()]), Step::Ran)
        });
        c_int::from(ran)
    }

    /// The host touches pinned memory by itself, which only it can tell.
    fn standin_host_touch(at: u64, size: u64, write: c_int) {
        let mut world = world();
        let write = write != 0;
        let tick = Arc::make_mut(&mut world.host).advance(HOST);
        let clock = world.host.clone();
        match world.memory.resolve(at, size, None, write) {
            Ok(pieces) => {
                let stamp = Stamp { queue: HOST, tick, what: "the host" };
                pieces.iter().for_each(|piece| world.touch_piece(piece, write, &stamp, &clock));
            }
            Err(why) => world.violation(format!("illegal address: the host: {why}")),
        }
    }

    /// What went wrong since the last clear, a line each.
    fn standin_violations(room: *mut u8, size: usize) -> usize { give(&world().violations.join("\n"), room, size) }

    fn standin_clear_violations() { world().violations.clear() }

    /// The entry points that planted failures have struck, a line each.
    fn standin_struck(room: *mut u8, size: usize) -> usize { give(&world().struck.join("\n"), room, size) }

    /// What is alive, a line each.
    fn standin_leaks(room: *mut u8, size: usize) -> usize { give(&world().leaks().join("\n"), room, size) }

    fn standin_totals(totals: *mut Totals) {
        // SAFETY: the caller passes room for one.
        unsafe { totals.write(world().totals()) }
    }
}
