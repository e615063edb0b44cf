//! Real devices: the same events by each way of having memory, in wall time, since drivers wait.
#![allow(dead_code)] // each bench uses a part of it

use std::time::Instant;

use larder::trace::{Op, Trace};

/// Events of each trace that are played: drivers take long.
pub const EVENTS: usize = 20_000;

/// One way of having memory, block by block.
pub trait Source {
    /// What a block is; it goes back when dropped.
    type Block;
    /// A block, or why not.
    fn get(&self, bytes: u64) -> Result<Self::Block, String>;
    /// Called now and then, as a program would look after its device.
    fn look_after(&self) {}
}

/// Plays the first events of a trace, from empty to empty. Answers seconds, and the blocks asked for.
pub fn pass<S: Source>(source: &S, trace: &Trace, slots: &mut Vec<Option<S::Block>>) -> Result<f64, String> {
    slots.clear();
    slots.resize_with(trace.slots(), || None);
    let began = Instant::now();
    for (at, op) in trace.ops().iter().take(EVENTS).enumerate() {
        match *op {
            Op::Alloc { slot, bytes, .. } => slots[slot as usize] = Some(source.get(bytes)?),
            Op::Free { slot } => slots[slot as usize] = None,
            Op::Use { .. } | Op::Mark { .. } => {}
        }
        if at % 64 == 63 {
            source.look_after();
        }
    }
    let taken = began.elapsed().as_secs_f64();
    slots.clear();
    source.look_after();
    Ok(taken)
}

/// A source and its times.
pub struct Entrant<'a, S: Source> {
    source: &'a S,
    slots: Vec<Option<S::Block>>,
    times: Vec<f64>,
    failure: Option<String>,
}

impl<'a, S: Source> Entrant<'a, S> {
    pub fn new(source: &'a S) -> Self {
        Entrant { source, slots: Vec::new(), times: Vec::new(), failure: None }
    }

    /// The first pass finds nothing cached and is kept apart.
    pub fn play(&mut self, trace: &Trace) {
        if self.failure.is_none() {
            match pass(self.source, trace, &mut self.slots) {
                Ok(taken) => self.times.push(taken),
                Err(reason) => {
                    self.slots.clear();
                    self.source.look_after();
                    self.failure = Some(reason);
                }
            }
        }
    }

    /// Nanoseconds an event: of the first pass, and the median of the others. Or why there are none.
    pub fn figures(&self, trace: &Trace) -> Result<(f64, f64), &str> {
        if let Some(reason) = &self.failure {
            return Err(reason);
        }
        let events = trace.ops().len().min(EVENTS) as f64;
        let mut warm = self.times[1..].to_vec();
        warm.sort_unstable_by(f64::total_cmp);
        Ok((self.times[0] * 1e9 / events, warm[warm.len() / 2] * 1e9 / events))
    }
}

/// Blocks asked for by one pass.
pub fn requests(trace: &Trace) -> u64 {
    trace.ops().iter().take(EVENTS).filter(|op| matches!(op, Op::Alloc { .. })).count() as u64
}
