//! Why a request failed: what was asked for, what was tried, and the figures at that moment.

use std::fmt;

use super::{Event, Site, Snapshot, TagRecord};
use crate::backend::Budget;
use crate::ids::{PoolId, StreamId};
use crate::stats::Stats;
use crate::units::{Bytes, align_up};

/// One remedy against a lack of memory, in the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Rung {
    /// A free block that the stream may use at once.
    Reuse,
    /// Look for completed work of other streams, then reuse.
    Poll,
    /// New memory while reserved stays within the slack.
    GrowWithinSlack,
    /// Move free pages together.
    Remap,
    /// A free block, or free pages, behind a wait for another stream on the device.
    Wait,
    /// New memory up to the limit and the device.
    Grow,
    /// Idle memory of other pools under the same limit.
    OtherPools,
    /// Return what is idle, then grow.
    ReturnIdle,
    /// Wait on the host for unfinished work of this allocator.
    HostWait,
    /// Let go of what debug mode keeps in quarantine.
    Quarantine,
    /// Ask the user's reclaim hooks.
    Hooks,
    /// Wait for somebody to free, until the request's deadline.
    Deadline,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Rung::Reuse => "reuse",
            Rung::Poll => "poll completed work",
            Rung::GrowWithinSlack => "grow within the slack",
            Rung::Remap => "move free pages",
            Rung::Wait => "wait on the device",
            Rung::Grow => "grow to the limit",
            Rung::OtherPools => "idle memory of other pools",
            Rung::ReturnIdle => "return idle memory",
            Rung::HostWait => "wait for unfinished work",
            Rung::Quarantine => "end the quarantine",
            Rung::Hooks => "reclaim hooks",
            Rung::Deadline => "wait until the deadline",
        })
    }
}

/// What came of a remedy.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Outcome {
    /// Nothing free fits: this is the largest free block.
    NoFit {
        /// Bytes.
        largest_free: u64,
    },
    /// It freed so many bytes, and the search went on.
    Freed {
        /// Bytes.
        bytes: u64,
    },
    /// It would need more bytes than it may add.
    NeedsMore {
        /// Bytes that would be needed.
        needed: u64,
        /// Bytes that may be had.
        room: u64,
    },
    /// Free pages elsewhere do not suffice.
    TooFewPages {
        /// Bytes of pages needed.
        needed: u64,
        /// Bytes of pages that could be moved or added.
        found: u64,
    },
    /// The device refused.
    Refused {
        /// What it said.
        reason: String,
    },
    /// The time given was over.
    TimedOut,
    /// It does not apply here.
    NotApplicable {
        /// Why not.
        reason: &'static str,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::NoFit { largest_free: 0 } => write!(f, "nothing is free"),
            Outcome::NoFit { largest_free } => write!(f, "no fit, the largest free block is {}", Bytes(*largest_free)),
            Outcome::Freed { bytes } => write!(f, "freed {}", Bytes(*bytes)),
            Outcome::NeedsMore { needed, room } => {
                write!(f, "needs {} more, may add {}", Bytes(*needed), Bytes(*room))
            }
            Outcome::TooFewPages { needed, found } => {
                write!(f, "needs {} of pages, {} could be had", Bytes(*needed), Bytes(*found))
            }
            Outcome::Refused { reason } => write!(f, "refused: {reason}"),
            Outcome::TimedOut => write!(f, "the time was over"),
            Outcome::NotApplicable { reason } => write!(f, "skipped: {reason}"),
        }
    }
}

/// One line of the trail.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Step {
    /// The remedy.
    pub rung: Rung,
    /// What came of it.
    pub outcome: Outcome,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RequestRecord {
    /// Bytes asked for.
    pub requested: u64,
    /// Bytes after rounding to the quantum.
    pub rounded: u64,
    /// Alignment in bytes.
    pub align: u64,
    /// The stream that wanted it.
    pub stream: StreamId,
    /// The pool.
    pub pool: PoolId,
    /// The pool's name.
    pub pool_name: String,
    /// Label; empty when it has none.
    pub tag: String,
    /// Who asked.
    pub site: Site,
}

/// Why the request failed, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Verdict {
    /// More than the limit allows in all, whatever is freed.
    LargerThanLimit,
    /// The limit stands in the way: live memory and the request together pass it.
    LimitReached,
    /// The device has no more: live memory and the request together pass what it has for us.
    DeviceFull,
    /// Enough bytes are free, but not in one piece, and pages cannot be moved here.
    Fragmented,
    /// Enough bytes are free, but in parts of pages that something live shares: too few whole pages.
    TooFewPages,
    /// Enough bytes would be free once unfinished work is complete.
    WaitingForWork,
    /// The deadline was over before it was this request's turn to look for memory.
    DeadlineOver,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::LargerThanLimit => "the request alone is larger than the limit",
            Verdict::LimitReached => "what is live and the request together pass the limit",
            Verdict::DeviceFull => "what is live and the request together pass what the device has",
            Verdict::Fragmented => "enough is free, but not in one piece",
            Verdict::TooFewPages => "enough bytes are free, but too few whole pages",
            Verdict::DeadlineOver => "the deadline was over before it was this request's turn",
            Verdict::WaitingForWork => "enough would be free once unfinished work is complete",
        })
    }
}

