//! Density: how much more memory is held than is asked for, on what real models ask of their devices.
//!
//! By default the committed trace is played, in every way that the real ones are. With `LARDER_FULL=1` so are all traces of the
//! folder that `LARDER_TRACES` names, or of `../shared/traces` beside the checkout, each test then printing its figures
//! (`cargo test --release --test density -- --nocapture`). Traces with `synthetic` in their names are printed and bound to nothing.
//!
//! Segments are measured against what PyTorch's caching allocator, TensorFlow's BFC with growth and RMM's pool reserve on the
//! same traces, each run as its makers ship it; their figures stand in [`PEERS`].

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use larder::Config;
use larder::backend::sim::{Call, Lag};
use larder::trace::replay::{Outcome, Pass, ReplayConfig, Stage, least_capacity, replay};
use larder::trace::{Trace, models};

const COMMITTED: &str = "06_resnet50_server";

/// Every lag that density must not depend on.
const LAGS: [Lag; 3] = [Lag::Events(0), Lag::Events(1000), Lag::Never];

struct Case {
    name: String,
    trace: Trace,
}

impl Case {
    fn is_synthetic(&self) -> bool {
        self.name.contains("synthetic")
    }

    fn ratio(&self, bytes: u64) -> f64 {
        bytes as f64 / self.trace.peak_requested() as f64
    }
}

fn is_full() -> bool {
    std::env::var("LARDER_FULL").is_ok_and(|value| value == "1")
}

/// The traces to play, real ones and synthetic ones.
fn cases() -> &'static [Case] {
    static CASES: OnceLock<Vec<Case>> = OnceLock::new();
    CASES.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = std::env::var_os("LARDER_TRACES").map_or(root.join("../shared/traces"), PathBuf::from);
        let mut files = vec![root.join("tests/data").join(format!("{COMMITTED}.gz"))];
        if is_full() {
            let found = std::fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.unwrap().path());
            files.extend(found.filter(|path| {
                path.extension().is_some_and(|end| end == "gz") && !path.ends_with(format!("{COMMITTED}.gz"))
            }));
            println!("{} traces, those of {} among them", files.len(), folder.display());
        }
        files.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
        let case = |path: &PathBuf| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            Case { name, trace: Trace::load(path).unwrap() }
        };
        files.iter().map(case).collect()
    })
}

/// Figures of each real trace, to be held against bounds all at once, so that a failure shows the whole table.
#[derive(Default)]
struct Verdicts {
    lines: Vec<String>,
    broken: bool,
}

impl Verdicts {
    fn say(&mut self, is_kept: bool, line: String) {
        self.broken |= !is_kept;
        self.lines.push(format!("{} {line}", if is_kept { "   " } else { "!! " }));
    }

