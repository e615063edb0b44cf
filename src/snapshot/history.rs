//! What happened to an allocator, event by event, as far back as it was kept.

use std::fmt;

use super::Site;
use crate::ids::{BlockId, PoolId, StreamId};
use crate::units::Bytes;

/// What an event was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Action {
    /// A block was given out.
    Alloc,
    /// A block came back.
    Free,
    /// A block is used on `stream` too, from here on.
    Use,
    /// Memory was had from the backend.
    Grow,
    /// Memory went back to the backend.
    Return,
    /// Free pages moved to `address`.
    Remap,
    /// Idle memory was asked to go back, by a call or by time; `size` bytes did, of all pools. An event of the first pool.
    Trim,
    /// `stream` waits for `other`, on the device.
    StreamWait,
    /// The host waited for `stream`.
    HostWait,
    /// A request could not be served.
    Oom,
}

impl Action {
    /// All of them, in the order of their numbers.
    pub const ALL: [Action; 10] = [
        Action::Alloc,
        Action::Free,
        Action::Use,
        Action::Grow,
        Action::Return,
        Action::Remap,
        Action::Trim,
        Action::StreamWait,
        Action::HostWait,
        Action::Oom,
    ];
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Action::Alloc => "alloc",
            Action::Free => "free",
            Action::Use => "used on",
            Action::Grow => "grow",
            Action::Return => "return",
            Action::Remap => "remap",
            Action::Trim => "trim",
            Action::StreamWait => "stream wait",
            Action::HostWait => "host wait",
            Action::Oom => "out of memory",
        })
    }
}

/// One event. What an action has no use for is 0, empty or `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Event {
    /// Its place in the order, and its time, in nanoseconds since [`History::epoch`]; [`History`] says how exactly.
    pub stamp: u64,
    /// What it was.
    pub action: Action,
    /// Its pool.
    pub pool: PoolId,
    /// The block (`Alloc`, `Free`, `Use`). An id names one allocation of its pool only.
    pub block: Option<BlockId>,
    /// The address of the first byte: of the block, or of what was mapped or unmapped.
    pub address: u64,
    /// Bytes asked for.
    pub requested: u64,
    /// Bytes: of the block, or of what was moved, had or given back.
    pub size: u64,
    /// Alignment asked for, in bytes (`Alloc`, `Oom`); 1 otherwise.
    pub align: u64,
    /// The stream: the block's own (`Alloc`, `Free`), the further one (`Use`), the one that waits or is waited for.
    pub stream: StreamId,
    /// The stream that is waited for (`StreamWait`).
    pub other: Option<StreamId>,
    /// The block's label, or that of the request which brought it about; empty when there is none.
    pub tag: String,
    /// Who asked for the block, or made the request which brought it about.
    pub site: Option<Site>,
}

impl fmt::Display for Event {
    /// Time in seconds, action, size, block, stream, label and site, in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = if self.requested > 0 { self.requested } else { self.size };
        let size = if bytes > 0 { Bytes(bytes).to_string() } else { String::new() };
        let block = self.block.map(|block| format!("{block:?}")).unwrap_or_default();
        let streams = match self.other {
            Some(other) => format!("{}<{other}", self.stream),
            None => self.stream.to_string(),
        };
        let tag = if self.tag.is_empty() { "(no tag)" } else { &self.tag };
        let seconds = self.stamp as f64 / 1e9;
        write!(f, "{seconds:>12.6} s  {:<13} {size:>12}  {block:<10} {streams:<8} {tag:<16}", self.action)?;
        match &self.site {
            Some(site) => write!(f, " {site}"),
            None => Ok(()),
        }
    }
}

/// How far back a pool's events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Window {
    /// The pool.
    pub pool: PoolId,
    /// No event of the pool at or after this stamp is missing, but for what was overwritten before the last stamp was put back
    /// ([`History`]).
    pub from: u64,
    /// Events that were overwritten by later ones.
    pub overwritten: u64,
}

/// The events of all pools, in order, as far back as they were kept.
///
/// # Order and time
/// An event's stamp is both. It is one more than the last stamp of any pool; now and then a clock is read, and stamps go on from
/// there. So
/// * stamps of one pool rise with every event;
/// * an event has a larger stamp than every event, of any pool, that its thread did before or knew of, by a lock or a channel, unless
///   the last stamp was put back meanwhile: it is read and written without an atomic instruction that locks, so that a thread which
///   is interrupted between the two puts it back by as long as the interruption took. From then until the clock is read the next
///   time, stamps may be too small by as much, and events of different pools out of order, those of one thread too;
/// * the clock is read after every 128th event of a pool and before every event that is no `Alloc`, `Free` or `Use`. An event
///   happened at its stamp or later, but before the next reading.
///
/// All pools write the last stamp, one word in memory: while a history is kept, pools at work on different cores slow each other
/// down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct History {
    /// The time of stamp 0, in nanoseconds since 1970 (UTC).
    pub epoch: u64,
    /// How far back each pool's events go.
    pub windows: Vec<Window>,
    /// The events, by stamp. Each pool's end when the pool was copied.
    pub events: Vec<Event>,
}

impl History {
    /// No event of any pool at or after this stamp is missing.
    pub fn whole_from(&self) -> u64 {
        self.windows.iter().map(|window| window.from).max().unwrap_or(0)
    }

    /// Events of all pools that were overwritten.
    pub fn overwritten(&self) -> u64 {
        self.windows.iter().map(|window| window.overwritten).sum()
    }
}
