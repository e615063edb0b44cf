//! What the tool prints: a row for each trace, as a line of JSON or in a table.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use larder::backend::sim::{Call, Lag};
use larder::snapshot::{OomReport, Verdict};
use larder::trace::Trace;
use larder::trace::replay::{Outcome, Pass, ReplayConfig, Stopped, Timing};
use larder::units::Bytes;

use crate::args::Replay;

/// What is said of one trace; the long help tells what each word means. `None` is what was not asked for or does not apply.
#[derive(Debug, Serialize)]
pub struct Row {
    pub trace: String,
    pub file: String,
    pub backend: String,
    pub streams: usize,
    pub lag: Option<u64>,
    pub slack: f64,
    pub capacity: Option<u64>,
    pub events: u64,
    pub peak_requested: u64,
    pub peak_live: Option<u64>,
    pub peak_reserved: Option<u64>,
    pub ratio: Option<f64>,
    pub min_capacity: Option<u64>,
    pub min_ratio: Option<f64>,
    pub device_allocs: Option<u64>,
    pub device_frees: Option<u64>,
    pub device_maps: Option<u64>,
    pub device_remaps: Option<u64>,
    pub bytes_moved: Option<u64>,
    pub bytes_allocated: u64,
    pub stream_waits: Option<u64>,
    pub host_waits: Option<u64>,
    pub address_space_peak: Option<u64>,
    pub ns_per_event: Option<f64>,
    pub ns_cpu_median: Option<f64>,
    pub passes: Option<u32>,
    pub repeat: u32,
    pub peaks: Option<Peaks>,
    pub verdict: String,
    pub report: Option<String>,
}

/// Peaks of several passes.
#[derive(Debug, Serialize)]
pub struct Peaks {
    pub reserved: FirstLastMax,
    pub addresses: FirstLastMax,
}

/// One figure over several passes.
#[derive(Debug, Serialize)]
pub struct FirstLastMax {
    pub first: u64,
    pub last: u64,
    pub max: u64,
}

impl FirstLastMax {
    fn of(passes: &[Pass], figure: impl Fn(&Pass) -> u64) -> Self {
        let end = |pass: Option<&Pass>| pass.map_or(0, &figure);
        FirstLastMax {
            first: end(passes.first()),
            last: end(passes.last()),
            max: passes.iter().map(&figure).max().unwrap_or(0),
        }
    }
}

const PASSES: &str = "passes";

impl Row {
    /// A row of which only the trace and the question are known.
    pub fn new(path: &Path, trace: &Trace, arguments: &Replay, config: &ReplayConfig) -> Row {
        Row {
            trace: name(path),
            file: path.display().to_string(),
            backend: arguments.backend.to_string(),
            streams: trace.streams().len(),
            lag: match config.lag {
                Lag::Events(events) => Some(events),
                Lag::Never | Lag::Manual => None,
            },
            slack: config.config.slack,
            capacity: config.capacity,
            events: trace.events(),
            peak_requested: trace.peak_requested(),
            peak_live: None,
            peak_reserved: None,
            ratio: None,
            min_capacity: None,
            min_ratio: None,
            device_allocs: None,
            device_frees: None,
            device_maps: None,
            device_remaps: None,
            bytes_moved: None,
            bytes_allocated: trace.total_allocated(),
            stream_waits: None,
            host_waits: None,
            address_space_peak: None,
            ns_per_event: None,
            ns_cpu_median: None,
            passes: None,
            repeat: config.repeat,
            peaks: None,
            verdict: PASSES.into(),
            report: None,
        }
    }

    pub fn passed(&self) -> bool {
        self.verdict == PASSES
    }

