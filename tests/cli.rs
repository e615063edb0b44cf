//! The tool as people and programs run it: the built binary on the committed traces, its exit status, its words and its JSON.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const RESNET: &str = "06_resnet50_server";

fn data(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name).display().to_string()
}

fn resnet() -> String {
    data("06_resnet50_server.gz")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.arg("replay").args(arguments);
    command
}

fn larder(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn texts(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The rows of a run that must end with `code`.
fn rows(arguments: &[&str], code: i32) -> Vec<Value> {
    let (status, out, err) = texts(&larder(&[arguments, &["--json"]].concat()));
    assert_eq!(status, Some(code), "{arguments:?}: {out}{err}");
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The one row of a run in which all passes.
fn row(arguments: &[&str]) -> Value {
    let mut rows = rows(arguments, 0);
    assert_eq!(rows.len(), 1);
    let row = rows.remove(0);
    assert_eq!(row["verdict"], "passes");
    row
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} is {}, no number: {row}", row[key]))
}

/// A file of the temporary folder, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, bytes: &[u8]) -> Scratch {
        let path = std::env::temp_dir().join(format!("larder-cli-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Scratch(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

#[test]
fn a_row_has_every_figure() {
    let row = row(&[&resnet(), "--config", "slack=1.01", "--lag", "never", "--time"]);
    for key in [
        "events",
        "peak_requested",
        "peak_live",
        "peak_reserved",
        "ratio",
        "device_allocs",
        "device_frees",
        "device_maps",
        "device_remaps",
        "bytes_moved",
        "bytes_allocated",
        "stream_waits",
        "host_waits",
        "address_space_peak",
        "ns_per_event",
        "ns_cpu_median",
        "passes",
    ] {
        number(&row, key);
    }
    assert_eq!((&row["trace"], &row["min_capacity"], &row["report"]), (&RESNET.into(), &Value::Null, &Value::Null));
    assert_eq!((number(&row, "events"), number(&row, "peak_requested")), (100_212.0, 404_461_816.0));
    assert_eq!(number(&row, "peak_live"), 404_507_648.0);
    let page = 2.0 * 1024.0 * 1024.0;
    assert_eq!(number(&row, "device_remaps") * page, number(&row, "bytes_moved"));
    assert_eq!((number(&row, "device_allocs") - number(&row, "device_frees")) * page, number(&row, "peak_reserved"));
    assert!(number(&row, "device_maps") <= number(&row, "device_allocs") + number(&row, "device_remaps"));
    assert!((number(&row, "ratio") - number(&row, "peak_reserved") / number(&row, "peak_requested")).abs() < 1e-6);
    assert!(number(&row, "peak_reserved") >= number(&row, "peak_live"));
    assert!(number(&row, "address_space_peak") >= number(&row, "peak_reserved"));
    assert!(number(&row, "passes") >= 9.0 && number(&row, "ns_per_event") > 0.0);
}

#[test]
fn figures_repeat_but_for_time() {
    let arguments = [&resnet(), "--no-time", "--json"];
    let (first, second) = (larder(&arguments), larder(&arguments));
    assert_eq!(texts(&first), texts(&second));
    assert_eq!(row(&arguments[..2])["ns_per_event"], Value::Null);
}

#[test]
fn segments_and_host_are_played_too() {
    let segments = row(&[&resnet(), "--backend", "sim-segments", "--no-time"]);
    assert_eq!((number(&segments, "device_maps"), number(&segments, "bytes_moved")), (0.0, 0.0));
    assert!(number(&segments, "device_allocs") > 0.0);
    let host = row(&[&resnet(), "--backend", "host", "--no-time", "--capacity", "1GiB"]);
    assert_eq!((&host["device_allocs"], number(&host, "stream_waits")), (&Value::Null, 0.0));
    assert!(number(&host, "ratio") >= 1.0);
}

#[test]
fn the_least_capacity_passes_and_a_page_less_does_not() {
    let plain = row(&[&resnet(), "--no-time"]);
    let found = row(&[&resnet(), "--find-min"]);
    let least = number(&found, "min_capacity");
    assert!(least >= number(&found, "peak_requested"));
    assert!(least <= number(&plain, "peak_reserved"));
    let as_found = ["--lag", "0", "--config", "slack=1.0", "--no-time"];
    let capacity = (least as u64).to_string();
    row(&[&[resnet().as_str(), "--capacity", &capacity], &as_found[..]].concat());
    let less = (least as u64 - (2 << 20)).to_string();
    rows(&[&[resnet().as_str(), "--capacity", &less], &as_found[..]].concat(), 1);
}

#[test]
fn too_small_a_device_is_a_verdict_with_its_report() {
    let rows = rows(&[&resnet(), &data("serving_small.gz"), "--capacity", "400MiB"], 1);
    assert_eq!(rows.len(), 2);
    for row in &rows {
        let verdict = row["verdict"].as_str().unwrap();
        if verdict == "passes" {
            continue;
        }
        assert!(verdict.starts_with("out of memory at event "), "{verdict}");
        assert!(verdict.ends_with(": device-full"), "{verdict}");
        let report = row["report"].as_str().unwrap();
        assert!(report.starts_with("out of memory: ") && report.contains("\n  tried"), "{report}");
        assert_eq!((&row["ratio"], &row["ns_per_event"]), (&Value::Null, &Value::Null));
    }
    assert_ne!(rows[1]["verdict"], "passes");
    let limited = self::rows(&[&resnet(), "--config", "limit=100MiB"], 1);
    assert!(limited[0]["verdict"].as_str().unwrap().ends_with(": limit-reached"), "{}", limited[0]["verdict"]);
}

#[test]
fn streams_can_be_merged_and_spread() {
    let trace = data("serving_small.gz");
    let recorded = row(&[&trace, "--no-time"]);
    let one = row(&[&trace, "--no-time", "--streams", "one"]);
    let spread = row(&[&trace, "--no-time", "--spread", "3"]);
    assert!(number(&recorded, "streams") > 1.0);
    assert_eq!((number(&one, "streams"), number(&one, "stream_waits")), (1.0, 0.0));
    assert_eq!(number(&spread, "streams"), 3.0);
    assert_eq!(number(&one, "peak_requested"), number(&recorded, "peak_requested"));
}

#[test]
fn repeats_report_their_peaks() {
    let once = row(&[&resnet(), "--no-time"]);
    let row = row(&[&resnet(), "--repeat", "4"]);
    let (reserved, addresses) = (&row["peaks"]["reserved"], &row["peaks"]["addresses"]);
    for figure in [reserved, addresses] {
        assert!(number(figure, "max") >= number(figure, "first").max(number(figure, "last")));
    }
    assert_eq!(number(reserved, "first"), number(&once, "peak_reserved"));
    assert_eq!(number(reserved, "last"), number(&row, "peak_reserved"));
    assert_eq!(number(addresses, "last"), number(&row, "address_space_peak"));
    assert_eq!(once["peaks"], Value::Null);
}

#[test]
fn a_snapshot_is_the_state_at_peak() {
    let file = Scratch::new("snapshot.json", b"");
    let row = row(&[&resnet(), "--no-time", "--snapshot", file.path()]);
    let state: Value = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
    assert_eq!(state["version"], 1);
    assert_eq!(state["stats"]["requested"]["current"], row["peak_requested"]);
    let blocks = |region: &Value| region["blocks"].as_array().unwrap().clone();
    let regions = state["pools"][0]["regions"].as_array().unwrap();
    let live: u64 = regions
        .iter()
        .flat_map(blocks)
        .filter(|block| block["state"] == "live")
        .map(|block| block["size"].as_u64().unwrap())
        .sum();
    assert_eq!(live as f64, number(&row, "peak_live"));
}

#[test]
fn a_table_names_traces_figures_and_what_is_left_out() {
    let synthetic = Scratch::new("synthetic.gz", &std::fs::read(data("serving_small.gz")).unwrap());
    let (code, out, err) = texts(&larder(&[&resnet(), synthetic.path(), "--no-time"]));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "backend sim, slack 1.05, lag 1000");
    assert!(lines[1].starts_with("trace ") && lines[1].ends_with("verdict"), "{out}");
    assert!(lines[2].starts_with(RESNET) && lines[2].ends_with("passes"), "{out}");
    assert!(
        lines[4].contains("geometric mean of ratio 1.0") && lines[4].contains("1 named synthetic left out"),
        "{out}"
    );
    assert!(lines.iter().all(|line| !line.ends_with(' ')));
}

#[test]
fn a_bad_file_is_told_with_its_line() {
    let broken = Scratch::new("broken", b"a 1 4096 0\nf 1\nf 2\n");
    let (code, out, err) = texts(&larder(&[broken.path(), &resnet(), "--no-time", "--json"]));
    assert_eq!(code, Some(2));
    assert!(err.contains("line 3: `f` of id 2, which was never allocated"), "{err}");
    assert_eq!(out.lines().count(), 1, "the other trace is played all the same");

    let whole = std::fs::read(resnet()).unwrap();
    let cut = Scratch::new("cut.gz", &whole[..whole.len() / 2]);
    let (code, out, err) = texts(&larder(&[cut.path()]));
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.contains("line ") && err.contains("ends too early"), "{err}");

    let (code, _, err) = texts(&larder(&["/no/such/trace.gz"]));
    assert_eq!(code, Some(2));
    assert!(err.contains("/no/such/trace.gz"), "{err}");
}

#[test]
fn wrong_usage_is_told_and_ends_with_2() {
    for (arguments, wanted) in [
        (&["--config", "slack=0.5"][..], "slack = 0.5: must be from 1"),
        (&["--config", "slack"], "key=value"),
        (&["--config", "stack=2"], "the keys are"),
        (&["--config", "quantum=3000"], "must be a power of two"),
        (&["--config", "quantum=1MiB,page=4096"], "quantum = 1048576 is above page = 4096"),
        (&["--config", "page=big"], "`big` is not a size"),
        (&["--capacity", "5 parsecs"], "unknown unit"),
        (&["--capacity", "99999999999GiB"], "larger than 2^64"),
        (&["--lag", "soon"], "a number of events, or `never`"),
        (&["--lag", "5", "--backend", "host"], "--lag is for simulated devices"),
        (&["--find-min", "--backend", "host"], "--find-min searches on a simulated device"),
        (&["--find-min", "--capacity", "1GiB"], "cannot be used with"),
        (&["--repeat", "0"], "0 is not in 1.."),
        (&["--spread", "0"], "0 is not in 1.."),
        (&["--spread", "2", "--streams", "one"], "cannot be used with"),
        (&["--snapshot", "x", "second-trace"], "give one trace"),
        (&["--unheard-of"], "unexpected argument"),
    ] {
        let (code, out, err) = texts(&larder(&[&[resnet().as_str()], arguments].concat()));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}: {err}");
        assert!(err.contains(wanted), "{arguments:?}: {err}");
        assert!(!err.contains("panicked"), "{arguments:?}: {err}");
    }
    let (code, _, _) = texts(&larder(&[]));
    assert_eq!(code, Some(2));
}

#[test]
fn hostile_programs_end_with_a_verdict() {
    let text = format!("a 1 0 0\na 2 {} 0\n", u64::MAX);
    let huge = Scratch::new("huge", text.as_bytes());
    let rows = rows(&[huge.path()], 1);
    assert!(rows[0]["verdict"].as_str().unwrap().starts_with("stopped at event 2: "), "{}", rows[0]);
    let empty = Scratch::new("empty", b"");
    let (code, _, err) = texts(&larder(&[empty.path(), "--find-min", "--time"]));
    assert!(code == Some(2) && err.contains("no events"), "{err}");
}

/// A machine may have a hundred CUDA devices, but not this one.
const NOWHERE: &str = "cuda:4000000000";

#[test]
fn a_backend_that_is_not_here_is_told_and_ends_with_3() {
    for (backend, wanted) in [
        (NOWHERE, "larder: --backend cuda:4000000000: "),
        ("file:/no/such/folder", "larder: --backend file:/no/such/folder: "),
    ] {
        let (code, out, err) = texts(&larder(&[&resnet(), "--backend", backend]));
        assert_eq!((code, out.as_str()), (Some(3), ""), "{backend}: {err}");
        assert!(err.contains(wanted) && !err.contains("panicked") && err.lines().count() == 1, "{backend}: {err}");
    }
    let (code, _, err) = texts(&larder(&[&resnet(), "--backend", NOWHERE, "--config", "slack=0"]));
    assert_eq!(code, Some(2), "a config that is wrong everywhere comes first: {err}");
}

#[test]
fn real_memory_is_played_where_it_is_here() {
    let small = data("serving_small.gz");
    let simulated = row(&[&small, "--no-time"]);
    let files = format!("file:{}", std::env::temp_dir().display());
    for backend in ["host", &files, "cuda", "wgpu"] {
        let (code, out, err) = texts(&larder(&[&small, "--backend", backend, "--no-time", "--json"]));
        if code == Some(3) {
            let insists = std::env::var("LARDER_REQUIRE_WGPU").is_ok_and(|value| value == "1");
            assert!(backend != "host" && !(backend == "wgpu" && insists), "{err}");
            println!("{backend}: not run: {}", err.trim_end());
            continue;
        }
        assert_eq!(code, Some(0), "{backend}: {out}{err}");
        let row: Value = serde_json::from_str(&out).unwrap();
        let backend = if backend == "cuda" { "cuda:0" } else { backend };
        assert_eq!((&row["backend"], &row["device_allocs"]), (&backend.into(), &Value::Null));
        assert_eq!(row["peak_requested"], simulated["peak_requested"]);
        assert!(number(&row, "peak_reserved") >= number(&row, "peak_live"));
    }
}

fn probe(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_larder")).arg("probe").args(arguments).output().unwrap();
    let (code, out, err) = texts(&output);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    out
}

fn probe_rows() -> Vec<Value> {
    probe(&["--json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn probe_tells_of_every_device_what_it_offers_or_why_not() {
    let rows = probe_rows();
    let devices: Vec<&str> = rows.iter().map(|row| row["device"].as_str().unwrap()).collect();
    assert_eq!((devices[0], &devices[devices.len() - 3..]), ("cuda:0", &["wgpu", "host", "sim"][..]));
    for row in &rows {
        if row["available"] == true {
            let offer = &row["offer"];
            assert!(row["reason"].is_null() && number(offer, "region_max") > 0.0, "{row}");
            assert!(!offer["name"].as_str().unwrap().is_empty(), "{row}");
        } else {
            assert!(row["offer"].is_null() && row["reason"].as_str().unwrap().len() > 10, "{row}");
            assert!(row["device"] != "host" && row["device"] != "sim", "{row}");
        }
    }
    let best: Vec<&Value> = rows.iter().filter(|row| row["best"] == true).collect();
    assert_eq!(best.len(), 1);
    assert!(best[0]["available"] == true && best[0]["offer"]["software"] == false && best[0]["device"] != "sim");
}

/// Variables that hide every GPU from the drivers of Linux and CUDA.
const HIDDEN: [(&str, &str); 3] =
    [("CUDA_VISIBLE_DEVICES", "-1"), ("VK_DRIVER_FILES", "/nonexistent"), ("VK_ICD_FILENAMES", "/nonexistent")];

#[cfg(target_os = "linux")]
#[test]
fn a_machine_without_a_gpu_is_told_why_and_served_all_the_same() {
    let tool = || {
        let mut tool = Command::new(env!("CARGO_BIN_EXE_larder"));
        tool.envs(HIDDEN);
        tool
    };
    let (code, out, err) = texts(&tool().args(["probe", "--json"]).output().unwrap());
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    for line in out.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let is_gpu = row["device"] == "wgpu" || row["device"].as_str().unwrap().starts_with("cuda");
        assert_eq!(row["available"], !is_gpu, "{row}");
        assert_eq!(row["reason"].is_string(), is_gpu, "{row}");
        assert_eq!(row["best"], row["device"] == "host", "{row}");
    }
    for backend in ["cuda", "wgpu"] {
        let (code, out, err) = texts(&tool().args(["replay", &resnet(), "--backend", backend]).output().unwrap());
        assert_eq!((code, out.as_str(), err.lines().count()), (Some(3), "", 1), "{backend}: {err}");
        assert!(err.starts_with(&format!("larder: --backend {backend}")) && !err.contains("panicked"), "{err}");
    }
}

#[test]
fn probe_can_be_read() {
    let out = probe(&[]);
    let line =
        |start: &str| out.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {out}"));
    let (rows, lines): (_, Vec<&str>) = (probe_rows(), out.lines().collect());
    let mut is_better = true;
    for row in &rows {
        let device = row["device"].as_str().unwrap();
        let at =
            lines.iter().position(|line| line.split(' ').next() == Some(device)).unwrap_or_else(|| panic!("{out}"));
        let said = lines[at][device.len()..].trim_start();
        match row["reason"].as_str() {
            Some(reason) => assert_eq!(said, format!("not available: {reason}")),
            None => {
                let offer = |key: &str| row["offer"][key].as_str().unwrap();
                assert!(said.starts_with(offer("name")), "{out}");
                assert!(lines[at + 2].trim_start().starts_with(&format!("{}: ", offer("backend"))), "{out}");
            }
        }
        let is_best = row["best"] == true;
        assert_eq!(line("the best for programs").contains(&format!(": {device} (")), is_best, "{out}");
        is_better &= !is_best;
        let passed_over = is_better && ["cuda:0", "wgpu"].contains(&device);
        assert_eq!(out.contains(&format!("\n  not {device}: ")), passed_over, "{out}");
    }
    assert!(line("host ").ends_with("memory of this machine") && line("sim ").ends_with("it holds no bytes"), "{out}");
    assert!(out.contains("unless told otherwise"), "{out}");
    assert!(out.lines().all(|line| line.len() < 240 && !line.ends_with(' ')), "{out}");
}

#[test]
fn a_closed_pipe_is_quiet() {
    let mut child =
        command(&[&resnet(), "--no-time", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let (code, _, err) = texts(&output);
    assert_eq!((code, err.as_str()), (Some(0), ""));
}

#[test]
fn help_tells_every_figure_and_option() {
    let (code, help, _) = texts(&larder(&["--help"]));
    assert_eq!(code, Some(0));
    let row = row(&[&resnet(), "--no-time"]);
    let explained =
        ["file", "backend", "streams", "lag", "slack", "capacity", "repeat", "events", "trace", "min_ratio"];
    for key in row.as_object().unwrap().keys().filter(|key| !explained.contains(&key.as_str())) {
        assert!(help.contains(key.as_str()), "{key} is not in the help");
    }
    let mut version = Command::new(env!("CARGO_BIN_EXE_larder"));
    let output = version.arg("--version").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("larder {}\n", env!("CARGO_PKG_VERSION")));
}
