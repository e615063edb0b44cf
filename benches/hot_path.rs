//! One allocation or free on a warm trace: this crate with everything on, against offset-allocator behind a mutex.
//!
//! `cargo bench --bench hot_path` prints a table of medians of thread CPU time measured in turns, which is what
//! `BENCHMARKS.md` holds, and then lets criterion measure whole passes one contestant after another. `LARDER_TRACES` names another folder of traces.

mod common;

use common::{Contestant, Effort, Empty, Larder, Offset};
use criterion::{BenchmarkId, Criterion, Throughput};
use larder::trace::Trace;
use std::time::Duration;

/// Nanoseconds an event of one trace.
struct Row {
    name: String,
    real: bool,
    events: u64,
    empty: f64,
    larder: f64,
    offset: f64,
    /// Bytes of own memory for each block of the trace's peak.
    bytes_per_block: u64,
}

fn measure(name: &str, trace: &Trace, effort: Effort) -> Row {
    let (mut empty, mut larder, mut offset) = (Empty::new(trace), Larder::new(trace), Offset::new(trace));
    let times = common::in_turns(&mut [&mut empty, &mut larder, &mut offset], effort);
    let per_event = |at: usize| times[at] / common::events(trace) as f64;
    let (empty, larder_ns, offset) = (per_event(0), per_event(1), per_event(2));
    let bytes_per_block = larder.allocator.own_memory() / trace.max_live().max(1);
    let real = common::is_real(name, trace);
    Row { name: name.into(), real, events: common::events(trace), empty, larder: larder_ns, offset, bytes_per_block }
}

fn table(rows: &[Row]) {
    println!("| trace | events a pass | empty loop | larder | offset-allocator + mutex | ratio | own bytes a block |");
    println!("|---|--:|--:|--:|--:|--:|--:|");
    for row in rows {
        let ratio = row.larder / row.offset;
        let (name, events, bytes) = (&row.name, row.events, row.bytes_per_block);
        println!(
            "| {name} | {events} | {:.1} | {:.1} | {:.1} | {ratio:.3} | {bytes} |",
            row.empty, row.larder, row.offset
        );
    }
    let real: Vec<&Row> = rows.iter().filter(|row| row.real).collect();
    if !real.is_empty() {
        let mean = |of: fn(&Row) -> f64| common::geometric_mean(real.iter().map(|row| of(row)));
        let (empty, larder, offset) = (mean(|row| row.empty), mean(|row| row.larder), mean(|row| row.offset));
        let ratio = larder / offset;
        println!(
            "| **geometric mean of the {} real** | | {empty:.1} | {larder:.1} | {offset:.1} | **{ratio:.3}** | |",
            real.len()
        );
    }
    println!();
}

fn groups(criterion: &mut Criterion, traces: &[(String, Trace)]) {
    let mut group = criterion.benchmark_group("pass");
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600));
    for (name, trace) in traces {
        group.throughput(Throughput::Elements(common::events(trace)));
        let mut larder = Larder::new(trace);
        group.bench_function(BenchmarkId::new("larder", name), |bencher| bencher.iter(|| larder.pass()));
        let mut offset = Offset::new(trace);
        group.bench_function(BenchmarkId::new("offset-allocator", name), |bencher| bencher.iter(|| offset.pass()));
    }
    group.finish();
}

fn main() {
    let figures = common::wants_figures();
    let traces = if figures { common::traces() } else { common::smoke_traces() };
    if figures || !common::skips() {
        let effort = if figures { Effort::FULL } else { Effort::SMOKE };
        let rows: Vec<Row> = traces.iter().map(|(name, trace)| measure(name, trace, effort)).collect();
        table(&rows);
    }
    let mut criterion = Criterion::default().configure_from_args();
    groups(&mut criterion, &traces);
    criterion.final_summary();
}
