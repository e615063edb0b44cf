//! What every device does alike.

use larder::device::{Kind, TransferError};
use larder::pressure::Level;
use larder::units::MIB;
use larder::{Config, Device};

pub fn small() -> Config {
    Config::default().limit(64 * MIB)
}

/// Blocks, bytes there and back, accounting, pressure, a limit, a snapshot.
pub fn story(device: &Device) {
    let allocator = device.allocator();
    let mut block = device.alloc(48 * MIB).unwrap();
    let bytes: Vec<u8> = (0..100_001_u32).map(|at| (at % 251) as u8).collect();
    match block.upload(&bytes) {
        Ok(()) => {
            assert!(block.read().unwrap().starts_with(&bytes));
            block.upload(&[255; 5]).unwrap();
            let read = block.read().unwrap();
            assert_eq!((&read[..5], &read[5..100_001]), (&[255; 5][..], &bytes[5..]), "what is behind stays");
        }
        Err(error) => assert_eq!((error, device.kind()), (TransferError::NoBytes, &Kind::Simulated)),
    }
    assert_eq!(allocator.stats().live.current, 48 * MIB);
    assert!(allocator.pressure().level() >= Level::Medium, "{:?}", allocator.pressure());
    let error = device.alloc(40 * MIB).unwrap_err();
    assert_eq!(error.report().unwrap().limit, Some(64 * MIB), "{error}");
    let snapshot = allocator.snapshot();
    assert_eq!((snapshot.stats.live.current, snapshot.backend.as_str()), (48 * MIB, device.offer().backend));
    drop(block);
    let again = device.alloc(48 * MIB).unwrap();
    assert_eq!(
        allocator.stats().reserved.allocated,
        allocator.stats().reserved.current,
        "had again, not asked for again"
    );
    drop(again);
    allocator.purge().unwrap();
    assert_eq!(allocator.stats().reserved.current, 0);
    allocator.check().unwrap();
}