    fn mean(&mut self, what: &str, values: &[f64], bound: f64) {
        let mean = (values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp();
        // One trace says nothing about the mean of ten.
        let is_kept = values.len() < 5 || mean <= bound;
        self.say(is_kept, format!("{what}: geometric mean {mean:.4} over {}, at most {bound}", values.len()));
    }

    fn finish(self, title: &str) {
        println!("{title}\n{}", self.lines.join("\n"));
        assert!(!self.broken, "{title}: see the lines marked with !!\n{}", self.lines.join("\n"));
    }
}

fn dense(lag: Lag) -> ReplayConfig {
    ReplayConfig { lag, config: Config::default().slack(1.01), ..ReplayConfig::default() }
}

fn play(case: &Case, config: &ReplayConfig) -> Outcome {
    let outcome = replay(&case.trace, config, |_| true).unwrap_or_else(|stopped| panic!("{}: {stopped}", case.name));
    assert_eq!(outcome.device.unwrap().violations, 0, "{}: rules of the device broken", case.name);
    outcome
}

#[test]
fn pages_are_dense_at_every_lag() {
    let mut verdicts = Verdicts::default();
    for lag in LAGS {
        let mut ratios = Vec::new();
        for case in cases() {
            let stats = play(case, &dense(lag)).stats;
            let ratio = case.ratio(stats.reserved.peak);
            let moved = stats.moved as f64 / case.trace.total_allocated() as f64;
            let is_kept = case.is_synthetic() || (ratio <= 1.02 && stats.host_waits == 0 && moved <= 0.05);
            let figures = format!("ratio {ratio:.4}, moved {:.2} %, host waits {}", moved * 100.0, stats.host_waits);
            verdicts.say(is_kept, format!("{lag:?} {:<24} {figures}", case.name));
            ratios.extend((!case.is_synthetic()).then_some(ratio));
        }
        verdicts.mean(&format!("{lag:?}"), &ratios, 1.010);
    }
    verdicts.finish("pages at slack 1.01: at most 1.02, no host wait, at most 5 % moved");
}

#[test]
fn the_least_device_is_hardly_larger_than_the_peak() {
    let config = ReplayConfig { lag: Lag::Events(0), config: Config::default().slack(1.0), ..ReplayConfig::default() };
    let (mut verdicts, mut ratios) = (Verdicts::default(), Vec::new());
    for case in cases().iter().filter(|case| !case.is_synthetic()) {
        let least = least_capacity(&case.trace, &config, |_| true).unwrap();
        let ratio = case.ratio(least);
        verdicts.say(ratio <= 1.015, format!("{:<24} least {least}, ratio {ratio:.4}", case.name));
        ratios.push(ratio);
    }
    verdicts.mean("least device", &ratios, 1.006);
    verdicts.finish("least device on which the trace passes: at most 1.015 of the peak");
}

/// Repeats of the test that density lasts.
const REPEATS: u32 = 50;

/// Whether the last fifth of many passes needs more addresses than ever before, by more than 2 %.
fn is_rising(passes: &[Pass]) -> bool {
    let most = |part: &[Pass]| part.iter().map(|pass| pass.peak_addresses).max().unwrap_or(0);
    let (before, last) = passes.split_at(passes.len() / 5 * 4);
    passes.len() >= 10 && most(last) as f64 > most(before) as f64 * 1.02
}

#[test]
fn density_lasts() {
    let mut verdicts = Verdicts::default();
    let repeat = if is_full() { REPEATS } else { 5 };
    for case in cases().iter().filter(|case| !case.is_synthetic()) {
        let passes = play(case, &ReplayConfig { repeat, ..dense(Lag::Events(1000)) }).passes;
        let last = passes[passes.len() - 1];
        let ratio = case.ratio(last.peak_reserved);
        let moved = last.moved as f64 / case.trace.total_allocated() as f64;
        let addresses = passes.iter().map(|pass| case.ratio(pass.peak_addresses)).fold(0.0, f64::max);
        let is_rising = is_rising(&passes);
        let is_kept = ratio <= 1.02 && moved <= 0.05 && addresses <= 4.0 && !is_rising;
        let first = case.ratio(passes[0].peak_reserved);
        let rising = if is_rising { ", rising" } else { "" };
        let figures = format!("ratio {first:.4} then {ratio:.4}, moved {:.2} %", moved * 100.0);
        verdicts.say(is_kept, format!("{:<24} {figures}, addresses {addresses:.2}x{rising}", case.name));
    }
    verdicts.finish("the last of many replays: at most 1.02 and 5 % moved, addresses at most 4x and not rising");
}

/// Bytes reserved and device allocations of a trace: PyTorch default, TF BFC with growth, RMM pool.
const PEERS: &[(&str, [(u64, u64); 3])] = &[
    ("01_gpt2m_train_pad", [(59_208_892_416, 447), (68_719_476_736, 10), (52_698_284_032, 10)]),
    ("02_llama8b_train_ckpt", [(114_772_934_656, 544), (134_349_036_544, 8), (100_864_622_592, 8)]),
    ("03_lora_llama7b_pad", [(84_479_574_016, 858), (131_339_667_456, 10), (67_108_864_000, 9)]),
    ("04_serve_llama7b_conv", [(3_661_627_392, 81), (4_294_967_296, 5), (4_194_304_000, 5)]),
    ("05_sd15_mixed", [(6_085_935_104, 144), (4_292_870_144, 11), (4_241_489_920, 14)]),
    ("06_resnet50_server", [(847_249_408, 24), (534_773_760, 8), (914_358_272, 16)]),
    ("07_fasterrcnn", [(5_582_618_624, 52), (4_292_870_144, 11), (7_298_088_960, 18)]),
    ("08_mixtral_infer", [(13_203_668_992, 54), (17_716_740_096, 6), (19_226_689_536, 6)]),
    ("09_whisper_beam", [(1_440_743_424, 60), (2_145_386_496, 10), (2_113_929_216, 13)]),
    ("10_multimodel", [(8_810_135_552, 282), (8_864_661_504, 10), (12_538_085_376, 11)]),
];

/// At or under the best of the peers, or within 2 % of it with at most a tenth of its device calls.
fn beats_peers(peers: &[(u64, u64)], reserved: u64, calls: u64) -> bool {
    let (best, best_calls) = *peers.iter().min().unwrap();
    reserved <= best || (reserved as f64 <= best as f64 * 1.02 && calls * 10 <= best_calls)
}

#[test]
fn segments_are_no_worse_than_the_best_of_their_kind() {
    let (mut verdicts, mut ratios) = (Verdicts::default(), Vec::new());
    for case in cases() {
        let config = ReplayConfig { stage: Stage::SimSegments, ..ReplayConfig::default() };
        let outcome = play(case, &config);
        let (reserved, calls) = (outcome.stats.reserved.peak, outcome.device.unwrap().succeeded(Call::GrowSegment));
        let peers = PEERS.iter().find(|(name, _)| *name == case.name).map(|(_, peers)| peers);
        let best = peers.map_or("-".into(), |peers| format!("{:.4}", case.ratio(peers.iter().min().unwrap().0)));
        let is_kept = case.is_synthetic() || peers.is_none_or(|peers| beats_peers(peers, reserved, calls));
        let ratio = case.ratio(reserved);
        verdicts.say(is_kept, format!("{:<24} ratio {ratio:.4} in {calls} segments; the best peer {best}", case.name));
        ratios.extend((!case.is_synthetic()).then_some(ratio));
    }
    verdicts.mean("segments", &ratios, 1.10);
    verdicts.finish("segments: at or under the best of PyTorch, TF BFC with growth and RMM pool");
}

#[test]
fn the_rule_for_peers_is_the_one_stated() {
    let peers = [(1000, 40), (1200, 5), (3000, 1)];
    assert!(beats_peers(&peers, 1000, 1_000_000) && beats_peers(&peers, 1020, 4));
    assert!(!beats_peers(&peers, 1001, 5) && !beats_peers(&peers, 1021, 1));
}

/// Reserved with several streams against the same program on one.
fn streams_against_one(verdicts: &mut Verdicts, name: &str, trace: &Trace) {
    let config = ReplayConfig::default();
    let stats =
        |trace: &Trace| replay(trace, &config, |_| true).unwrap_or_else(|stopped| panic!("{name}: {stopped}")).stats;
    let (several, one) = (stats(trace), stats(&trace.on_one_stream()));
    let ratio = several.reserved.peak as f64 / one.reserved.peak as f64;
    let waits = format!("{} waits on the device, {} of the host", several.stream_waits, several.host_waits);
    verdicts.say(ratio <= 1.05 && several.host_waits == 0, format!("{name:<24} {ratio:.4} of one stream, {waits}"));
}

#[test]
fn several_streams_share_one_heap() {
    let mut verdicts = Verdicts::default();
    for case in cases().iter().filter(|case| case.trace.streams().len() > 1) {
        streams_against_one(&mut verdicts, &case.name, &case.trace);
    }
    let requests = if is_full() { 60 } else { 12 };
    for streams in [2, 4, 8] {
        streams_against_one(&mut verdicts, &format!("serving on {streams}"), &models::serving(7, requests, streams));
    }
    verdicts.finish("several streams: at most 1.05 of what one stream reserves");
}
