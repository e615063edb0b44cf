//! What can be chosen, as plain data, and the choices that follow from it, as pure functions.

#![forbid(unsafe_code)]

use std::time::Duration;

use crate::units::{Bytes, MIB, align_down, align_up};

/// What happens when a request would pass a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum OnLimit {
    /// Every remedy is tried: waits, other pools, hooks, the request's deadline.
    #[default]
    Climb,
    /// Only what needs no waiting and no user code: the error comes at once.
    FailFast,
}

/// How much an out-of-memory error carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum ReportLevel {
    /// Request, trail, statistics and the largest holders: fixed size, no walk.
    #[default]
    Summary,
    /// A snapshot of every block too, but not more often than this; a summary in between.
    Full {
        /// Snapshots per second at most.
        at_most_per_second: u32,
    },
}

/// What debug mode does, to find writes to memory that the writer does not own.
///
/// Bytes are filled and looked at by the CPU: where memory is not the host's, only the quarantine can be had. Nothing is found of
/// reads, of writes that leave the bytes as they were, of writes to another live block, of writes before a block's start (but where
/// the block before it is guarded, as that one's overrun), and of a dropped block once it has left the quarantine. Blocks of no
/// bytes are not watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct DebugConfig {
    /// Whether new blocks are filled with one pattern and dropped ones with another, which is looked at when they leave the
    /// quarantine.
    pub poison: bool,
    /// Bytes behind each block, at least, that are filled with a third pattern and looked at when it is dropped. Counted as padding.
    /// At most 1 MiB.
    pub guard: u64,
    /// Bytes of dropped blocks that are kept from being used again. They are live in every figure and for every limit, until newer
    /// ones take their place, or a request could not be served otherwise.
    pub quarantine: u64,
}

impl Default for DebugConfig {
    /// Everything, with 64 bytes of guard and 64 MiB of quarantine.
    fn default() -> Self {
        DebugConfig { poison: true, guard: 64, quarantine: 64 * MIB }
    }
}

/// How an allocator behaves. Plain data: make it with `Config::default()`, change fields, or chain the few setters.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct Config {
    /// The most physical bytes to hold. `None`: what the backend gives (on hosts the cgroup's or machine's memory less 5 %).
    pub limit: Option<u64>,
    /// Above this many reserved bytes, idle memory of other pools and the reclaim hooks come before growth.
    pub soft_limit: Option<u64>,
    /// What happens at the limit.
    pub on_limit: OnLimit,
    /// How far reserved may exceed the peak of live before pages are moved instead. At least 1. Lower is denser, and moves more:
    /// 1.01 moves 4 to 5 times as many pages as 1.05 on real traces.
    pub slack: f64,
    /// Sizes and offsets are multiples of this. `None`: what suits the backend (512 on CUDA, 256 or more on wgpu, 64 on hosts).
    pub quantum: Option<u64>,
    /// Page of backends that can choose it. `None`: 2 MiB.
    pub page: Option<u64>,
    /// The least segment of backends without pages; larger requests get a segment of their own size.
    pub segment_min: u64,
    /// Whether pages may be mapped at two addresses while work on the old one is unfinished, where the backend can.
    pub alias: bool,
    /// Whether the host may wait for unfinished work so that pages can be moved, before memory grows beyond the slack. Of use where
    /// pages cannot be aliased: denser, at the price of waits, which are counted.
    pub wait_to_move: bool,
    /// The longest that one request waits for unfinished work of this allocator before it gives up.
    pub wait_max: Duration,
    /// After this share of the limit is reserved, `tick` returns idle memory down to `low_watermark`.
    pub high_watermark: f64,
    /// Where the return by `high_watermark` ends, as a share of the limit.
    pub low_watermark: f64,
    /// `tick` returns what was not used for this long. `None`: nothing.
    pub decay: Option<Duration>,
    /// Completed work is looked for every so many allocations when there are several streams; with more than twice as many live
    /// blocks, every half as many allocations as there are. A request that finds nothing always looks.
    pub poll_every: u32,
    /// What an out-of-memory error carries.
    pub report: ReportLevel,
    /// How many events each pool keeps for snapshots and reports ([`crate::snapshot::History`]), later ones over the oldest; 48 bytes
    /// each, taken at once. 0: none, at no cost. At most 2^24.
    pub history: usize,
    /// Looking for misuse of memory. `None`: no such thing, at no cost. Fixed when the allocator is made.
    pub debug: Option<DebugConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            limit: None,
            soft_limit: None,
            on_limit: OnLimit::Climb,
            slack: 1.05,
            quantum: None,
            page: None,
            segment_min: 2 * MIB,
            alias: true,
            wait_to_move: false,
            wait_max: Duration::from_secs(30),
            high_watermark: 1.0,
            low_watermark: 0.9,
            decay: None,
            poll_every: 512,
            report: ReportLevel::Summary,
            history: 0,
            debug: None,
        }
    }
}

