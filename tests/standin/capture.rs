//! Captures of streams into graphs, what is forbidden meanwhile, and graphs that run.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::{Clock, Marker, Point, QueueId};
use crate::code::{self, Code, Outcome};
use crate::queues::Role;
use crate::work::Op;
use crate::world::{World, thread};

/// How strict a capture is, or a thread: `CUstreamCaptureMode`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    Global,
    ThreadLocal,
    Relaxed,
}

impl Mode {
    pub fn from_number(number: u32) -> Outcome<Mode> {
        [Mode::Global, Mode::ThreadLocal, Mode::Relaxed].get(number as usize).copied().ok_or(code::INVALID_VALUE)
    }
}

/// What was captured; signals and waits by their number.
#[derive(Clone)]
enum Node {
    Op(Op),
    Signal(u64),
    Wait(u64),
}

/// A capture under way.
pub struct Capture {
    origin: QueueId,
    mode: Mode,
    thread: u64,
    valid: bool,
    /// What each stream of it has captured and is ordered behind.
    lanes: BTreeMap<QueueId, Clock>,
    /// What each signal is ordered behind.
    signals: Vec<Clock>,
    nodes: Vec<(QueueId, Node)>,
}

/// A captured graph.
pub struct Graph {
    origin: QueueId,
    nodes: Vec<(QueueId, Node)>,
}

/// What an event was last recorded behind.
#[derive(Clone)]
pub enum Event {
    Never,
    Recorded(Marker),
    Captured { capture: u64, signal: u64 },
}

impl World {
    pub fn begin_capture(&mut self, id: QueueId, mode: Mode) -> Outcome {
        if self.queue(id).role == Role::Legacy {
            return Err(code::STREAM_CAPTURE_UNSUPPORTED);
        }
        if self.queue(id).capture.is_some() {
            return Err(code::ILLEGAL_STATE);
        }
        let name = self.handle() as u64;
        let lanes = [(id, Clock::default())].into();
        let (signals, nodes) = (Vec::new(), Vec::new());
        let capture = Capture { origin: id, mode, thread: thread(), valid: true, lanes, signals, nodes };
        self.captures.insert(name, capture);
        self.queues.get_mut(&id).expect("looked up").capture = Some(name);
        Ok(())
    }

    pub fn end_capture(&mut self, id: QueueId) -> Outcome<Graph> {
        let name = self.queue(id).capture.ok_or(code::ILLEGAL_STATE)?;
        let capture = self.captures.get_mut(&name).expect("a stream names a capture that is there");
        if capture.origin != id {
            capture.valid = false;
            return Err(code::STREAM_CAPTURE_UNMATCHED);
        }
        if capture.mode != Mode::Relaxed && capture.thread != thread() {
            return Err(code::STREAM_CAPTURE_WRONG_THREAD);
        }
        let capture = self.captures.remove(&name).expect("just looked at");
        for lane in capture.lanes.keys() {
            self.queues.get_mut(lane).expect("a captured stream stays").capture = None;
        }
        let joined = &capture.lanes[&id];
        match (capture.valid, capture.lanes.iter().all(|(lane, clock)| joined.at(*lane) >= clock.at(*lane))) {
            (false, _) => Err(code::STREAM_CAPTURE_INVALIDATED),
            (true, false) => Err(code::STREAM_CAPTURE_UNJOINED),
            (true, true) => Ok(Graph { origin: id, nodes: capture.nodes }),
        }
    }

    /// Whether a stream is captured: 0 no, 1 yes, 2 its capture is invalid.
    pub fn capture_status(&self, id: QueueId) -> u32 {
        self.queue(id).capture.map_or(0, |name| if self.captures[&name].valid { 1 } else { 2 })
    }

    /// The capture of a stream, if it is valid still.
    fn valid_capture(&mut self, id: QueueId) -> Outcome<&mut Capture> {
        let name = self.queue(id).capture.expect("asked of captured streams only");
        let capture = self.captures.get_mut(&name).expect("named by its stream");
        if capture.valid { Ok(capture) } else { Err(code::STREAM_CAPTURE_INVALIDATED) }
    }

    pub fn capture_op(&mut self, id: QueueId, op: Op) -> Outcome {
        let capture = self.valid_capture(id)?;
        let clean =
            matches!(op, Op::Copy { .. } | Op::PeerCopy { .. } | Op::Fill { .. } | Op::Kernel { .. } | Op::Call { .. });
        if !clean {
            capture.valid = false;
            return Err(code::STREAM_CAPTURE_UNSUPPORTED);
        }
        capture.lanes.get_mut(&id).expect("a lane of it").advance(id);
        capture.nodes.push((id, Node::Op(op)));
        Ok(())
    }

    /// Refuses what is not allowed on a captured stream, which ends its capture.
    pub fn refuse_on_captured(&mut self, id: QueueId, refusal: Code) -> Outcome {
        let Some(name) = self.queue(id).capture else { return Ok(()) };
        self.captures.get_mut(&name).expect("named by its stream").valid = false;
        Err(refusal)
    }

    /// Work on the legacy stream would wait for captured blocking streams.
    pub fn keep_legacy_apart(&mut self, id: QueueId) -> Outcome {
        if self.queue(id).role != Role::Legacy {
            return Ok(());
        }
        let device = self.queue(id).device;
        let captured: Vec<u64> = self
            .queues
            .values()
            .filter(|queue| queue.device == device && queue.role == Role::Blocking)
            .filter_map(|queue| queue.capture)
            .collect();
        self.invalidate(&captured, code::STREAM_CAPTURE_IMPLICIT)
    }

