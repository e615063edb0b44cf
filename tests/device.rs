//! Devices chosen at run time: the same story on each kind that this machine has, a reason for each that it has not, and never a
//! panic over either.

#[path = "device/story.rs"]
mod story;

use larder::backend::sim::{SimConfig, SimMemory};
use larder::device::{Kind, TransferError, Unavailable};
use larder::units::{GIB, MIB};
use larder::{AllocError, Allocator, Config, Device, Host, Simulated};
use story::{small, story};

#[test]
fn the_same_story_on_every_device_that_is_here() {
    let files = Kind::File(std::env::temp_dir());
    for kind in [Kind::Host, files, Kind::Simulated, Kind::Cuda(0), Kind::Wgpu] {
        match Device::open(&kind, small()) {
            Ok(device) => {
                println!("{kind}: {}", device.name());
                story(&device);
            }
            Err(reason) => {
                let insists = std::env::var("LARDER_REQUIRE_WGPU").is_ok_and(|value| value == "1");
                assert!(kind != Kind::Host && kind != Kind::Simulated, "{kind}: {reason}");
                assert!(kind != Kind::Wgpu || !insists, "{kind}: {reason}");
                println!("{kind}: not run: {reason}");
            }
        }
    }
}

#[test]
fn every_device_is_offered_or_refused_in_words() {
    let available = Device::available();
    let of = |kind: &Kind| available.iter().find(|one| one.kind == *kind).unwrap();
    for kind in [Kind::Cuda(0), Kind::Wgpu, Kind::Host, Kind::Simulated] {
        match &of(&kind).offer {
            Ok(offer) => {
                assert!(!offer.name.is_empty() && offer.region_max > 0, "{kind}: {offer:?}");
                assert!(offer.memory.is_none_or(|memory| memory.free <= memory.total));
            }
            Err(reason) => {
                let text = reason.to_string();
                assert!(text.len() > 10 && !text.contains('\n'), "{kind}: {text:?}");
            }
        }
    }
    let host = of(&Kind::Host).offer.as_ref().unwrap();
    assert!(host.limit.is_some() && !host.streams && !host.software);
    let simulated = of(&Kind::Simulated).offer.as_ref().unwrap();
    assert!(simulated.remap && simulated.alias && simulated.streams);
}

#[test]
fn the_best_device_is_always_there_and_never_software() {
    let best = Device::best(small()).unwrap();
    assert!(!best.is_software());
    assert_ne!(*best.kind(), Kind::Simulated);
    let passed_over: Vec<&Kind> = best.passed_over().iter().map(|(kind, _)| kind).collect();
    let better = [Kind::Cuda(0), Kind::Wgpu];
    let count = better.iter().position(|kind| kind == best.kind()).unwrap_or(better.len());
    assert_eq!(passed_over, better[..count].iter().collect::<Vec<_>>());
    if Device::wgpu(small()).is_ok_and(|device| device.is_software()) {
        let why = best.passed_over().iter().find(|(kind, _)| *kind == Kind::Wgpu);
        assert!(why.is_none_or(|(_, reason)| matches!(reason, Unavailable::Software { .. })), "{why:?}");
        assert_ne!(*best.kind(), Kind::Wgpu);
    }
    story(&best);
}

#[test]
fn a_config_that_contradicts_itself_is_told_and_no_other_device_taken() {
    let config = Config { low_watermark: 0.9, high_watermark: 0.1, ..Config::default() };
    assert!(matches!(Device::best(config.clone()), Err(AllocError::Config(_))));
    assert!(matches!(Device::open(&Kind::Host, config), Err(Unavailable::Refused(AllocError::Config(_)))));
}

#[test]
fn kinds_are_read_as_they_are_written() {
    for text in ["host", "sim", "cuda:0", "cuda:7", "wgpu", "file:/var/tmp", "file:a:b"] {
        assert_eq!(text.parse::<Kind>().unwrap().to_string(), text);
    }
    assert_eq!("cuda".parse(), Ok(Kind::Cuda(0)));
    for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "host:1", "file", "file:", "Host", "wgpu:0"] {
        let error = text.parse::<Kind>().unwrap_err();
        assert!(error.to_string().contains("cuda:NUMBER"), "{error}");
    }
}

#[test]
fn the_kind_of_the_memory_comes_back() {
    let device = Device::host(small()).unwrap();
    let host: Allocator<Host> = device.allocator().downcast().unwrap();
    assert!(device.allocator().downcast::<Simulated>().is_none());
    let block = host.alloc(MIB).unwrap();
    assert_eq!(device.allocator().stats().live.current, MIB);
    let erased = block.erase();
    assert!(erased.is::<Host>() && !erased.is::<Simulated>());
    assert_eq!(erased.host_bytes().unwrap().len() as u64, MIB);
}

#[test]
fn bytes_that_do_not_fit_and_memory_without_bytes_are_typed_errors() {
    let device = Device::host(small()).unwrap();
    let mut block = device.alloc(10).unwrap();
    let error = block.upload(&[1; 11]).unwrap_err();
    assert_eq!(error, TransferError::TooLong { bytes: 11, block: 10 });
    block.upload(&[7; 4]).unwrap();
    assert_eq!(&block.read().unwrap()[..4], [7; 4]);
    let mut nothing = device.alloc(0).unwrap();
    nothing.upload(&[]).unwrap();
    assert_eq!(nothing.read().unwrap(), []);

    let config = SimConfig { capacity: GIB, memory: SimMemory::Segments, ..SimConfig::default() };
    let (device, sim) = Device::simulated(config, Config::default()).unwrap();
    let mut block = device.alloc(10).unwrap();
    assert_eq!(block.upload(&[1]), Err(TransferError::NoBytes));
    assert_eq!(block.read(), Err(TransferError::NoBytes));
    assert!(block.host_bytes().is_none() && block.host_bytes_mut().is_none());
    assert_eq!(sim.counters().used, 2 * MIB);
    assert!(device.offer().page.is_none());
}
