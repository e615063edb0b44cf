//! Trace files: whatever the bytes, they are a trace or a typed error, the same in every way of reading; a trace is what it is written
//! as; and no trace makes an allocator do worse than refuse.

use larder::trace::replay::{ReplayConfig, Stage, replay};
use larder::trace::{Event, Limits, Reader, Trace, TraceError, Version, Writer};
use larder::units::MIB;

/// So that time and memory are bounded by little where a few bytes of gzip hold many lines.
const LIMITS: Limits = Limits { lines: 1 << 14 };

fn read(data: &[u8]) -> Result<Trace, TraceError> {
    Trace::from_reader(Reader::with_limits(data, LIMITS))
}

pub fn run(data: &[u8]) {
    let events: Result<Vec<Event>, TraceError> = Reader::with_limits(data, LIMITS).collect();
    let trace = match (read(data), &events) {
        (Ok(trace), Ok(_)) => trace,
        // What is wrong only of the whole, each event does not show.
        (Err(_), Ok(_)) => return,
        (Err(error), Err(same)) => return assert_eq!(error.to_string(), same.to_string()),
        (Ok(_), Err(error)) => panic!("a trace with an event that is none: {error}"),
    };
    assert_eq!(trace.events() + trace.marks(), events.map_or(0, |events| events.len() as u64));
    writes_and_reads_back(&trace);
    for stage in [Stage::Sim, Stage::SimSegments] {
        let config = ReplayConfig { stage, capacity: Some(64 * MIB), ..ReplayConfig::default() };
        if let Ok(outcome) = replay(&trace, &config, |_| true) {
            assert!(outcome.stats.requested.peak >= trace.peak_requested());
        }
    }
}

fn writes_and_reads_back(trace: &Trace) {
    let mut writer = Writer::plain(Vec::new()).version(trace.version());
    writer.trace(trace).expect("what was read can be written");
    let text = writer.finish().expect("memory takes it");
    let again = read(&text).expect("what was written can be read");
    // Labels and names that were not kept, and a version that was not needed, are not written.
    if trace.labels_dropped() == 0 && trace.version() == Version::Two {
        assert_eq!(again.ops().len(), trace.ops().len());
    }
    assert_eq!((again.events(), again.peak_requested()), (trace.events(), trace.peak_requested()));
    assert_eq!(again.total_allocated(), trace.total_allocated());
}
