//! What is written down about calls to the simulated device: kinds, counts, planned failures, broken rules.
//!
//! Knows no memory and no stream. Invariant: a planned failure strikes the calls of its own kind only, and every call of
//! that kind which gets as far as [`Faults::strike`] (it broke no rule, the device is there) counts towards it.

use crate::backend::BackendError;

/// A method of the trait that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// `Backend::reserve`
    Reserve,
    /// `Backend::back`
    Back,
    /// `Backend::unback`
    Unback,
    /// `Backend::remap`
    Remap,
    /// `Backend::grow_segment`
    GrowSegment,
    /// `Backend::release`
    Release,
    /// `Backend::open_stream`
    OpenStream,
    /// `Backend::record`
    Record,
    /// `Backend::done`
    Done,
    /// `Backend::stream_wait`
    StreamWait,
    /// `Backend::host_wait`
    HostWait,
    /// `Backend::zero`
    Zero,
    /// `Backend::budget`
    Budget,
}

const KINDS: usize = 13;

impl Call {
    /// Every kind, in the order of the declaration.
    pub const ALL: [Call; KINDS] = [
        Call::Reserve,
        Call::Back,
        Call::Unback,
        Call::Remap,
        Call::GrowSegment,
        Call::Release,
        Call::OpenStream,
        Call::Record,
        Call::Done,
        Call::StreamWait,
        Call::HostWait,
        Call::Zero,
        Call::Budget,
    ];

    /// The name of the method.
    pub const fn name(self) -> &'static str {
        match self {
            Call::Reserve => "reserve",
            Call::Back => "back",
            Call::Unback => "unback",
            Call::Remap => "remap",
            Call::GrowSegment => "grow_segment",
            Call::Release => "release",
            Call::OpenStream => "open_stream",
            Call::Record => "record",
            Call::Done => "done",
            Call::StreamWait => "stream_wait",
            Call::HostWait => "host_wait",
            Call::Zero => "zero",
            Call::Budget => "budget",
        }
    }
}

/// What happened so far, and what is held now. Plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimCounters {
    /// Calls that succeeded, indexed by `Call as usize`; see [`SimCounters::succeeded`].
    pub calls: [u64; KINDS],
    /// Calls that failed for whatever reason, indexed likewise; see [`SimCounters::failed`].
    pub failures: [u64; KINDS],
    /// Pages that `back` put memory behind.
    pub pages_backed: u64,
    /// Pages that `unback` unmapped.
    pub pages_unbacked: u64,
    /// Of those, the pages whose memory went back to the device, because no other address mapped it.
    pub pages_freed: u64,
    /// Pages that `remap` mapped at a new address.
    pub pages_moved: u64,
    /// The same in bytes.
    pub bytes_moved: u64,
    /// Bytes that `zero` filled.
    pub bytes_zeroed: u64,
    /// Calls of `host_wait` that had to make unfinished work complete.
    pub waits_forced: u64,
    /// Physical bytes held now.
    pub used: u64,
    /// The most physical bytes held at once.
    pub peak_used: u64,
    /// The highest end offset ever mapped, summed over the regions that live now.
    pub address_end: u64,
    /// The most that `address_end` ever was.
    pub peak_address_end: u64,
    /// Open streams, the default one among them.
    pub streams: u64,
    /// Events recorded and not forgotten.
    pub live_events: u64,
    /// Rules broken so far (the list that [`super::Sim::violations`] gives is cut off at some length; this is not).
    pub violations: u64,
}

impl SimCounters {
    /// Calls of a kind that succeeded.
    pub fn succeeded(&self, call: Call) -> u64 {
        self.calls[call as usize]
    }

    /// Calls of a kind that failed.
    pub fn failed(&self, call: Call) -> u64 {
        self.failures[call as usize]
    }

