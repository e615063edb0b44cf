//! Streams as queues: what is submitted waits in order, and runs when somebody makes it.
//!
//! Invariant: a `Wait` stands only behind a marker that was submitted before it, so whoever finishes a marker ends.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::clock::{Clock, Marker, Point, QueueId};
use crate::code::{self, Outcome};
use crate::memory::Device;
use crate::work::Op;
use crate::world::World;

/// How a queue stands to the legacy default stream of its device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    Legacy,
    Blocking,
    NonBlocking,
}

/// An operation, with what the host knew when it was submitted.
pub struct Work {
    pub op: Op,
    host: Arc<Clock>,
}

/// A stream, or a lane of a graph that runs.
pub struct Queue {
    pub device: Device,
    pub role: Role,
    pub works: VecDeque<Work>,
    pub clock: Clock,
    /// The capture that takes what is submitted.
    pub capture: Option<u64>,
    /// Submissions so far, but for those that only make others wait.
    submitted: u64,
    /// Of queues that this one waits for without being told: their submissions at the last such wait.
    seen: BTreeMap<QueueId, u64>,
    /// Queries in a row that found work unfinished.
    polls: u64,
    /// Its stream is destroyed: it goes when it is empty.
    pub closed: bool,
}

/// What a step of a queue came to.
pub enum Step {
    Ran,
    Blocked(Marker),
    Empty,
}

impl World {
    pub fn add_queue(&mut self, device: Device, role: Role) -> QueueId {
        self.next_queue += 1;
        let queue = Queue {
            device,
            role,
            works: VecDeque::new(),
            clock: Clock::default(),
            capture: None,
            submitted: 0,
            seen: BTreeMap::new(),
            polls: 0,
            closed: false,
        };
        self.queues.insert(self.next_queue, queue);
        self.next_queue
    }

    pub fn queue(&self, id: QueueId) -> &Queue {
        &self.queues[&id]
    }

    fn queue_mut(&mut self, id: QueueId) -> &mut Queue {
        self.queues.get_mut(&id).expect("a queue that was looked up")
    }

    /// The queue that a stream handle means for the calling thread.
    pub fn stream(&mut self, handle: usize) -> Outcome<QueueId> {
        let device = self.device()?;
        let id = match handle {
            0 | 1 => self.default_queue(device, 0, Role::Legacy),
            2 => self.default_queue(device, crate::world::thread(), Role::Blocking),
            _ => *self.streams.get(&handle).ok_or(code::INVALID_HANDLE)?,
        };
        let owner = self.queue(id).device;
        if owner != device {
            self.violation(format!("stream {handle:#x} of device {owner} is used while device {device} is current"));
        }
        Ok(id)
    }

    fn default_queue(&mut self, device: Device, thread: u64, role: Role) -> QueueId {
        if let Some(id) = self.defaults.get(&(device, thread)) {
            return *id;
        }
        let id = self.add_queue(device, role);
        self.defaults.insert((device, thread), id);
        id
    }

    /// Gives an operation to a queue, or to the capture of it.
    pub fn submit(&mut self, id: QueueId, op: Op) -> Outcome {
        if self.queue(id).capture.is_some() {
            return self.capture_op(id, op);
        }
        self.keep_legacy_apart(id)?;
        self.enqueue(id, op);
        Ok(())
    }

    /// A marker behind everything submitted to a queue that is not captured.
    pub fn mark(&mut self, id: QueueId) -> Marker {
        let marker = Point::new(id);
        self.enqueue(id, Op::Signal(marker.clone()));
        marker
    }

    fn enqueue(&mut self, id: QueueId, op: Op) {
        self.wait_implicitly(id);
        self.queue_mut(id).submitted += 1;
        self.push(id, op);
    }

    fn push(&mut self, id: QueueId, op: Op) {
        let host = self.host.clone();
        self.queue_mut(id).works.push_back(Work { op, host });
    }

