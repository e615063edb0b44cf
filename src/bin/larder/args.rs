//! The arguments, as clap reads them, and the library's configs that they mean.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, Subcommand, ValueEnum};

use larder::Config;
use larder::backend::sim::Lag;
use larder::device::Kind;
use larder::trace::replay::{ReplayConfig, Stage};
use larder::units::Bytes;

/// A caching memory allocator for host and GPU memory: its tool.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Plays allocation traces on an allocator and says what it took
    #[command(after_long_help = WORDS)]
    Replay(Replay),
    /// Says which devices can be had here, what each offers, and why the others cannot be had
    Probe(Probe),
}

#[derive(Debug, clap::Args)]
pub struct Probe {
    /// One line of JSON for each device instead of a text
    #[arg(long)]
    pub json: bool,
}

const WORDS: &str = "\
Figures (with --json one line a trace; null where a figure does not apply or was not asked for):
  peak_requested      most bytes asked for and live at once
  peak_live           the same, each block rounded up to the quantum
  peak_reserved       most physical bytes held from the device at once
  ratio               peak_reserved / peak_requested
  min_capacity        least device on which the trace passes (--find-min)
  device_allocs       segments made, plus pages that new memory was put behind
  device_frees        segments released, plus pages whose memory went back to the device
  device_maps         calls that map memory: to back pages, or to move them
  device_remaps       pages moved; bytes_moved is the same in bytes
  bytes_allocated     sum of all requests
  stream_waits        waits put between two streams, on the device
  host_waits          times the host waited for the device
  address_space_peak  most bytes of addresses in use at once
  ns_per_event        least wall time of a warm pass / events, through the public API with everything on
  ns_cpu_median       the same by the median of the thread's CPU time
  passes              how many passes were timed: 9, each the trace as often as fills 50 ms
  peaks               peak reserved bytes and addresses of each pass (--repeat): first, last, most
  verdict             `passes`, or where and why it stopped; then `report` has the allocator's own words
With --repeat all figures are of the last pass. A warm pass frees what is live at its end; those frees are events too.

Keys of --config, with what holds when they are not given (sizes in powers of 1024, times in seconds):
  slack=1.05             how far reserved may exceed the peak of live before pages are moved instead; 1 or more
  page=2MiB quantum=512  the unit in which memory is had and moved; what every size is a multiple of (64 on hosts)
  limit= soft_limit=     most bytes held; above the soft one hooks come before growth (none; hosts: memory less 5 %)
  on_limit=climb         or fail-fast: no waiting and no hooks at the limit
  segment_min=2MiB       least segment of memory without pages
  alias=true             whether moved pages stay mapped at their old address until work there is complete
  wait_to_move=false     whether the host may wait so that pages can be moved, where they cannot be aliased
  wait_max=30            longest wait of one request for unfinished work on the host
  poll_every=512         allocations between two looks for completed work
  high_watermark=1 low_watermark=0.9 decay= report=summary   for servers; a replay does not tick

Exit status: 0 every trace passed, 1 some trace did not, 2 wrong usage or an unreadable file, 3 a backend that cannot be had here
(`larder probe` says which can).";

#[derive(Debug, clap::Args)]
pub struct Replay {
    /// Traces, plain or gzip
    #[arg(required = true, value_name = "TRACE")]
    pub traces: Vec<PathBuf>,
    /// Where to play: on a simulated device that moves pages (sim) or gives segments (sim-segments), or in real memory
    /// (host, file:FOLDER, cuda:NUMBER, wgpu)
    #[arg(long, default_value = "sim")]
    pub backend: BackendArg,
    /// Bytes of the simulated device (1 TiB when not given), or the limit in real memory (e.g. 512MiB)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub capacity: Option<Bytes>,
    /// Also find the least capacity with which the trace passes, and play it there; slack is 1.0 and lag 0 unless given
    #[arg(long, conflicts_with = "capacity")]
    pub find_min: bool,
    /// Streams: those of the trace, or all events on one
    #[arg(long, value_enum, default_value = "as-recorded")]
    pub streams: StreamsArg,
    /// Deal the blocks of a trace to N streams, in turn by its markers (uses on further streams are left out)
    #[arg(long, value_name = "N", conflicts_with = "streams", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub spread: Option<u16>,
    /// Work on the simulated device is complete so many events after it was issued [default: 1000]
    #[arg(long, value_name = "EVENTS|never", value_parser = lag, allow_hyphen_values = true)]
    pub lag: Option<Lag>,
    /// Play the trace N times on one allocator; what is live at the end of a pass is freed
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Settings of the allocator, e.g. slack=1.01,page=2MiB,quantum=512 (all keys: --help)
    #[arg(long, value_name = "KEY=VALUE,...", value_delimiter = ',', value_parser = setting)]
    pub config: Vec<(String, String)>,
    /// Write what the allocator holds when most is requested, as JSON (one trace only)
    #[arg(long, value_name = "FILE")]
    pub snapshot: Option<PathBuf>,
    /// One line of JSON for each trace instead of a table
    #[arg(long)]
    pub json: bool,
    /// Time warm passes [the default, unless --find-min or --repeat is given]
    #[arg(long, overrides_with = "no_time")]
    pub time: bool,
    /// Do not time
    #[arg(long)]
    pub no_time: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendArg {
    Sim,
    SimSegments,
    Real(Kind),
}

impl FromStr for BackendArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sim-segments" => Ok(BackendArg::SimSegments),
            _ => match text.parse() {
                Ok(Kind::Simulated) => Ok(BackendArg::Sim),
                Ok(kind) => Ok(BackendArg::Real(kind)),
                Err(_) => Err("must be sim, sim-segments, host, file:FOLDER, cuda, cuda:NUMBER or wgpu".into()),
            },
        }
    }
}