/// Why a config cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A size must be a power of two within bounds.
    #[error("{key} = {value}: must be a power of two from {min} to {max}")]
    NotPowerOfTwo {
        /// The field.
        key: &'static str,
        /// What it was.
        value: u64,
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// A number is out of its range.
    #[error("{key} = {value}: must be from {min} to {max}")]
    OutOfRange {
        /// The field.
        key: &'static str,
        /// What it was.
        value: f64,
        /// Least.
        min: f64,
        /// Most.
        max: f64,
    },
    /// A field asks for what this memory cannot do.
    #[error("{key}: not with memory of {memory}, whose bytes the CPU does not see")]
    NotHere {
        /// The field.
        key: &'static str,
        /// The backend's name.
        memory: &'static str,
    },
    /// Two fields contradict each other.
    #[error("{low} = {low_value} is above {high} = {high_value}")]
    Contradiction {
        /// The field that must not be larger.
        low: &'static str,
        /// Its value.
        low_value: f64,
        /// The field that must not be smaller.
        high: &'static str,
        /// Its value.
        high_value: f64,
    },
    /// There is no such key.
    #[error("unknown key `{key}`; the keys are {known}")]
    UnknownKey {
        /// What was given.
        key: String,
        /// What there is.
        known: &'static str,
    },
    /// A text is not a value of its key.
    #[error("{key}: `{value}` is not {wanted}")]
    BadValue {
        /// The key.
        key: String,
        /// What was given.
        value: String,
        /// What belongs there.
        wanted: &'static str,
    },
}

const KEYS: &str = "limit, soft_limit, on_limit, slack, quantum, page, segment_min, alias, wait_to_move, wait_max, high_watermark, \
                    low_watermark, decay, poll_every, report, history, debug";

impl Config {
    /// Sets the limit.
    pub fn limit(mut self, bytes: u64) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// Sets the slack.
    pub fn slack(mut self, slack: f64) -> Self {
        self.slack = slack;
        self
    }

    /// Sets how many events each pool keeps.
    pub fn history(mut self, events: usize) -> Self {
        self.history = events;
        self
    }

    /// Switches debug mode on.
    pub fn debug(mut self, debug: DebugConfig) -> Self {
        self.debug = Some(debug);
        self
    }

