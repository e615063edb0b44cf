//! A block goes to the first memory that has room; only a lack of memory passes it on; every tier's part is counted and told.

use larder::backend::BackendError;
use larder::backend::sim::{Call, Sim, SimConfig};
use larder::units::{GIB, MIB};
use larder::{AllocError, Allocator, Config, Fallback, Simulated};

fn device(capacity: u64) -> (Allocator<Simulated>, Sim) {
    Allocator::simulated(SimConfig { capacity, ..SimConfig::default() }, Config::default()).unwrap()
}

#[test]
fn blocks_go_to_the_first_memory_that_has_room() {
    let ((fast, _), (slow, _)) = (device(8 * MIB), device(32 * MIB));
    let host = Allocator::host(Config::default().limit(64 * MIB)).unwrap();
    let memory = Fallback::new("fast", &fast).then("slow", &slow).then("host", &host);
    let sizes = [4, 16, 4, 12, 6, 2, 40];
    let blocks: Vec<_> = sizes.iter().map(|size| memory.alloc(size * MIB).unwrap()).collect();
    let tiers: Vec<&str> = blocks.iter().map(|placed| placed.tier).collect();
    assert_eq!(tiers, ["fast", "slow", "fast", "slow", "host", "slow", "host"]);

    let stats = memory.stats();
    let figures = |at: usize| {
        let tier = &stats[at];
        (tier.name, tier.served, tier.served_bytes / MIB, tier.refused, tier.refused_bytes / MIB)
    };
    assert_eq!(figures(0), ("fast", 2, 8, 5, 76));
    assert_eq!(figures(1), ("slow", 3, 30, 2, 46));
    assert_eq!(figures(2), ("host", 2, 46, 0, 0));
    for ((_, allocator), tier) in memory.tiers().zip(&stats) {
        assert_eq!(allocator.stats().live.current, tier.served_bytes);
    }
    drop(blocks);
    assert_eq!(memory.alloc(8 * MIB).unwrap().tier, "fast", "what was freed is had again there");
}

#[test]
fn when_all_are_full_each_says_why() {
    let ((fast, _), (slow, _)) = (device(8 * MIB), device(32 * MIB));
    let memory = Fallback::new("fast", &fast).then("slow", &slow);
    let error = memory.alloc_with(GIB, |request| request.tag("weights")).unwrap_err();
    assert_eq!((error.requested, error.tiers.len()), (GIB, 2));
    for (name, error) in &error.tiers {
        let report = error.report().unwrap_or_else(|| panic!("{name}: {error}"));
        assert_eq!((report.request.tag.as_str(), report.request.site.file), ("weights", file!()));
    }
    let text = error.to_string();
    assert!(text.starts_with("no memory served 1 GiB\nfast: out of memory: 1 GiB for weights"), "{text}");
    assert!(text.contains("\nslow: out of memory"), "{text}");
    assert_eq!(memory.stats().iter().map(|tier| tier.refused).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn what_is_no_lack_of_memory_ends_the_request() {
    let ((fast, sim), (slow, _)) = (device(8 * MIB), device(32 * MIB));
    let memory = Fallback::new("fast", &fast).then("slow", &slow);
    sim.lose("pulled out");
    let error = memory.alloc(MIB).unwrap_err();
    assert!(
        matches!(&error.tiers[..], [("fast", AllocError::Backend(BackendError::Lost { .. }))]),
        "{error}: a lost device is not hidden"
    );
    assert_eq!((memory.stats()[0].refused, memory.stats()[1].refused, memory.stats()[1].served), (1, 0, 0));

    let (fast, sim) = device(8 * MIB);
    let memory = Fallback::new("fast", &fast).then("slow", &slow);
    let driver = BackendError::Driver { call: "back", reason: "unknown".into(), code: 999 };
    sim.fail_at(Call::Back, 1, driver.clone());
    assert_eq!(memory.alloc(MIB).unwrap_err().tiers, [("fast", AllocError::Backend(driver))]);
    assert_eq!(memory.alloc(MIB).unwrap().tier, "fast");
    let error = memory.alloc_with(MIB, |request| request.align(3)).unwrap_err();
    assert!(matches!(&error.tiers[..], [("fast", AllocError::BadAlignment { .. })]), "{error}");
}

#[test]
fn what_is_too_large_for_one_is_asked_of_the_next() {
    let small = SimConfig { region_max: 4 * MIB, ..SimConfig::default() };
    let (small, _) = Allocator::simulated(small, Config::default()).unwrap();
    let (large, _) = device(GIB);
    let memory = Fallback::new("small", &small).then("large", &large);
    assert_eq!(memory.alloc(8 * MIB).unwrap().tier, "large");
}

#[cfg(target_os = "linux")]
#[test]
fn the_last_resort_is_the_disk() {
    let (gpu, _) = device(8 * MIB);
    let host = Allocator::host(Config::default().limit(16 * MIB)).unwrap();
    let disk = Allocator::host_file(&std::env::temp_dir(), Config::default().limit(64 * MIB)).unwrap();
    let memory = Fallback::new("gpu", &gpu).then("host", &host).then("disk", &disk);
    let mut placed: Vec<_> = (0..10).map(|_| memory.alloc(6 * MIB).unwrap()).collect();
    let on = |tier: &str| placed.iter().filter(|placed| placed.tier == tier).count();
    assert_eq!((on("gpu"), on("host"), on("disk")), (1, 2, 7));
    let last = &mut placed[9].block;
    last.upload(b"kept in a file").unwrap();
    assert!(last.read().unwrap().starts_with(b"kept in a file"));
}