    /// Potentially unsafe calls are refused where a capture, and the mode of the thread, forbid them.
    pub fn refuse_unsafe(&mut self) -> Outcome {
        let (me, mode) = (thread(), self.thread_mode());
        let forbids = |capture: &Capture| match mode {
            Mode::Relaxed => false,
            _ if capture.thread == me => capture.mode != Mode::Relaxed,
            Mode::Global => capture.mode == Mode::Global,
            Mode::ThreadLocal => false,
        };
        let forbidding: Vec<u64> =
            self.captures.iter().filter(|(_, capture)| forbids(capture)).map(|(name, _)| *name).collect();
        self.invalidate(&forbidding, code::STREAM_CAPTURE_UNSUPPORTED)
    }

    /// The whole device is waited for, captured streams among them.
    pub fn refuse_any_capture(&mut self) -> Outcome {
        let all: Vec<u64> = self.captures.keys().copied().collect();
        self.invalidate(&all, code::STREAM_CAPTURE_UNSUPPORTED)
    }

    fn invalidate(&mut self, names: &[u64], refusal: Code) -> Outcome {
        for name in names {
            self.captures.get_mut(name).expect("one of them").valid = false;
        }
        if names.is_empty() { Ok(()) } else { Err(refusal) }
    }

    /// An event recorded in a capture can be neither asked nor waited for; who does ends the capture.
    pub fn uncaptured(&mut self, event: &Event) -> Outcome<Option<Marker>> {
        match event {
            Event::Never => Ok(None),
            Event::Recorded(marker) => Ok(Some(marker.clone())),
            Event::Captured { capture, .. } => {
                if let Some(capture) = self.captures.get_mut(capture) {
                    capture.valid = false;
                }
                Err(code::CAPTURED_EVENT)
            }
        }
    }

    pub fn record_event(&mut self, id: QueueId) -> Outcome<Event> {
        let Some(name) = self.queue(id).capture else {
            self.keep_legacy_apart(id)?;
            return Ok(Event::Recorded(self.mark(id)));
        };
        let capture = self.valid_capture(id)?;
        let signal = capture.signals.len() as u64;
        capture.signals.push(capture.lanes[&id].clone());
        capture.nodes.push((id, Node::Signal(signal)));
        Ok(Event::Captured { capture: name, signal })
    }

    pub fn wait_event(&mut self, id: QueueId, event: &Event) -> Outcome {
        match event {
            Event::Never => Ok(()),
            Event::Recorded(marker) => {
                self.refuse_on_captured(id, code::STREAM_CAPTURE_ISOLATION)?;
                self.submit(id, Op::Wait(marker.clone()))
            }
            Event::Captured { capture, signal } => self.join_capture(id, *capture, *signal),
        }
    }

    /// A stream that waits for a captured event is captured too.
    fn join_capture(&mut self, id: QueueId, name: u64, signal: u64) -> Outcome {
        if !self.captures.contains_key(&name) {
            return Err(code::CAPTURED_EVENT);
        }
        match self.queue(id).capture {
            Some(mine) if mine != name => return self.invalidate(&[mine, name], code::STREAM_CAPTURE_MERGE),
            None if self.queue(id).role == Role::Legacy => {
                return self.invalidate(&[name], code::STREAM_CAPTURE_IMPLICIT);
            }
            _ => self.queues.get_mut(&id).expect("looked up").capture = Some(name),
        }
        let capture = self.captures.get_mut(&name).expect("just looked at");
        let lane = capture.lanes.entry(id).or_default();
        lane.join(&capture.signals[signal as usize]);
        lane.advance(id);
        capture.nodes.push((id, Node::Wait(signal)));
        if capture.valid { Ok(()) } else { Err(code::STREAM_CAPTURE_INVALIDATED) }
    }

    /// Runs a graph in the order of a stream: the captured streams as queues of their own, the first of them as this one.
    pub fn launch_graph(&mut self, id: QueueId, graph: &Arc<Graph>) -> Outcome {
        self.refuse_on_captured(id, code::STREAM_CAPTURE_UNSUPPORTED)?;
        self.keep_legacy_apart(id)?;
        let device = self.queue(id).device;
        let start = self.mark(id);
        let mut lanes = BTreeMap::from([(graph.origin, id)]);
        for (lane, _) in &graph.nodes {
            if !lanes.contains_key(lane) {
                let queue = self.add_queue(device, Role::NonBlocking);
                lanes.insert(*lane, queue);
                self.submit(queue, Op::Wait(start.clone()))?;
            }
        }
        let mut markers: BTreeMap<u64, Marker> = BTreeMap::new();
        for (lane, node) in &graph.nodes {
            let queue = lanes[lane];
            let op = match node {
                Node::Op(op) => op.clone(),
                Node::Signal(signal) => {
                    let marker = Point::new(queue);
                    markers.insert(*signal, marker.clone());
                    Op::Signal(marker)
                }
                Node::Wait(signal) => Op::Wait(markers[signal].clone()),
            };
            self.submit(queue, op)?;
        }
        for queue in lanes.into_values().filter(|queue| *queue != id) {
            let end = self.mark(queue);
            self.queues.get_mut(&queue).expect("just made").closed = true;
            self.submit(id, Op::Wait(end))?;
        }
        Ok(())
    }
}
