//! What cannot be served, and what contradicts itself: each is a typed error with its figures, and changes nothing.

mod common;

use common::world::World;
use larder::allocator::{AllocError, Allocator};
use larder::backend::BackendError;
use larder::backend::sim::{SimConfig, SimMemory};
use larder::ids::PoolId;
use larder::policy::{Config, ConfigError, PoolConfig};
use larder::snapshot::Verdict;
use larder::units::{GIB, KIB, MIB, TIB};

const MEMORIES: [SimMemory; 4] = [SimMemory::Alias, SimMemory::Remap, SimMemory::Paged, SimMemory::Segments];

fn world(memory: SimMemory, config: Config) -> World {
    World::new(SimConfig { capacity: GIB, memory, region_max: TIB, ..SimConfig::default() }, config, 2)
}

/// Nothing was lost: every figure is right, and a request that can be served is.
fn works(world: &mut World) {
    world.check();
    world.alloc(1, 3 * MIB).unwrap();
    world.drop_at(world.held.len() - 1);
    world.check();
}

#[test]
fn sizes_that_no_block_can_have() {
    for memory in MEMORIES {
        let mut world = world(memory, Config::default());
        world.alloc(0, MIB).unwrap();
        for bytes in [TIB + 1, (1 << 63) - 1, 1 << 63, (1 << 63) + 1, u64::MAX - 511, u64::MAX] {
            assert_eq!(world.alloc(0, bytes), Err(AllocError::TooLarge { requested: bytes, max: TIB }), "{bytes}");
            let text = AllocError::TooLarge { requested: bytes, max: TIB }.to_string();
            assert!(text.contains(&bytes.to_string()) && text.contains("1099511627776"), "{text}");
        }
        works(&mut world);
        let error = world.alloc(0, TIB).unwrap_err();
        let report = error.report().expect("more than the device has is out of memory");
        assert_eq!((report.request.requested, report.limit, report.verdict()), (TIB, None, Verdict::DeviceFull));
        works(&mut world);
        world.end();
    }
}

#[test]
fn sizes_beyond_the_limit() {
    for memory in MEMORIES {
        let mut world = world(memory, Config::default().limit(64 * MIB));
        world.alloc(0, 10 * MIB).unwrap();
        for (bytes, verdict) in [(64 * MIB + 1, Verdict::LargerThanLimit), (60 * MIB, Verdict::LimitReached)] {
            let error = world.alloc(0, bytes).unwrap_err();
            let report = error.report().expect("a report");
            assert_eq!((report.request.requested, report.limit), (bytes, Some(64 * MIB)), "{error}");
            assert_eq!(report.request.rounded, bytes.next_multiple_of(512));
            assert_eq!((report.verdict(), report.stats.live.current), (verdict, 10 * MIB), "{memory:?}");
            works(&mut world);
        }
        assert_eq!(world.allocator.stats().failures, 2);
        world.end();
    }
}

#[test]
fn alignments_that_nothing_can_have() {
    for memory in MEMORIES {
        let mut world = world(memory, Config::default());
        let max = world.allocator.capabilities().base_align;
        for align in [0, 3, 48, max - 1, max + 1, 2 * max, 1 << 63, u64::MAX] {
            for bytes in [0, 100] {
                let made = world.serve(0, bytes, |request| request.align(align));
                assert_eq!(made, Err(AllocError::BadAlignment { align, max }), "{align} for {bytes} bytes");
            }
        }
        works(&mut world);
        world.serve(0, 100, |request| request.align(max)).unwrap();
        assert_eq!(world.held[0].block.address() % max, 0);
        works(&mut world);
        world.end();
    }
}

/// Large and aligned together may pass the end of the addresses, or of `u64`.
#[test]
fn the_largest_size_with_the_largest_alignment() {
    for memory in MEMORIES {
        let mut world = world(memory, Config::default());
        let max = world.allocator.capabilities().base_align;
        for bytes in [TIB, TIB - 512, GIB] {
            match world.serve(0, bytes, |request| request.align(max)) {
                Ok(()) => {
                    assert_eq!(bytes, GIB);
                    world.held.clear();
                }
                Err(error) => assert!(error.report().is_some() && bytes > GIB, "{bytes}: {error}"),
            }
        }
        works(&mut world);
        world.end();
    }
}