    /// The trace was played to its end.
    pub fn outcome(&mut self, outcome: &Outcome) {
        let stats = &outcome.stats;
        self.peak_live = Some(stats.live.peak);
        self.peak_reserved = Some(stats.reserved.peak);
        self.ratio = Some(ratio(stats.reserved.peak, self.peak_requested));
        self.bytes_moved = Some(stats.moved);
        self.stream_waits = Some(stats.stream_waits);
        self.host_waits = Some(stats.host_waits);
        self.address_space_peak = Some(stats.addresses_peak);
        if self.repeat > 1 {
            self.peaks = Some(Peaks {
                reserved: FirstLastMax::of(&outcome.passes, |pass| pass.peak_reserved),
                addresses: FirstLastMax::of(&outcome.passes, |pass| pass.peak_addresses),
            });
        }
        if let Some(device) = &outcome.device {
            self.device_allocs = Some(device.succeeded(Call::GrowSegment) + device.pages_backed);
            self.device_frees = Some(device.succeeded(Call::Release) + device.pages_freed);
            self.device_maps = Some(device.succeeded(Call::Back) + device.succeeded(Call::Remap));
            self.device_remaps = Some(device.pages_moved);
            if device.violations > 0 {
                self.verdict = format!("{} broken rules of the device: a defect of larder", device.violations);
            }
        }
    }

    /// The trace stopped before its end.
    pub fn stopped(&mut self, stopped: &Stopped) {
        let event = stopped.event;
        self.verdict = match stopped.error.report() {
            Some(report) => format!("out of memory at event {event}: {}", verdict(report)),
            None => format!("stopped at event {event}: {}", first_line(&stopped.error.to_string())),
        };
        self.report = Some(stopped.error.to_string());
    }

    pub fn timing(&mut self, timing: Timing) {
        // A trace without events has no time for each.
        let known = |ns: f64| ns.is_finite().then(|| round(ns, 2));
        self.ns_per_event = known(timing.ns_wall_least);
        self.ns_cpu_median = known(timing.ns_cpu_median);
        self.passes = Some(timing.passes);
    }
}

/// A file's name without its folder and the ends of packed and plain traces.
fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.strip_suffix(".txt").or_else(|| name.strip_suffix(".trace")).unwrap_or(name).to_owned()
}

/// `part / whole` to six digits; 0 of a trace that asks for nothing.
pub fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { round(part as f64 / whole as f64, 6) }
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// A report's verdict in one word, as its serialised form has it.
fn verdict(report: &OomReport) -> &'static str {
    match report.verdict() {
        Verdict::LargerThanLimit => "larger-than-limit",
        Verdict::LimitReached => "limit-reached",
        Verdict::DeviceFull => "device-full",
        Verdict::Fragmented => "fragmented",
        Verdict::TooFewPages => "too-few-pages",
        Verdict::DeadlineOver => "deadline-over",
        Verdict::WaitingForWork => "waiting-for-work",
    }
}

/// Says what is wrong on the standard error; there is nobody to tell when that fails.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "larder: {text}");
}

/// One line of JSON.
pub fn line(row: &Row) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, row)?;
    writeln!(out)?;
    out.flush()
}

/// All rows, what was asked, and the means.
pub fn table(rows: &[Row], arguments: &Replay, config: &ReplayConfig) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", question(arguments, config))?;
    let columns: Vec<Column> =
        COLUMNS.iter().copied().filter(|column| rows.iter().any(|row| (column.1)(row).is_some())).collect();
    let cell = |column: &Column, row: &Row| (column.1)(row).unwrap_or_else(|| "-".into());
    let width = |column: &Column| {
        rows.iter().map(|row| cell(column, row).chars().count()).max().unwrap_or(0).max(column.0.chars().count())
    };
    let widths: Vec<usize> = columns.iter().map(width).collect();
    let print = |out: &mut io::StdoutLock<'_>, cells: Vec<String>| {
        let mut text = String::new();
        for (at, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            // The first column and the last, the verdict, are words: to the left.
            let part =
                if at == 0 || at + 1 == cells.len() { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
            text.push_str(&part);
            text.push_str("  ");
        }
        writeln!(out, "{}", text.trim_end())
    };
    print(&mut out, columns.iter().map(|column| column.0.to_owned()).collect())?;
    for row in rows {
        print(&mut out, columns.iter().map(|column| cell(column, row)).collect())?;
    }
    for row in rows.iter().filter(|row| row.report.is_some()) {
        writeln!(out, "\n{}: {}", row.trace, row.report.as_deref().unwrap_or_default().trim_end())?;
    }
    if rows.len() > 1 {
        writeln!(out, "{}", means(rows))?;
    }
    out.flush()
}

