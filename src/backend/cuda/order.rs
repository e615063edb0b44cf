//! Streams and events of a device, by the numbers under which the rest of the crate knows them.
//!
//! Knows no memory. A stream of the user's is held as long as it has a number, so that its handle names no other stream meanwhile.
//! Events are made without timing, once, and used again.
//!
//! Nothing here touches a stream that is being captured: an event recorded there would belong to the graph, and asking about it would
//! end the capture.
//!
//! Invariants: `streams[0]` is the context's default stream, always; an event is in `slots` or in `idle`, never in both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::CudaStream;
use parking_lot::{Mutex, RwLock};

use super::driver::{Current, Device, Event};
use crate::backend::BackendError;
use crate::ids::{EventId, StreamId};

/// The longest sleep between two looks at an event that is waited for.
const LONGEST_PAUSE: Duration = Duration::from_micros(250);

pub(super) struct Order {
    device: Arc<Device>,
    streams: RwLock<Vec<Option<Arc<CudaStream>>>>,
    events: Mutex<Events>,
}

#[derive(Default)]
struct Events {
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    idle: Vec<Event>,
}

#[derive(Default)]
struct Slot {
    /// Changes each time the event is forgotten, so that an id names one record only.
    generation: u32,
    event: Option<Arc<Event>>,
}

impl Order {
    pub(super) fn new(device: Arc<Device>) -> Order {
        let default = device.context().default_stream();
        Order { device, streams: RwLock::new(vec![Some(default)]), events: Mutex::default() }
    }

    /// The stream of a number.
    pub(super) fn stream(&self, call: &'static str, id: StreamId) -> Result<Arc<CudaStream>, BackendError> {
        let stream = self.streams.read().get(usize::from(id.0)).cloned().flatten();
        stream.ok_or_else(|| BackendError::Contract { call, rule: format!("{id} is not an open stream") })
    }

    /// Whether a number names the stream of this handle.
    pub(super) fn is(&self, id: StreamId, stream: &CudaStream) -> bool {
        let streams = self.streams.read();
        streams.get(usize::from(id.0)).is_some_and(|known| known.as_ref().is_some_and(|known| **known == *stream))
    }

    /// Gives a stream a number; the same stream may have several.
    pub(super) fn add(&self, stream: Arc<CudaStream>) -> Result<StreamId, BackendError> {
        let mut streams = self.streams.write();
        let vacant = streams.iter().position(Option::is_none);
        let at = vacant.unwrap_or(streams.len());
        let max = u64::from(u16::MAX);
        let id = u16::try_from(at).map_err(|_| BackendError::TooLarge { call: "stream", requested: max + 1, max })?;
        match vacant {
            Some(at) => streams[at] = Some(stream),
            None => streams.push(Some(stream)),
        }
        Ok(StreamId(id))
    }

    pub(super) fn open(&self) -> Result<StreamId, BackendError> {
        self.add(self.device.open_stream()?)
    }

    /// Forgets a stream; it ends when the user lets go of it too.
    pub(super) fn close(&self, id: StreamId) {
        let stream = match id {
            StreamId(0) => None,
            id => self.streams.write().get_mut(usize::from(id.0)).and_then(Option::take),
        };
        // Its end, if this is it, is a call of the driver: with our context, without our lock. A lost device is left alone.
        match self.device.enter() {
            Ok(_current) => drop(stream),
            Err(_) => std::mem::forget(stream),
        }
    }

    pub(super) fn is_capturing(&self, id: StreamId) -> Result<bool, BackendError> {
        self.captures(&*self.stream("is_capturing", id)?)
    }

    /// As [`Order::is_capturing`], for a stream with a number or without.
    pub(super) fn captures(&self, stream: &CudaStream) -> Result<bool, BackendError> {
        self.device.enter()?.is_capturing(stream)
    }

