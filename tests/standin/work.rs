//! What stands in queues, and what happens when it runs.

use crate::clock::{Marker, QueueId};
use crate::history::Stamp;
use crate::kernels::Kernel;
use crate::memory::{Kind, Piece};
use crate::world::World;

/// Bytes that an operation touches.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    pub at: u64,
    pub size: u64,
    pub write: bool,
}

impl Use {
    pub fn read(at: u64, size: u64) -> Use {
        Use { at, size, write: false }
    }

    pub fn write(at: u64, size: u64) -> Use {
        Use { at, size, write: true }
    }

    pub fn overlaps(&self, at: u64, size: u64) -> bool {
        self.at < at + size && at < self.at + self.size
    }
}

/// An operation of a queue.
#[derive(Clone)]
pub enum Op {
    Signal(Marker),
    Wait(Marker),
    Copy {
        to: u64,
        from: u64,
        size: u64,
    },
    /// A copy between devices: each side is touched by its own.
    PeerCopy {
        to: u64,
        from: u64,
        size: u64,
    },
    /// A copy of bytes that were staged.
    Upload {
        to: u64,
        bytes: Vec<u8>,
    },
    /// A copy to pageable memory of the host, which waits for it.
    Download {
        to: u64,
        from: u64,
        size: u64,
    },
    Fill {
        to: u64,
        pattern: Vec<u8>,
        size: u64,
    },
    Kernel {
        kernel: &'static Kernel,
        arguments: Vec<u64>,
    },
    /// Stream-ordered memory begins here.
    Born {
        at: u64,
        size: u64,
    },
    /// Stream-ordered memory ends here.
    Free {
        at: u64,
        size: u64,
    },
    Call {
        function: unsafe extern "C" fn(*mut std::ffi::c_void),
        data: usize,
    },
}

impl Op {
    pub fn name(&self) -> &'static str {
        match self {
            Op::Signal(_) => "event",
            Op::Wait(_) => "wait",
            Op::Copy { .. } => "copy",
            Op::PeerCopy { .. } => "peer copy",
            Op::Upload { .. } => "copy from the host",
            Op::Download { .. } => "copy to the host",
            Op::Fill { .. } => "memset",
            Op::Kernel { kernel, .. } => kernel.name,
            Op::Born { .. } => "allocation",
            Op::Free { .. } => "free",
            Op::Call { .. } => "host function",
        }
    }

    /// What it touches; what it reads comes before what it writes.
    pub fn uses(&self) -> Vec<Use> {
        match *self {
            Op::Signal(_) | Op::Wait(_) | Op::Call { .. } => Vec::new(),
            Op::Copy { to, from, size } | Op::PeerCopy { to, from, size } => {
                vec![Use::read(from, size), Use::write(to, size)]
            }
            Op::Upload { to, ref bytes } => vec![Use::write(to, bytes.len() as u64)],
            Op::Download { from, size, .. } => vec![Use::read(from, size)],
            Op::Fill { to, size, .. } => vec![Use::write(to, size)],
            Op::Kernel { kernel, ref arguments } => (kernel.uses)(arguments),
            Op::Born { at, size } | Op::Free { at, size } => vec![Use::write(at, size)],
        }
    }
}