type Column = (&'static str, fn(&Row) -> Option<String>);

const COLUMNS: &[Column] = &[
    ("trace", |row| Some(row.trace.clone())),
    ("events", |row| Some(row.events.to_string())),
    ("requested", |row| Some(Bytes(row.peak_requested).to_string())),
    ("reserved", |row| Some(Bytes(row.peak_reserved?).to_string())),
    ("ratio", |row| Some(format!("{:.4}", row.ratio?))),
    ("least", |row| Some(Bytes(row.min_capacity?).to_string())),
    ("least ratio", |row| Some(format!("{:.4}", row.min_ratio?))),
    ("allocs", |row| Some(row.device_allocs?.to_string())),
    ("moved", |row| Some(percent(row.bytes_moved?, row.bytes_allocated))),
    ("addresses", |row| Some(format!("{:.2}x", ratio(row.address_space_peak?, row.peak_requested)))),
    ("waits", |row| Some(row.stream_waits?.to_string())),
    ("host waits", |row| Some(row.host_waits?.to_string())),
    ("first reserved", |row| Some(Bytes(row.peaks.as_ref()?.reserved.first).to_string())),
    ("most reserved", |row| Some(Bytes(row.peaks.as_ref()?.reserved.max).to_string())),
    ("ns/event", |row| Some(format!("{:.1}", row.ns_per_event?))),
    ("cpu ns/event", |row| Some(format!("{:.1}", row.ns_cpu_median?))),
    ("verdict", |row| Some(row.verdict.clone())),
];

fn percent(part: u64, whole: u64) -> String {
    format!("{:.2} %", ratio(part, whole) * 100.0)
}

/// The question that the table answers, in one line.
fn question(arguments: &Replay, config: &ReplayConfig) -> String {
    let mut parts = vec![format!("backend {}", arguments.backend), format!("slack {}", config.config.slack)];
    if arguments.backend.is_simulated() {
        parts.push(match config.lag {
            Lag::Events(events) => format!("lag {events}"),
            Lag::Never | Lag::Manual => "lag never".into(),
        });
    }
    parts.extend(config.capacity.map(|bytes| format!("capacity {}", Bytes(bytes))));
    parts.extend(arguments.spread.map(|count| format!("spread over {count} streams")));
    if config.repeat > 1 {
        parts.push(format!("pass {} of {} on one allocator", config.repeat, config.repeat));
    }
    parts.join(", ")
}

/// Geometric means over the traces that are not synthetic.
fn means(rows: &[Row]) -> String {
    let real: Vec<&Row> = rows.iter().filter(|row| !row.trace.contains("synthetic")).collect();
    let mean = |figure: fn(&Row) -> Option<f64>| -> String {
        let values: Vec<f64> = real.iter().filter_map(|row| figure(row)).filter(|value| *value > 0.0).collect();
        match values.len() {
            0 => "-".into(),
            count => format!("{:.4}", (values.iter().map(|value| value.ln()).sum::<f64>() / count as f64).exp()),
        }
    };
    let left_out = rows.len() - real.len();
    let passed = rows.iter().filter(|row| row.passed()).count();
    let mut text = format!("{passed} of {} pass; geometric mean of ratio {}", rows.len(), mean(|row| row.ratio));
    if rows.iter().any(|row| row.min_capacity.is_some()) {
        text += &format!(", of least ratio {}", mean(|row| row.min_ratio));
    }
    if rows.iter().any(|row| row.ns_cpu_median.is_some()) {
        text += &format!(", of cpu ns/event {}", mean(|row| row.ns_cpu_median));
    }
    if left_out > 0 {
        text += &format!(" (over {}; {left_out} named synthetic left out)", real.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_without_folder_and_packing() {
        for (path, wanted) in
            [("a/b/06_x.gz", "06_x"), ("t.txt.gz", "t"), ("t.trace", "t"), ("plain", "plain"), ("..", "..")]
        {
            assert_eq!(name(Path::new(path)), wanted);
        }
    }

    #[test]
    fn ratios_of_nothing_are_no_trap() {
        assert_eq!((ratio(5, 0), ratio(3, 2), percent(1, 8)), (0.0, 1.5, "12.50 %".into()));
    }
}