fn contradictions() -> Vec<(Config, ConfigError)> {
    let config = Config::default();
    let power = |key, value, min, max| ConfigError::NotPowerOfTwo { key, value, min, max };
    let range = |key, value, min, max| ConfigError::OutOfRange { key, value, min, max };
    let against = |low, low_value, high, high_value| ConfigError::Contradiction { low, low_value, high, high_value };
    vec![
        (Config { page: Some(3 * MIB), ..config.clone() }, power("page", 3 * MIB, 4096, 1 << 36)),
        (Config { page: Some(2048), ..config.clone() }, power("page", 2048, 4096, 1 << 36)),
        (Config { page: Some(1 << 37), ..config.clone() }, power("page", 1 << 37, 4096, 1 << 36)),
        (Config { slack: 0.99, ..config.clone() }, range("slack", 0.99, 1.0, 1e6)),
        (Config { slack: f64::INFINITY, ..config.clone() }, range("slack", f64::INFINITY, 1.0, 1e6)),
        (Config { high_watermark: 1.5, ..config.clone() }, range("high_watermark", 1.5, 0.0, 1.0)),
        (Config { low_watermark: -0.1, ..config.clone() }, range("low_watermark", -0.1, 0.0, 1.0)),
        (Config { poll_every: 0, ..config.clone() }, range("poll_every", 0.0, 1.0, f64::from(u32::MAX))),
        (Config { segment_min: 100, ..config.clone() }, range("segment_min", 100.0, 4096.0, TIB as f64)),
        (
            Config { high_watermark: 0.3, low_watermark: 0.6, ..config.clone() },
            against("low_watermark", 0.6, "high_watermark", 0.3),
        ),
        (
            Config { soft_limit: Some(2 * GIB), limit: Some(GIB), ..config.clone() },
            against("soft_limit", (2 * GIB) as f64, "limit", GIB as f64),
        ),
        (
            Config { quantum: Some(8 * KIB), page: Some(4 * KIB), ..config },
            against("quantum", (8 * KIB) as f64, "page", (4 * KIB) as f64),
        ),
    ]
}

#[test]
fn configs_that_contradict_themselves() {
    let mut world = world(SimMemory::Alias, Config::default());
    for (config, error) in contradictions() {
        assert_eq!(config.validate(), Err(error.clone()));
        let made = Allocator::simulated(SimConfig::default(), config.clone()).map(drop);
        assert_eq!(made, Err(AllocError::Config(error.clone())));
        assert_eq!(Allocator::host(config.clone()).map(drop), Err(AllocError::Config(error.clone())));
        assert_eq!(Allocator::host_system(config.clone()).map(drop), Err(AllocError::Config(error.clone())));
        let before = world.allocator.config();
        assert_eq!(world.allocator.set_config(config), Err(error));
        assert_eq!(world.allocator.config(), before, "nothing is changed");
        works(&mut world);
    }
    for quantum in [0, 3, 1 << 40] {
        let config = Config { quantum: Some(quantum), ..Config::default() };
        let error = config.validate().unwrap_err();
        assert!(
            matches!(error, ConfigError::NotPowerOfTwo { key: "quantum", value, .. } if value == quantum),
            "{error}"
        );
    }
    // No number at all is out of every range.
    for config in [
        Config { slack: f64::NAN, ..Config::default() },
        Config { high_watermark: f64::NAN, ..Config::default() },
        Config { low_watermark: f64::NAN, ..Config::default() },
    ] {
        assert!(matches!(config.validate(), Err(ConfigError::OutOfRange { value, .. }) if value.is_nan()));
    }
    world.end();
}