    /// What happened after `before`, an earlier answer of the same device. What is held now, the peaks, and the broken rules of its whole life stay.
    pub fn since(&self, before: &SimCounters) -> SimCounters {
        SimCounters {
            calls: std::array::from_fn(|kind| self.calls[kind] - before.calls[kind]),
            failures: std::array::from_fn(|kind| self.failures[kind] - before.failures[kind]),
            pages_backed: self.pages_backed - before.pages_backed,
            pages_unbacked: self.pages_unbacked - before.pages_unbacked,
            pages_freed: self.pages_freed - before.pages_freed,
            pages_moved: self.pages_moved - before.pages_moved,
            bytes_moved: self.bytes_moved - before.bytes_moved,
            bytes_zeroed: self.bytes_zeroed - before.bytes_zeroed,
            waits_forced: self.waits_forced - before.waits_forced,
            ..*self
        }
    }
}

/// Which promise of the caller was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ViolationKind {
    /// Rule 1: a span that is empty, crooked or outside its region, or a region that does not live.
    Span,
    /// Rule 2: memory put where there is some already, or a reservation released with memory behind it.
    Backed,
    /// Rule 2: a page with nothing behind it unbacked, moved or used.
    Unbacked,
    /// Rule 3: an address taken away under work that is not finished.
    Unfinished,
    /// Rule 4: bytes used by a new owner's device work before the old owner's was ordered before it.
    Order,
    /// Rule 4: bytes touched by the CPU before another owner's work on them was complete.
    HostOrder,
    /// Rule 5: two threads in calls for one region.
    Concurrent,
    /// An event that was never recorded, or was forgotten.
    Event,
    /// A stream that is not open, or one closed with work on it.
    Stream,
}

impl ViolationKind {
    /// The number of the rule in the contract of [`crate::backend`]; `None` for the use of dead handles.
    pub fn rule(self) -> Option<u8> {
        match self {
            ViolationKind::Span => Some(1),
            ViolationKind::Backed | ViolationKind::Unbacked => Some(2),
            ViolationKind::Unfinished => Some(3),
            ViolationKind::Order | ViolationKind::HostOrder => Some(4),
            ViolationKind::Concurrent => Some(5),
            ViolationKind::Event | ViolationKind::Stream => None,
        }
    }
}

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub kind: ViolationKind,
    /// What was done, with regions, offsets, streams and owners.
    pub text: String,
}

/// Why a call went no further.
#[derive(Debug)]
pub(super) enum Stop {
    Broken(Violation),
    Refused(BackendError),
}

impl From<BackendError> for Stop {
    fn from(error: BackendError) -> Self {
        Stop::Refused(error)
    }
}

pub(super) fn broken(kind: ViolationKind, text: String) -> Stop {
    Stop::Broken(Violation { kind, text })
}

#[derive(Debug)]
struct Fault {
    call: Call,
    /// Calls until it strikes; 1 strikes at the next.
    left: u64,
    once: Once,
    error: BackendError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Once {
    /// Strikes at its call and is gone.
    Yes,
    /// Strikes from its call on.
    No,
}

/// Failures that are planned.
#[derive(Debug, Default)]
pub(super) struct Faults {
    plans: Vec<Fault>,
}

impl Faults {
    pub(super) fn plan(&mut self, call: Call, k: u64, once: Once, error: BackendError) {
        self.plans.push(Fault { call, left: k.max(1), once, error });
    }

    pub(super) fn clear(&mut self) {
        self.plans.clear();
    }

    /// Counts a call; fails when a plan says that this is the one. The plan made first wins.
    pub(super) fn strike(&mut self, call: Call) -> Result<(), BackendError> {
        let mut struck = None;
        self.plans.retain_mut(|plan| {
            if plan.call != call {
                return true;
            }
            if plan.left > 1 {
                plan.left -= 1;
                return true;
            }
            struck.get_or_insert_with(|| plan.error.clone());
            plan.once == Once::No
        });
        struck.map_or(Ok(()), Err)
    }
}
