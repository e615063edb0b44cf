//! The one world of a process: devices, contexts, faults that tests planted, what went wrong, and the door through which every
//! call comes.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use crate::capture::{Capture, Event, Graph, Mode};
use crate::clock::{Clock, QueueId};
use crate::code::{self, Code, Outcome};
use crate::kernels::Kernel;
use crate::memory::{Device, Memory};
use crate::queues::Queue;

/// What a call needs before it looks at its arguments.
#[derive(Clone, Copy, PartialEq)]
pub enum Gate {
    /// Nothing; it is never made to fail either.
    None,
    /// The driver initialised.
    Driver,
    /// A current context.
    Context,
    /// A current context, and no capture that forbids it.
    Unsafe,
}

/// A failure to come.
pub struct Fault {
    /// The entry point; `*` is any.
    pub name: String,
    pub at: u64,
    pub code: Code,
    pub for_ever: bool,
}

/// What a thread has of its own.
struct Thread {
    contexts: Vec<usize>,
    mode: Mode,
}

/// What the machine is like: from the environment when the library is first used, later as tests say.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Machine {
    pub devices: Device,
    pub version: i32,
    /// What `cuInit` answers.
    pub init: Code,
    pub virtual_memory: bool,
    pub pools: bool,
    pub peers: bool,
    /// Bytes of each device.
    pub capacity: u64,
    /// The granularity of virtual memory; 2 MiB on all real ones.
    pub page: u64,
}

impl Machine {
    pub fn from_environment() -> Machine {
        let number = |name: &str, otherwise: u64| -> u64 {
            std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
        };
        Machine {
            devices: number("STANDIN_DEVICES", 1) as Device,
            version: number("STANDIN_VERSION", 13040) as i32,
            init: number("STANDIN_INIT", 0) as Code,
            virtual_memory: number("STANDIN_VMM", 1) != 0,
            pools: number("STANDIN_POOLS", 1) != 0,
            peers: number("STANDIN_PEERS", 1) != 0,
            capacity: number("STANDIN_CAPACITY", 1 << 30),
            page: number("STANDIN_PAGE", 2 << 20),
        }
    }
}

/// Everything.
pub struct World {
    pub machine: Machine,
    pub memory: Memory,
    pub queues: BTreeMap<QueueId, Queue>,
    pub next_queue: QueueId,
    /// What the host knows.
    pub host: Arc<Clock>,
    /// What queues did that are no more.
    pub gone: Clock,
    /// Stream handles that are open.
    pub streams: BTreeMap<usize, QueueId>,
    /// Default streams, by device and thread (0: the legacy one).
    pub defaults: BTreeMap<(Device, u64), QueueId>,
    pub events: BTreeMap<usize, Event>,
    pub captures: BTreeMap<u64, Capture>,
    pub graphs: BTreeMap<usize, Arc<Graph>>,
    pub executables: BTreeMap<usize, Arc<Graph>>,
    /// Modules: the device of each, and how many functions were taken from it.
    pub modules: BTreeMap<usize, (Device, usize)>,
    pub functions: BTreeMap<usize, (usize, &'static Kernel)>,
    /// Release thresholds of memory pools; the default pool of a device is its number plus one.
    pub pools: BTreeMap<usize, u64>,
    /// References to the primary context of each device.
    pub retained: BTreeMap<Device, u32>,
    pub faults: Vec<Fault>,
    pub counts: BTreeMap<String, u64>,
    /// The entry points that planted faults have struck.
    pub struck: Vec<&'static str>,
    pub lost: Option<Code>,
    pub patience: u64,
    pub violations: Vec<String>,
    initialised: bool,
    threads: BTreeMap<u64, Thread>,
    next_handle: usize,
}

static WORLD: LazyLock<Mutex<World>> = LazyLock::new(|| Mutex::new(World::new(Machine::from_environment())));

pub fn world() -> MutexGuard<'static, World> {
    WORLD.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The name of the calling thread; never 0, never given twice.
pub fn thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // Without a destructor, so that it can be asked until the thread is gone.
    thread_local!(static NAME: Cell<u64> = const { Cell::new(0) });
    NAME.with(|name| {
        if name.get() == 0 {
            name.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        name.get()
    })
}

/// Where contexts' handles begin; the device is added.
const CONTEXT: usize = 0xC0_0000;

/// The door: counts the call, lets planted faults strike, checks what the call needs, and runs it under the lock.
pub fn enter(name: &'static str, gate: Gate, body: impl FnOnce(&mut World) -> Outcome) -> Code {
    let mut world = world();
    let outcome = world.admit(name, gate).and_then(|()| body(&mut world));
    outcome.err().unwrap_or(0)
}

impl World {
    pub fn new(machine: Machine) -> World {
        World {
            machine,
            memory: Memory::new(machine.capacity, machine.page),
            queues: BTreeMap::new(),
            next_queue: 0,
            host: Arc::default(),
            gone: Clock::default(),
            streams: BTreeMap::new(),
            defaults: BTreeMap::new(),
            events: BTreeMap::new(),
            captures: BTreeMap::new(),
            graphs: BTreeMap::new(),
            executables: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            pools: BTreeMap::new(),
            retained: BTreeMap::new(),
            faults: Vec::new(),
            counts: BTreeMap::new(),
            struck: Vec::new(),
            lost: None,
            patience: 64,
            violations: Vec::new(),
            initialised: false,
            threads: BTreeMap::new(),
            next_handle: 0x1000,
        }
    }