    /// Whether nothing runs on any stream, as far as can be said without disturbing a capture.
    pub(super) fn is_idle(&self) -> Result<bool, BackendError> {
        let streams: Vec<_> = self.streams.read().iter().flatten().cloned().collect();
        let current = self.device.enter()?;
        for stream in streams {
            if current.is_capturing(&stream)? || !current.is_idle(&stream)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn record(&self, id: StreamId) -> Result<EventId, BackendError> {
        let stream = self.stream("record", id)?;
        let current = self.device.enter()?;
        refuse_capture(&current, &stream, id)?;
        let idle = self.events.lock().idle.pop();
        let event = idle.map_or_else(|| current.create_event(), Ok)?;
        // A capture that began since the first look has taken the event: nobody may ask about it.
        let recorded = current.record(&event, &stream).and_then(|()| refuse_capture(&current, &stream, id));
        let mut events = self.events.lock();
        match recorded {
            Ok(()) => Ok(events.keep(event)),
            Err(error) => {
                events.idle.push(event);
                Err(error)
            }
        }
    }

    fn event(&self, call: &'static str, id: EventId) -> Result<Arc<Event>, BackendError> {
        let events = self.events.lock();
        let slot = events.slots.get((id.0 & u64::from(u32::MAX)) as usize);
        let event = slot.filter(|slot| u64::from(slot.generation) == id.0 >> 32).and_then(|slot| slot.event.clone());
        event.ok_or_else(|| BackendError::Contract { call, rule: format!("{id} was never recorded, or was forgotten") })
    }

    pub(super) fn done(&self, id: EventId) -> Result<bool, BackendError> {
        let event = self.event("done", id)?;
        self.device.enter()?.is_done(&event)
    }

    pub(super) fn stream_wait(&self, id: StreamId, event: EventId) -> Result<(), BackendError> {
        let (stream, event) = (self.stream("stream_wait", id)?, self.event("stream_wait", event)?);
        let current = self.device.enter()?;
        refuse_capture(&current, &stream, id)?;
        current.wait(&stream, &event)
    }

    /// As [`Order::stream_wait`], for a stream without a number.
    pub(super) fn foreign_wait(&self, stream: &CudaStream, event: EventId) -> Result<(), BackendError> {
        let event = self.event("stream_wait", event)?;
        self.device.enter()?.wait(stream, &event)
    }

    pub(super) fn host_wait(&self, id: EventId, timeout: Option<Duration>) -> Result<bool, BackendError> {
        let event = self.event("host_wait", id)?;
        let Some(timeout) = timeout else { return self.device.enter()?.synchronize(&event).map(|()| true) };
        let start = Instant::now();
        let mut pause = Duration::from_micros(2);
        loop {
            if self.device.enter()?.is_done(&event)? {
                return Ok(true);
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Gives an event back. What is not one is ignored: the call has no way to say so.
    pub(super) fn forget(&self, id: EventId) {
        let mut events = self.events.lock();
        let at = (id.0 & u64::from(u32::MAX)) as usize;
        let Some(slot) = events.slots.get_mut(at).filter(|slot| u64::from(slot.generation) == id.0 >> 32) else {
            return;
        };
        let Some(event) = slot.event.take() else { return };
        slot.generation = slot.generation.wrapping_add(1);
        events.vacant.push(at as u32);
        // Somebody who still waits for it, against the contract, keeps it: it is not used again.
        events.idle.extend(Arc::into_inner(event));
    }
}

impl Events {
    fn keep(&mut self, event: Event) -> EventId {
        let at = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[at as usize];
        slot.event = Some(Arc::new(event));
        EventId(u64::from(slot.generation) << 32 | u64::from(at))
    }
}

/// Nothing can be ordered behind work that is being captured.
fn refuse_capture(current: &Current<'_>, stream: &CudaStream, id: StreamId) -> Result<(), BackendError> {
    if current.is_capturing(stream)? { Err(BackendError::Recording { stream: id }) } else { Ok(()) }
}

impl Drop for Order {
    fn drop(&mut self) {
        let streams = std::mem::take(self.streams.get_mut());
        let Ok(current) = self.device.enter() else {
            // Their ends would be calls to a driver that is gone.
            return std::mem::forget(streams);
        };
        drop(streams);
        let events = self.events.get_mut();
        let live = events.slots.iter_mut().filter_map(|slot| slot.event.take()).filter_map(Arc::into_inner);
        for event in live.chain(events.idle.drain(..)) {
            // What the driver will not destroy now, it destroys with the context.
            let _ = current.destroy_event(event);
        }
    }
}