    /// The legacy stream waits for the blocking streams of its device, and they for it.
    fn wait_implicitly(&mut self, id: QueueId) {
        let (device, role) = (self.queue(id).device, self.queue(id).role);
        let wanted = match role {
            Role::Legacy => Role::Blocking,
            Role::Blocking => Role::Legacy,
            Role::NonBlocking => return,
        };
        let others = self.queues.iter().filter(|(_, other)| other.device == device && other.role == wanted);
        let news: Vec<(QueueId, u64)> = others
            .map(|(other, queue)| (*other, queue.submitted))
            .filter(|(other, submitted)| self.queue(id).seen.get(other).copied().unwrap_or(0) < *submitted)
            .collect();
        for (other, submitted) in news {
            let marker = Point::new(other);
            self.push(other, Op::Signal(marker.clone()));
            self.push(id, Op::Wait(marker));
            self.queue_mut(id).seen.insert(other, submitted);
        }
    }

    /// Runs the operation at the head of a queue.
    pub fn step(&mut self, id: QueueId) -> Step {
        let Some(queue) = self.queues.get_mut(&id) else { return Step::Empty };
        match queue.works.front() {
            None => return Step::Empty,
            Some(Work { op: Op::Wait(marker), .. }) if !marker.reached() => return Step::Blocked(marker.clone()),
            Some(_) => {}
        }
        let work = queue.works.pop_front().expect("looked at");
        queue.polls = 0;
        queue.clock.join(&work.host);
        let tick = queue.clock.advance(id);
        self.run(id, tick, work.op);
        self.drop_if_done(id);
        Step::Ran
    }

    /// A closed queue goes when it is empty; what it did stays known.
    pub fn drop_if_done(&mut self, id: QueueId) {
        if self.queue(id).closed && self.queue(id).works.is_empty() {
            let queue = self.queues.remove(&id).expect("just looked at");
            self.gone.join(&queue.clock);
        }
    }

    /// Runs what is needed to reach a marker, and nothing else.
    pub fn reach(&mut self, goal: &Marker) {
        let mut goals = vec![goal.clone()];
        while let Some(next) = goals.last() {
            if next.reached() {
                goals.pop();
                continue;
            }
            match self.step(next.queue) {
                Step::Ran => {}
                Step::Blocked(marker) => goals.push(marker),
                Step::Empty => unreachable!("a marker stands in its queue until it is reached"),
            }
        }
    }

    /// The host waits for a marker, and then knows what it knows.
    pub fn host_reach(&mut self, marker: &Marker) {
        self.reach(marker);
        self.learn(marker);
    }

    /// The host has seen that a marker is reached.
    pub fn learn(&mut self, marker: &Marker) {
        Arc::make_mut(&mut self.host).join(marker.clock.get().expect("reached"));
    }

    /// The host waits for everything.
    pub fn finish_everything(&mut self) {
        let all: Vec<QueueId> = self.queues.keys().copied().collect();
        for id in all {
            while let Some(queue) = self.queues.get(&id) {
                let Some(work) = queue.works.front() else { break };
                match &work.op {
                    Op::Wait(marker) if !marker.reached() => self.reach(&marker.clone()),
                    _ => drop(self.step(id)),
                }
            }
        }
        let clocks: Vec<Clock> = self.queues.values().map(|queue| queue.clock.clone()).collect();
        let host = Arc::make_mut(&mut self.host);
        clocks.iter().chain([&self.gone]).for_each(|clock| host.join(clock));
    }

    /// A query found work of this queue unfinished: who asks often enough is told a different answer some day.
    pub fn polled(&mut self, id: QueueId) {
        let patience = self.patience;
        let Some(queue) = self.queues.get_mut(&id) else { return };
        queue.polls += 1;
        if patience == 0 || !queue.polls.is_multiple_of(patience) {
            return;
        }
        if let Step::Blocked(marker) = self.step(id) {
            self.polled_through(&marker);
        }
    }

    /// Runs one operation on the way to a marker.
    fn polled_through(&mut self, marker: &Marker) {
        let mut next = marker.clone();
        while let Step::Blocked(before) = self.step(next.queue) {
            next = before;
        }
    }
}