    /// Whether the fields make sense, alone and together.
    ///
    /// # Errors
    /// The first field or pair of fields that does not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let power = |key, value: Option<u64>, min, max| match value {
            Some(value) if !value.is_power_of_two() || value < min || value > max => {
                Err(ConfigError::NotPowerOfTwo { key, value, min, max })
            }
            _ => Ok(()),
        };
        let range = |key, value: f64, min, max| {
            if value >= min && value <= max { Ok(()) } else { Err(ConfigError::OutOfRange { key, value, min, max }) }
        };
        power("quantum", self.quantum, 16, MIB)?;
        power("page", self.page, 4096, 1 << 36)?;
        range("slack", self.slack, 1.0, 1e6)?;
        range("high_watermark", self.high_watermark, 0.0, 1.0)?;
        range("low_watermark", self.low_watermark, 0.0, 1.0)?;
        range("poll_every", f64::from(self.poll_every), 1.0, f64::from(u32::MAX))?;
        range("history", self.history as f64, 0.0, f64::from(1 << 24))?;
        range("debug.guard", self.debug.map_or(0.0, |debug| debug.guard as f64), 0.0, MIB as f64)?;
        range("segment_min", self.segment_min as f64, 4096.0, (1u64 << 40) as f64)?;
        ordered("low_watermark", self.low_watermark, "high_watermark", self.high_watermark)?;
        if let (Some(soft), Some(hard)) = (self.soft_limit, self.limit) {
            ordered("soft_limit", soft as f64, "limit", hard as f64)?;
        }
        if let (Some(quantum), Some(page)) = (self.quantum, self.page) {
            ordered("quantum", quantum as f64, "page", page as f64)?;
        }
        Ok(())
    }

    /// Sets one field from text, as the tool's `--config key=value` does. Sizes as [`Bytes`], times in seconds.
    ///
    /// # Errors
    /// An unknown key, or a value that its key does not take.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        let bad = |wanted| ConfigError::BadValue { key: key.into(), value: value.into(), wanted };
        let bytes = || value.parse::<Bytes>().map(|b| b.0).map_err(|_| bad("a size"));
        let number = || value.parse::<f64>().map_err(|_| bad("a number"));
        let seconds = || {
            let seconds = number()?;
            Duration::try_from_secs_f64(seconds).map_err(|_| bad("a time in seconds"))
        };
        match key {
            "limit" => self.limit = Some(bytes()?),
            "soft_limit" => self.soft_limit = Some(bytes()?),
            "on_limit" => {
                self.on_limit = match value {
                    "climb" => OnLimit::Climb,
                    "fail-fast" => OnLimit::FailFast,
                    _ => return Err(bad("climb or fail-fast")),
                }
            }
            "slack" => self.slack = number()?,
            "quantum" => self.quantum = Some(bytes()?),
            "page" => self.page = Some(bytes()?),
            "segment_min" => self.segment_min = bytes()?,
            "alias" => self.alias = value.parse().map_err(|_| bad("true or false"))?,
            "wait_to_move" => self.wait_to_move = value.parse().map_err(|_| bad("true or false"))?,
            "wait_max" => self.wait_max = seconds()?,
            "high_watermark" => self.high_watermark = number()?,
            "low_watermark" => self.low_watermark = number()?,
            "decay" => self.decay = Some(seconds()?),
            "report" => {
                self.report = match (value, value.strip_prefix("full:").map(str::parse)) {
                    ("summary", _) => ReportLevel::Summary,
                    (_, Some(Ok(at_most_per_second))) => ReportLevel::Full { at_most_per_second },
                    _ => return Err(bad("summary or full:TIMES_PER_SECOND")),
                }
            }
            "history" => self.history = value.parse().map_err(|_| bad("a whole number"))?,
            "debug" => {
                let on: bool = value.parse().map_err(|_| bad("true or false"))?;
                self.debug = on.then(DebugConfig::default);
            }
            "poll_every" => self.poll_every = value.parse().map_err(|_| bad("a whole number"))?,
            _ => return Err(ConfigError::UnknownKey { key: key.into(), known: KEYS }),
        }
        Ok(())
    }
}

fn ordered(low: &'static str, low_value: f64, high: &'static str, high_value: f64) -> Result<(), ConfigError> {
    if low_value <= high_value { Ok(()) } else { Err(ConfigError::Contradiction { low, low_value, high, high_value }) }
}

/// How a pool differs from its allocator.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PoolConfig {
    /// The most physical bytes this pool may hold.
    pub limit: Option<u64>,
    /// Bytes that other pools leave to this one: they neither reserve them under the common limit nor take them back when they lie idle
    /// here. Without a common limit only the latter.
    pub guarantee: u64,
    /// The tag of blocks that are made without one. Fixed when the pool is made.
    pub tag: Option<String>,
}

impl PoolConfig {
    /// Whether the fields make sense together.
    ///
    /// # Errors
    /// A guarantee above the limit.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ordered("guarantee", self.guarantee as f64, "limit", self.limit.unwrap_or(u64::MAX) as f64)
    }
}

/// Bytes that growth may add while reserved stays within the slack over the most that is live.
pub fn slack_room(slack: f64, crest: u64, reserved: u64) -> u64 {
    ((slack * crest as f64) as u64).saturating_sub(reserved)
}

/// The slack of memory in segments, at most. More would not be used: segments cannot be moved together when they lie idle.
pub const SEGMENT_SLACK: f64 = 1.02;

/// Segments are multiples of this: drivers round to a page of theirs anyway.
const SEGMENT_QUANTUM: u64 = 4096;

/// The least bytes of the segment for a request, on backends without pages; `None` when they do not fit in 64 bits.
pub fn segment_size(request: u64, segment_min: u64, quantum: u64) -> Option<u64> {
    align_up(request.max(segment_min), SEGMENT_QUANTUM.max(quantum))
}

/// Bytes of a segment that serves later requests too: a 64th of the most that was ever live, where the slack leaves so much.
///
/// Few large segments fragment less than many small ones, but what is left of the last one is lost: on ten real traces parts from a
/// 128th to an 8th were within 2 % of each other in the mean.
pub fn roomy_segment(crest: u64, spare: u64, quantum: u64) -> u64 {
    align_down((crest / 64).min(spare), SEGMENT_QUANTUM.max(quantum))
}