/// Why memory ran out: the request, what was tried, and the state at that moment.
///
/// `{}` and `{:?}` are the text for people, so that an error that ends a program by `?` can be read; `{:#?}` has the figures.
#[derive(Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct OomReport {
    /// [`VERSION`](super::VERSION).
    pub version: u32,
    /// What was asked for.
    pub request: RequestRecord,
    /// What was tried, in order.
    pub trail: Vec<Step>,
    /// The backend's name.
    pub backend: &'static str,
    /// The figures of the pool.
    pub stats: Stats,
    /// The limit that applies, if any: the pool's, or that of all pools less what is promised to others.
    pub limit: Option<u64>,
    /// Live bytes of other pools under the same limit; 0 where the limit is the pool's own.
    pub live_elsewhere: u64,
    /// Bytes of a page, where memory comes in pages.
    pub page: Option<u64>,
    /// Whether free pages can be moved together.
    pub moves: bool,
    /// Bytes that growth may still add: what the limit leaves, or what the device has where that is known and less.
    pub room: u64,
    /// Size of the pool's largest free block.
    pub largest_free: u64,
    /// Who holds most in the pool, largest first (at most [`OomReport::HOLDERS`]).
    pub holders: Vec<TagRecord>,
    /// Idle bytes of other pools of this allocator.
    pub idle_elsewhere: u64,
    /// What the device said when it was asked after the failure.
    pub budget: Option<Budget>,
    /// The last events of the pool when the report was made, where the config keeps a history (at most [`OomReport::EVENTS`]). This
    /// failure is among them, unless other threads did as much in the pool since.
    pub events: Vec<Event>,
    /// Every block, when the config asks for full reports.
    pub snapshot: Option<Box<Snapshot>>,
}

impl OomReport {
    /// How many holders a report names.
    pub const HOLDERS: usize = 5;
    /// How many events a report carries.
    pub const EVENTS: usize = 16;
    /// How many of them its text shows.
    const EVENTS_SHOWN: usize = 6;

    /// Why the request failed.
    pub fn verdict(&self) -> Verdict {
        let (rounded, stats) = (self.request.rounded, &self.stats);
        if let [Step { rung: Rung::Deadline, .. }] = self.trail.as_slice() {
            return Verdict::DeadlineOver;
        }
        match self.limit {
            Some(limit) if rounded > limit => return Verdict::LargerThanLimit,
            Some(limit) if self.wanted_live() > limit => return Verdict::LimitReached,
            _ => {}
        }
        let had = stats.idle().saturating_add(self.room);
        if had >= rounded {
            match (self.moves, stats.idle()) {
                (true, _) => Verdict::TooFewPages,
                (false, 0) if self.is_refused() => Verdict::DeviceFull,
                (false, _) => Verdict::Fragmented,
            }
        } else if had.saturating_add(stats.pending.current) >= rounded {
            Verdict::WaitingForWork
        } else if self.limit.is_some() && !self.is_refused() {
            Verdict::LimitReached
        } else {
            Verdict::DeviceFull
        }
    }

    /// Whether the device refused.
    fn is_refused(&self) -> bool {
        self.trail.iter().any(|step| matches!(step.outcome, Outcome::Refused { .. }))
    }

    /// Bytes that were wanting in the end, in whole pages, where the trail tells.
    fn shortage(&self) -> Option<u64> {
        self.trail.iter().rev().find_map(|step| match step.outcome {
            Outcome::TooFewPages { needed, found } => Some(needed.saturating_sub(found)),
            _ => None,
        })
    }

    /// Bytes as memory comes: in whole pages.
    fn in_pages(&self, bytes: u64) -> Bytes {
        Bytes(self.page.and_then(|page| align_up(bytes.max(1), page)).unwrap_or(bytes))
    }

    /// What would be live, under the limit that applies, if the request were served.
    fn wanted_live(&self) -> u64 {
        self.stats.live.current.saturating_add(self.live_elsewhere).saturating_add(self.request.rounded)
    }