/// As on the command line.
impl fmt::Display for BackendArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackendArg::Sim => f.pad("sim"),
            BackendArg::SimSegments => f.pad("sim-segments"),
            BackendArg::Real(kind) => kind.fmt(f),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StreamsArg {
    One,
    AsRecorded,
}

impl BackendArg {
    /// Whether there is a device whose work takes time and whose calls are counted.
    pub fn is_simulated(&self) -> bool {
        !matches!(self, BackendArg::Real(_))
    }

    fn stage(&self) -> Stage {
        match self {
            BackendArg::Sim => Stage::Sim,
            BackendArg::SimSegments => Stage::SimSegments,
            BackendArg::Real(kind) => Stage::Device(kind.clone()),
        }
    }
}

impl Replay {
    /// What the library is asked for.
    ///
    /// # Errors
    /// In words, what of the usage is wrong that clap cannot see.
    pub fn config(&self) -> Result<ReplayConfig, String> {
        if self.snapshot.is_some() && self.traces.len() > 1 {
            return Err("--snapshot writes one file: give one trace".into());
        }
        if self.find_min && !self.backend.is_simulated() {
            return Err("--find-min searches on a simulated device: --backend sim or sim-segments".into());
        }
        if self.lag.is_some() && !self.backend.is_simulated() {
            return Err("--lag is for simulated devices: real work takes its own time".into());
        }
        let mut config = Config::default();
        if self.find_min {
            config.slack = 1.0;
        }
        for (key, value) in &self.config {
            config.set(key, value).map_err(|error| format!("--config: {error}"))?;
        }
        config.validate().map_err(|error| format!("--config: {error}"))?;
        Ok(ReplayConfig {
            stage: self.backend.stage(),
            capacity: self.capacity.map(|bytes| bytes.0),
            lag: self.lag.unwrap_or(Lag::Events(if self.find_min { 0 } else { 1000 })),
            repeat: self.repeat,
            config,
        })
    }

    /// Whether warm passes are timed.
    pub fn is_timed(&self) -> bool {
        self.time || !(self.no_time || self.find_min || self.repeat > 1)
    }
}

fn lag(text: &str) -> Result<Lag, String> {
    match text {
        "never" => Ok(Lag::Never),
        _ => text.parse().map(Lag::Events).map_err(|_| "must be a number of events, or `never`".into()),
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("settings are written key=value")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(arguments: &[&str]) -> Replay {
        match Args::parse_from([&["larder", "replay", "t"], arguments].concat()).command {
            Command::Replay(replay) => replay,
            Command::Probe(_) => unreachable!(),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn the_least_capacity_is_sought_densely_unless_told_otherwise() {
        let config = replay(&["--find-min"]).config().unwrap();
        assert_eq!((config.config.slack, config.lag), (1.0, Lag::Events(0)));
        let config = replay(&["--find-min", "--lag", "never", "--config", "slack=1.5"]).config().unwrap();
        assert_eq!((config.config.slack, config.lag), (1.5, Lag::Never));
        let config = replay(&[]).config().unwrap();
        assert_eq!((config.config.slack, config.lag), (1.05, Lag::Events(1000)));
    }

    #[test]
    fn backends_are_read_as_they_are_written() {
        for text in ["sim", "sim-segments", "host", "file:/tmp", "cuda:1", "wgpu"] {
            assert_eq!(text.parse::<BackendArg>().unwrap().to_string(), text);
        }
        assert!("gpu".parse::<BackendArg>().is_err());
    }

    #[test]
    fn one_plain_pass_is_timed() {
        assert!(replay(&[]).is_timed());
        assert!(replay(&["--repeat", "3", "--time"]).is_timed());
        for arguments in [&["--no-time"][..], &["--find-min"], &["--repeat", "2"]] {
            assert!(!replay(arguments).is_timed(), "{arguments:?}");
        }
    }
}
