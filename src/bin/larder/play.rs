//! `larder replay`: each trace loaded, played, timed and reported in turn.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use larder::device::Unavailable;
use larder::trace::Trace;
use larder::trace::replay::{self, ReplayConfig, Stage, Stopped, Timing};
use larder::{AllocError, Device};

use crate::Exit;
use crate::args::{Replay, StreamsArg};
use crate::output::{self, Row};

/// Measured passes, and how long each is at least.
const PASSES: u32 = 9;
const AT_LEAST: Duration = Duration::from_millis(50);

/// Plays all traces and prints as it goes.
///
/// # Errors
/// When the output cannot be written. What else goes wrong is printed and told by the [`Exit`].
pub fn run(arguments: &Replay) -> io::Result<Exit> {
    let config = match arguments.config() {
        Ok(config) => config,
        Err(error) => {
            output::complain(&error);
            return Ok(Exit::Unusable);
        }
    };
    if let Stage::Device(kind) = &config.stage
        && let Err(reason) = Device::open(kind, config.config.clone())
    {
        output::complain(&format!("--backend {kind}: {reason}"));
        return Ok(if matches!(reason, Unavailable::Refused(AllocError::Config(_))) {
            Exit::Unusable
        } else {
            Exit::Missing
        });
    }
    let mut exit = Exit::Passed;
    let mut rows = Vec::new();
    for path in &arguments.traces {
        let row = match row(path, arguments, &config) {
            Ok(row) => row,
            Err(error) => {
                output::complain(&error);
                exit = Exit::Unusable;
                continue;
            }
        };
        exit = exit.max(if row.passed() { Exit::Passed } else { Exit::Stopped });
        if arguments.json {
            output::line(&row)?;
        }
        rows.push(row);
    }
    if !arguments.json && !rows.is_empty() {
        output::table(&rows, arguments, &config)?;
    }
    Ok(exit)
}

/// Everything that was asked about one trace; an error, in words, when nothing can be said about it.
fn row(path: &Path, arguments: &Replay, config: &ReplayConfig) -> Result<Row, String> {
    let trace = load(path, arguments)?;
    let mut config = config.clone();
    let mut row = Row::new(path, &trace, arguments, &config);
    let bar = Bar::new(&row.trace);
    if arguments.find_min {
        row.min_capacity = least_capacity(&trace, &mut config, &bar);
        row.min_ratio = row.min_capacity.map(|bytes| output::ratio(bytes, trace.peak_requested()));
    }
    bar.expect(trace.events() * u64::from(config.repeat.max(1)), "playing");
    match replay::replay(&trace, &config, |done| bar.at(done)) {
        Ok(outcome) => row.outcome(&outcome),
        Err(stopped) if is_usage(&stopped) => return Err(format!("--config: {}", stopped.error)),
        Err(stopped) => row.stopped(&stopped),
    }
    if row.passed() && arguments.is_timed() {
        bar.expect(0, "timing");
        match time(&trace, &config) {
            Ok(timing) => row.timing(timing),
            Err(stopped) => row.stopped(&stopped),
        }
    }
    bar.finish();
    if let Some(file) = &arguments.snapshot {
        snapshot(&trace, &config, file)?;
    }
    Ok(row)
}

fn load(path: &Path, arguments: &Replay) -> Result<Trace, String> {
    if path.is_dir() {
        return Err(format!("{}: a folder; name the traces in it, e.g. {}/*.gz", path.display(), path.display()));
    }
    let trace = Trace::load(path).map_err(|error| error.to_string())?;
    if trace.events() == 0 {
        return Err(format!("{}: no events in it (an empty file?)", path.display()));
    }
    Ok(match arguments.spread {
        Some(count) => trace.spread(count),
        None if arguments.streams == StreamsArg::One => trace.on_one_stream(),
        None => trace,
    })
}

/// Finds it, and makes it the capacity of the config.
fn least_capacity(trace: &Trace, config: &mut ReplayConfig, bar: &Bar) -> Option<u64> {
    let mut tried = 0;
    let mut last = u64::MAX;
    bar.expect(trace.events() * u64::from(config.repeat.max(1)), "searching");
    let found = replay::least_capacity(trace, config, |done| {
        tried += u32::from(done <= last);
        last = done;
        bar.say(&format!("searching, {tried} tried"));
        bar.at(done)
    });
    config.capacity = found;
    found
}

fn time(trace: &Trace, config: &ReplayConfig) -> Result<Timing, Stopped> {
    replay::time(trace, config, PASSES, AT_LEAST)
}

/// Whether a replay stopped because of what the user asked for, before it began.
fn is_usage(stopped: &Stopped) -> bool {
    stopped.event == 0 && matches!(stopped.error, AllocError::Config(_))
}

/// Writes the state at peak. A trace that stops before its peak has none, which is said and is no error of the usage.
fn snapshot(trace: &Trace, config: &ReplayConfig, path: &Path) -> Result<(), String> {
    let state = match replay::snapshot_at_peak(trace, config) {
        Ok(state) => state,
        Err(stopped) => {
            output::complain(&format!("no snapshot: the trace stopped at event {} before its peak", stopped.event));
            return Ok(());
        }
    };
    let write = || -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        serde_json::to_writer(&mut file, &state)?;
        writeln!(file)?;
        file.flush()
    };
    write().map_err(|error| format!("{}: cannot write: {error}", path.display()))
}

/// A progress bar on the standard error, where that is a terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new(name: &str) -> Bar {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
        let style = ProgressStyle::with_template("{prefix} {bar:32} {percent:>3} % {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(name.to_owned());
        Bar(bar)
    }

    fn expect(&self, events: u64, what: &str) {
        self.0.set_length(events);
        self.0.set_position(0);
        self.say(what);
    }

    fn say(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }

    /// Goes on, always.
    fn at(&self, done: u64) -> bool {
        self.0.set_position(done);
        true
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}
