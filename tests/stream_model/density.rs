//! One heap for all streams: dealt to several streams, a program needs hardly more memory than on one.

use larder::backend::sim::Lag;
use larder::trace::replay::{ReplayConfig, replay};
use larder::trace::{Trace, models};

use crate::traces::resnet;

/// The most that several streams may reserve, as a multiple of what one does.
const MOST: f64 = 1.05;

fn reserved(trace: &Trace, lag: u64) -> (u64, u64) {
    let config = ReplayConfig { lag: Lag::Events(lag), ..ReplayConfig::default() };
    let outcome = replay(trace, &config, |_| true).expect("a device as large as wished");
    (outcome.stats.reserved.peak, outcome.stats.stream_waits)
}

fn compare(name: &str, one: &Trace, several: &Trace) {
    for lag in [0, 1000] {
        let ((alone, none), (shared, waits)) = (reserved(one, lag), reserved(several, lag));
        let ratio = shared as f64 / alone as f64;
        println!("{name}, lag {lag}: {ratio:.4} of one stream, {waits} waits");
        assert_eq!(none, 0, "{name}: one stream waits for nobody");
        assert!(ratio <= MOST, "{name}, lag {lag}: {shared} bytes reserved, {alone} on one stream");
    }
}

#[test]
fn a_real_program_dealt_to_streams_needs_no_more() {
    let trace = resnet();
    for streams in [2, 4, 8] {
        compare(&format!("06 x{streams}"), &trace.on_one_stream(), &trace.spread(streams));
    }
}

#[test]
fn a_server_on_streams_needs_no_more() {
    for streams in [2, 4, 8] {
        let trace = models::serving(3, 12, streams);
        compare(&format!("serving on {streams}"), &trace.on_one_stream(), &trace);
    }
}