    fn admit(&mut self, entry: &'static str, gate: Gate) -> Outcome {
        if gate == Gate::None {
            return Ok(());
        }
        let mut strikes = None;
        for name in [entry, "*"] {
            let count = self.count(name) + 1;
            self.counts.insert(name.to_owned(), count);
            let strike = self
                .faults
                .iter()
                .find(|fault| fault.name == name && (fault.at == count || fault.for_ever && fault.at <= count));
            strikes = strikes.or(strike.map(|fault| fault.code));
        }
        self.struck.extend(strikes.map(|_| entry));
        if let Some(code) = self.lost.or(strikes) {
            return Err(code);
        }
        if entry == "cuInit" {
            self.initialised = self.machine.init == 0;
            return if self.initialised { Ok(()) } else { Err(self.machine.init) };
        }
        if !self.initialised {
            return Err(code::NOT_INITIALIZED);
        }
        match gate {
            Gate::None | Gate::Driver => Ok(()),
            Gate::Context => self.device().map(drop),
            Gate::Unsafe => self.device().and_then(|_| self.refuse_unsafe()),
        }
    }

    /// The calls of an entry point so far; `*` is all of them.
    pub fn count(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    pub fn violation(&mut self, text: String) {
        self.violations.push(text);
    }

    /// A handle that nothing had before.
    pub fn handle(&mut self) -> usize {
        self.next_handle += 16;
        self.next_handle
    }

    fn thread(&mut self) -> &mut Thread {
        self.threads.entry(thread()).or_insert(Thread { contexts: Vec::new(), mode: Mode::Global })
    }

    /// The contexts of the calling thread, the current one last.
    pub fn contexts(&mut self) -> &mut Vec<usize> {
        &mut self.thread().contexts
    }

    pub fn thread_mode(&mut self) -> Mode {
        self.thread().mode
    }

    pub fn exchange_thread_mode(&mut self, mode: Mode) -> Mode {
        std::mem::replace(&mut self.thread().mode, mode)
    }

    pub fn checked_device(&self, device: Device) -> Outcome<Device> {
        if (0..self.machine.devices).contains(&device) { Ok(device) } else { Err(code::INVALID_DEVICE) }
    }

    pub fn context_of(&self, device: Device) -> usize {
        CONTEXT + device as usize
    }

    /// The device of a context's handle.
    pub fn device_of(&self, context: usize) -> Outcome<Device> {
        let device = context.checked_sub(CONTEXT).and_then(|device| Device::try_from(device).ok());
        device.filter(|device| *device < self.machine.devices).ok_or(code::INVALID_CONTEXT)
    }

    /// The device of the current context, which must be alive.
    pub fn device(&mut self) -> Outcome<Device> {
        let context = *self.contexts().last().filter(|context| **context != 0).ok_or(code::INVALID_CONTEXT)?;
        let device = self.device_of(context)?;
        if self.retained.get(&device).copied().unwrap_or(0) == 0 {
            return Err(code::CONTEXT_IS_DESTROYED);
        }
        Ok(device)
    }
}