#[test]
fn config_texts() {
    let mut config = Config::default();
    let error = config.set("slak", "1.1").unwrap_err();
    assert!(matches!(&error, ConfigError::UnknownKey { key, known } if key == "slak" && known.contains("slack")));
    assert!(error.to_string().contains("slack"), "the keys that there are: {error}");
    for (key, value) in [
        ("limit", "lots"),
        ("limit", "-1"),
        ("limit", "99999999999g"),
        ("soft_limit", ""),
        ("on_limit", "explode"),
        ("slack", "tight"),
        ("quantum", "1.x"),
        ("page", "2 parsecs"),
        ("segment_min", "many"),
        ("alias", "perhaps"),
        ("wait_max", "-3"),
        ("wait_max", "soon"),
        ("high_watermark", "high"),
        ("decay", "1e300"),
        ("poll_every", "1.5"),
    ] {
        let error = config.set(key, value).unwrap_err();
        let told = matches!(&error, ConfigError::BadValue { key: k, value: v, .. } if k == key && v == value);
        assert!(told, "{key} = {value}: {error}");
    }
    assert_eq!(config, Config::default(), "nothing is changed");
}

#[test]
fn pools_and_streams_of_others() {
    for memory in MEMORIES {
        let mut world = world(memory, Config::default());
        let other = World::new(SimConfig::default(), Config::default(), 2);
        world.alloc(0, MIB).unwrap();
        let stats = world.allocator.total_stats();
        for bytes in [0, 100] {
            for stream in &other.streams {
                let made = world.allocator.request(bytes).on(stream).alloc().map(drop);
                assert_eq!(made, Err(AllocError::ForeignStream));
            }
            let made = world.allocator.request(bytes).pool(PoolId(7)).alloc().map(drop);
            assert_eq!(made, Err(AllocError::UnknownPool { pool: PoolId(7), pools: 1 }));
            let made = world.allocator.request(bytes).pool(PoolId(u16::MAX)).alloc().map(drop);
            assert_eq!(made, Err(AllocError::UnknownPool { pool: PoolId(u16::MAX), pools: 1 }));
        }
        world.held[0].block.used_on(&other.streams[1]);
        assert_eq!(world.allocator.total_stats(), stats);
        works(&mut world);
        world.end();
        other.end();
    }
}

#[test]
fn more_pools_than_there_can_be() {
    let mut world = world(SimMemory::Alias, Config::default());
    for number in 1..256 {
        let pool = world.allocator.pool(&format!("pool {number}"), PoolConfig::default()).unwrap();
        assert_eq!(pool.pool_id(), PoolId(number));
    }
    for _ in 0..2 {
        let made = world.allocator.pool("one more", PoolConfig::default()).map(drop);
        assert_eq!(made, Err(AllocError::TooManyPools { max: 256 }));
    }
    world.serve(1, MIB, |request| request.pool(PoolId(255))).unwrap();
    works(&mut world);
    world.end();
}

#[test]
fn more_streams_than_there_can_be() {
    let world = world(SimMemory::Segments, Config::default());
    let mut streams = Vec::new();
    let error = loop {
        match world.allocator.stream() {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
        assert!(streams.len() < 1 << 17, "no end to the streams");
    };
    let max = 1 << 15;
    assert_eq!(
        error,
        AllocError::Backend(BackendError::TooLarge { call: "open_stream", requested: max + 1, max }),
        "{} streams",
        streams.len()
    );
    let last = streams.last().unwrap();
    let block = world.allocator.alloc_on(last, MIB).unwrap();
    drop((block, streams));
    world.check();
}

#[test]
fn zero_bytes_are_served_everywhere() {
    for memory in MEMORIES {
        let mut world = world(memory, Config::default().limit(64 * MIB));
        for align in [1, 512, MIB] {
            world.serve(1, 0, |request| request.align(align).zeroed()).unwrap();
            let block = &world.held[world.held.len() - 1].block;
            assert_eq!((block.len(), block.size(), block.id(), block.span()), (0, 0, None, None));
            assert!(block.is_empty() && block.address() > 0 && block.address().is_multiple_of(align));
        }
        world.use_on(0, 0);
        assert_eq!(world.allocator.stats().reserved.peak, 0);
        works(&mut world);
        world.end();
    }
    for host in [Allocator::host(Config::default()).unwrap(), Allocator::host_system(Config::default()).unwrap()] {
        let mut block = host.request(0).align(4096).zeroed().alloc().unwrap();
        assert!(block.address() % 4096 == 0 && block.as_mut_bytes().is_empty());
        host.check().unwrap();
        assert_eq!(host.stats().reserved.current, 0);
    }
}
