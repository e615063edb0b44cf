//! What real models ask for, on a real device: buffers are created seldom.
//!
//! By default the committed traces are played; with `LARDER_FULL=1` so are others of the folder that `LARDER_TRACES` names, or of
//! `../shared/traces` beside the checkout.

use std::path::{Path, PathBuf};

use larder::Config;
use larder::trace::replay::Player;
use larder::trace::{Op, Trace};
use larder::wgpu::WgpuConfig;

use crate::common::full;
use crate::stage::{Stage, adapter};

/// Traces of long-running programs. The others are of a few thousand allocations, or grow for most of their time.
const TRACES: [&str; 4] =
    ["04_serve_llama7b_conv.gz", "06_resnet50_server.gz", "08_mixtral_infer.gz", "10_multimodel.gz"];

fn traces() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = std::env::var_os("LARDER_TRACES").map_or(root.join("../shared/traces"), PathBuf::from);
    let committed = TRACES.map(|name| root.join("tests/data").join(name));
    let others = TRACES.map(|name| folder.join(name)).into_iter().filter(|_| full());
    let mut all: Vec<PathBuf> = committed.into_iter().chain(others).filter(|path| path.exists()).collect();
    all.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    all.dedup_by_key(|path| path.file_name().map(ToOwned::to_owned));
    all
}

#[test]
fn a_thousand_allocations_create_one_buffer_at_most() {
    let Some(device) = adapter(|_| {}) else { return };
    let traces = traces();
    assert!(!traces.is_empty());
    for path in traces {
        let trace = Trace::load(&path).unwrap();
        let stage = Stage::with(device.clone(), WgpuConfig::default(), Config::default());
        assert_eq!(stage.gpu.config().segment_min, WgpuConfig::default().segment_min, "what makes it so");
        let mut player = Player::new(&trace, &stage.gpu.erase(), None).unwrap();
        player.play(1, |_| true).unwrap_or_else(|stopped| panic!("{}: {stopped}", path.display()));
        let allocations = trace.ops().iter().filter(|op| matches!(op, Op::Alloc { .. })).count() as u64;
        let (created, reserved) = (stage.backing.created(), stage.gpu.stats().reserved.peak);
        let ratio = reserved as f64 / trace.peak_requested() as f64;
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        println!("{name}: {created} buffers for {allocations} allocations, reserved {ratio:.4} of the peak");
        assert!(created * 1000 <= allocations, "{name}: {created} buffers for {allocations} allocations");
        player.free_all();
        stage.gpu.purge().unwrap();
    }
}