    /// What would let the same request succeed, in words.
    pub fn remedy(&self) -> String {
        let (rounded, stats) = (self.request.rounded, &self.stats);
        match (self.verdict(), self.limit) {
            (Verdict::LargerThanLimit, Some(limit)) => {
                format!("ask for at most {}, or raise the limit by {}", Bytes(limit), self.in_pages(rounded - limit))
            }
            (Verdict::LimitReached, Some(limit)) => {
                // What idle memory elsewhere could add is not in the trail's count.
                let counted = if self.idle_elsewhere == 0 { self.shortage() } else { None };
                let wanted = counted.map_or(self.wanted_live(), |short| self.wanted_live().max(limit + short));
                let had = stats.idle().saturating_add(self.room);
                let short = wanted.saturating_sub(limit).max(rounded.saturating_sub(had));
                format!("free {}, or raise the limit by as much", self.in_pages(short))
            }
            (Verdict::TooFewPages, limit) => {
                let short = self.in_pages(self.shortage().unwrap_or(1));
                let limit = if limit.is_some() { ", raise the limit by as much" } else { "" };
                let page = Bytes(self.page.unwrap_or(0));
                format!("free {short} in whole pages{limit}, or choose pages smaller than {page} in the config")
            }
            (Verdict::Fragmented, _) => {
                format!(
                    "free what keeps {} of free memory apart, or use memory whose pages can be moved",
                    Bytes(stats.idle())
                )
            }
            (Verdict::DeadlineOver, _) => "give the request more time".to_string(),
            (Verdict::WaitingForWork, _) => "let unfinished work complete, or give the request a deadline".to_string(),
            // What the device still has, and what is idle here, counts too.
            _ => {
                let had = stats.idle().saturating_add(self.room);
                format!("free {} first, here or elsewhere on the device", self.in_pages(rounded.saturating_sub(had)))
            }
        }
    }
}

impl fmt::Debug for OomReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return fmt::Display::fmt(self, f);
        }
        f.debug_struct("OomReport")
            .field("verdict", &self.verdict())
            .field("request", &self.request)
            .field("trail", &self.trail)
            .field("backend", &self.backend)
            .field("stats", &self.stats)
            .field("limit", &self.limit)
            .field("live_elsewhere", &self.live_elsewhere)
            .field("page", &self.page)
            .field("moves", &self.moves)
            .field("room", &self.room)
            .field("largest_free", &self.largest_free)
            .field("holders", &self.holders)
            .field("idle_elsewhere", &self.idle_elsewhere)
            .field("budget", &self.budget)
            .field("events", &self.events)
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for OomReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (request, stats) = (&self.request, &self.stats);
        let tag = if request.tag.is_empty() { String::new() } else { format!(" for {}", request.tag) };
        writeln!(f, "out of memory: {}{tag} at {}", Bytes(request.requested), request.site)?;
        writeln!(f, "  why       {}", self.verdict())?;
        writeln!(f, "  remedy    {}", self.remedy())?;
        write!(f, "  pool      {} of {}", request.pool_name, self.backend)?;
        match self.limit {
            Some(limit) => writeln!(f, ", limit {}", Bytes(limit))?,
            None => writeln!(f, ", no limit")?,
        }
        writeln!(
            f,
            "  memory    live {} in {} blocks, pending {}, idle {}, reserved {} (peak {})",
            Bytes(stats.live.current),
            stats.blocks.current,
            Bytes(stats.pending.current),
            Bytes(stats.idle()),
            Bytes(stats.reserved.current),
            Bytes(stats.reserved.peak)
        )?;
        writeln!(
            f,
            "  free      largest block {}, idle in other pools {}",
            Bytes(self.largest_free),
            Bytes(self.idle_elsewhere)
        )?;
        if let Some(budget) = self.budget {
            writeln!(f, "  device    {} free of {}", Bytes(budget.free), Bytes(budget.total))?;
        }
        let untagged = matches!(self.holders.as_slice(), [only] if only.tag.is_empty());
        for (at, holder) in self.holders.iter().enumerate().filter(|_| !untagged) {
            let tag = if holder.tag.is_empty() { "(no tag)" } else { &holder.tag };
            let title = if at == 0 { "held by" } else { "" };
            writeln!(f, "  {title:<9} {:>12} in {:>6} blocks  {tag}", Bytes(holder.live).to_string(), holder.blocks)?;
        }
        for (at, step) in self.trail.iter().enumerate() {
            let title = if at == 0 { "tried" } else { "" };
            writeln!(f, "  {title:<9} {:<26} {}", step.rung, step.outcome)?;
        }
        let shown = self.events.len().saturating_sub(Self::EVENTS_SHOWN);
        for (at, event) in self.events[shown..].iter().enumerate() {
            let title = if at == 0 { "lately" } else { "" };
            writeln!(f, "  {title:<9} {event}")?;
        }
        Ok(())
    }
}