impl World {
    /// Runs one operation, the `tick`th of its queue.
    pub fn run(&mut self, queue: QueueId, tick: u64, op: Op) {
        let touched: Option<Vec<Vec<Piece>>> =
            op.uses().into_iter().map(|bytes| self.touch(queue, tick, &op, bytes)).collect();
        let Some(pieces) = touched else { return };
        match op {
            Op::Signal(marker) => {
                let clock = self.queues[&queue].clock.clone();
                marker.clock.set(clock).expect("a marker is reached once");
            }
            Op::Wait(marker) => {
                let clock = marker.clock.get().expect("only a reached marker is passed");
                self.queues.get_mut(&queue).expect("it runs").clock.join(clock);
            }
            Op::Copy { .. } | Op::PeerCopy { .. } => {
                let bytes = self.memory.read(&pieces[0]);
                self.memory.write(&pieces[1], &bytes);
            }
            Op::Upload { bytes, .. } => self.memory.write(&pieces[0], &bytes),
            Op::Download { to, .. } => {
                let bytes = self.memory.read(&pieces[0]);
                let pointer = std::ptr::with_exposed_provenance_mut::<u8>(to as usize);
                // SAFETY: the caller of the copy gave room for its size and waits until this has run.
                unsafe { pointer.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
            }
            Op::Fill { pattern, .. } => self.memory.fill(&pieces[0], &pattern),
            Op::Kernel { kernel, arguments } => {
                let (output, inputs) = pieces.split_last().expect("a kernel writes");
                let inputs: Vec<Vec<u8>> = inputs.iter().map(|pieces| self.memory.read(pieces)).collect();
                self.memory.write(output, &(kernel.run)(&arguments, &inputs));
            }
            Op::Born { .. } => {}
            Op::Free { at, .. } => self.memory.unmap(at, "it was freed in stream order"),
            // SAFETY: the caller of the launch promised that it may be called with this.
            Op::Call { function, data } => unsafe { function(std::ptr::with_exposed_provenance_mut(data)) },
        }
    }

    /// Checks one use and remembers it. `None`: it touches what it may not, and is left out.
    fn touch(&mut self, queue: QueueId, tick: u64, op: &Op, bytes: Use) -> Option<Vec<Piece>> {
        let device = self.queues[&queue].device;
        let toucher = (!matches!(op, Op::PeerCopy { .. })).then_some(device);
        let what = op.name();
        let pieces = match self.memory.resolve(bytes.at, bytes.size, toucher, bytes.write) {
            Ok(pieces) => pieces,
            Err(why) => {
                self.violation(format!("illegal address: {what} of {} by queue {queue}: {why}", range(bytes)));
                return None;
            }
        };
        let stamp = Stamp { queue, tick, what };
        let clock = self.queues[&queue].clock.clone();
        for piece in &pieces {
            self.touch_piece(piece, bytes.write, &stamp, &clock);
        }
        Some(pieces)
    }

    /// One touch of physical bytes, by a queue or by the host.
    pub fn touch_piece(&mut self, piece: &Piece, write: bool, stamp: &Stamp, clock: &crate::clock::Clock) {
        let extent = self.memory.extents.get_mut(&piece.extent).expect("mapped");
        let conflicts = extent.history.touch(piece.bytes.clone(), write, stamp, clock);
        let mapping = self.memory.mappings.get_mut(&piece.mapping).expect("resolved");
        mapping.touched.set(stamp.queue, stamp.tick);
        for (bytes, earlier) in conflicts {
            let kind = if write { "writes" } else { "reads" };
            self.violation(format!(
                "race: {} by queue {} {kind} bytes {:#x}..{:#x} of physical memory {:#x}, not ordered after {} by queue {}",
                stamp.what, stamp.queue, bytes.start, bytes.end, piece.extent, earlier.what, earlier.queue
            ));
        }
    }

    /// Memory behind these addresses is about to go away: no work may be left that touches them, and the host must know it.
    pub fn must_be_finished(&mut self, call: &str, at: u64, size: u64) {
        let waiting = self.queues.iter().find_map(|(id, queue)| {
            let work = queue.works.iter().find(|work| work.op.uses().iter().any(|bytes| bytes.overlaps(at, size)))?;
            Some((*id, work.op.name()))
        });
        if let Some((queue, what)) = waiting {
            self.violation(format!("{call} of {at:#x}: {what} on queue {queue} has yet to touch it"));
        }
        let unknown = self.memory.mappings.range(at..at + size).any(|(_, mapping)| !self.host.covers(&mapping.touched));
        if waiting.is_none() && unknown {
            self.violation(format!("{call} of {at:#x}: its work is done, but the host does not know that"));
        }
    }

    /// Ends one allocation of the given kind, after the device has been waited for.
    pub fn free(&mut self, call: &'static str, at: u64, kind: Kind) -> Result<(), crate::code::Code> {
        let size = match self.memory.mappings.get(&at) {
            Some(mapping) if mapping.kind == kind => mapping.size,
            _ => return Err(crate::code::INVALID_VALUE),
        };
        self.must_be_finished(call, at, size);
        self.finish_everything();
        self.memory.unmap(at, "it was freed");
        Ok(())
    }
}

fn range(bytes: Use) -> String {
    format!("{:#x}..{:#x}", bytes.at, bytes.at + bytes.size)
}
