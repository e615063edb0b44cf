//! Words of the command line: sizes, kinds of devices, and settings. Whatever is given is refused in a typed error or means what it
//! prints as; and a config that is found valid makes an allocator that serves, or a typed error.

use larder::backend::sim::SimConfig;
use larder::device::Kind;
use larder::units::{Bytes, KIB, MIB};
use larder::{Allocator, Config};

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut config = Config::default();
    for word in text.split([',', '\n']) {
        size(word);
        if let Ok(kind) = word.parse::<Kind>() {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        if let Some((key, value)) = word.split_once('=') {
            let before = config.clone();
            let was_set = config.set(key, value);
            // NaN is not equal to itself.
            assert!(was_set.is_ok() || format!("{config:?}") == format!("{before:?}"), "refused, but changed: {word}");
        }
    }
    if config.validate().is_ok() {
        serves(config);
    }
}

/// A size prints as a size that is the same to the hundredth that is printed.
fn size(word: &str) {
    let Ok(Bytes(bytes)) = word.parse::<Bytes>() else { return };
    match Bytes(bytes).to_string().parse::<Bytes>() {
        Ok(Bytes(printed)) => assert!(printed.abs_diff(bytes) <= bytes / 100, "{word}: {bytes} prints as {printed}"),
        Err(_) => assert!(bytes > u64::MAX / 2, "{word}: {bytes} prints as no size"),
    }
}

fn serves(config: Config) {
    let Ok((allocator, sim)) = Allocator::simulated(SimConfig::default(), config) else { return };
    let blocks: Vec<_> = [100, 5 * KIB, 3 * MIB].into_iter().filter_map(|bytes| allocator.alloc(bytes).ok()).collect();
    drop(blocks);
    let _ = allocator.alloc(20 * MIB);
    allocator.check().expect("the figures are right");
    assert_eq!((allocator.stats().live.current, sim.violations()), (0, vec![]));
}
