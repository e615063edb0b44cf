//! CUDA devices chosen at run time, over the stand-in driver: the story of every device, copies in the order of streams, reasons, and
//! the tool.
#![cfg(all(target_os = "linux", feature = "cuda"))]

#[path = "common/driver.rs"]
mod driver;
#[path = "device/story.rs"]
mod story;

use std::process::Command;
use std::time::Duration;

use driver::{Machine, standin};
use larder::cuda::{Cuda, Pinned};
use larder::device::{Kind, TransferError, Unavailable};
use larder::units::MIB;
use larder::{Allocator, Config, Device, Fallback, cuda};
use story::{small, story};

#[test]
fn the_story_of_every_device_leaves_nothing_behind() {
    let Some(driver) = standin() else { return };
    for virtual_memory in [true, false] {
        driver.reset(Machine { virtual_memory, ..driver.machine() });
        let device = Device::cuda(0, small()).unwrap();
        assert_eq!((device.offer().page.is_some(), device.is_software()), (virtual_memory, false));
        assert!(device.offer().streams);
        story(&device);
        drop(device);
        driver.assert_clean();
        assert!(driver.totals().is_clean(), "{:?}", driver.leaks());
    }
}

#[test]
fn it_is_the_best_there_is_and_each_is_offered() {
    let Some(driver) = standin() else { return };
    driver.reset(Machine { devices: 2, ..driver.machine() });
    let best = Device::best(small()).unwrap();
    assert_eq!((best.kind(), best.passed_over()), (&Kind::Cuda(0), &[][..]));
    let available = Device::available();
    for number in 0..2 {
        let one = &available[number as usize];
        assert_eq!(one.kind, Kind::Cuda(number));
        let offer = one.offer.as_ref().unwrap();
        assert!(!offer.name.is_empty() && offer.memory.unwrap().total > 0 && offer.captures);
    }
    assert!(matches!(Device::cuda(2, small()), Err(Unavailable::NoSuchDevice { number: 2, count: 2 })));
    drop(best);
    driver.assert_clean();
}

#[test]
fn a_driver_that_does_not_serve_is_passed_over_with_its_reason() {
    let Some(driver) = standin() else { return };
    for (machine, wanted) in [
        (Machine { init: 100, ..driver.machine() }, "no device"),
        (Machine { init: 34, ..driver.machine() }, "34"),
        (Machine { devices: 0, ..driver.machine() }, "no device"),
        (Machine { version: 9000, ..driver.machine() }, "9.0"),
    ] {
        driver.reset(machine);
        let best = Device::best(small()).unwrap();
        let (kind, reason) = &best.passed_over()[0];
        assert_eq!(*kind, Kind::Cuda(0));
        assert!(matches!(reason, Unavailable::NoDriver { .. }) && reason.to_string().contains(wanted), "{reason}");
        assert!(Device::available()[0].offer.is_err());
    }
}

#[test]
fn copies_follow_the_streams_that_a_block_is_in_use_on() {
    let Some(driver) = standin() else { return };
    let device = Device::cuda(0, small()).unwrap();
    let gpu: Allocator<Cuda> = device.allocator().downcast().unwrap();
    let stream = gpu.context().new_stream().unwrap();
    let s = gpu.stream_of(&stream).unwrap();
    for round in 0..20_u8 {
        let mut buffer = gpu.buffer_on::<u8>(&s, 4096).unwrap();
        stream.memset_zeros(&mut buffer).unwrap();
        let mut block = buffer.into_block().erase();
        block.upload(&[round; 100]).unwrap();
        let bytes = block.read().unwrap();
        assert_eq!((&bytes[..100], &bytes[100..]), (&[round; 100][..], &[0; 3996][..]));
        assert_eq!(block.upload(&[0; 4097]), Err(TransferError::TooLong { bytes: 4097, block: 4096 }));
    }
    drop((s, gpu, device));
    driver.assert_clean();
}

#[test]
fn work_that_is_never_complete_and_a_lost_device_end_a_copy() {
    let Some(driver) = standin() else { return };
    let device = Device::cuda(0, Config { wait_max: Duration::from_millis(20), ..small() }).unwrap();
    let gpu: Allocator<Cuda> = device.allocator().downcast().unwrap();
    let stream = gpu.context().new_stream().unwrap();
    let s = gpu.stream_of(&stream).unwrap();
    let mut buffer = gpu.buffer_on::<u8>(&s, 4096).unwrap();
    driver.patience(0);
    stream.memset_zeros(&mut buffer).unwrap();
    let mut block = buffer.into_block().erase();
    assert_eq!(block.upload(&[1; 4096]), Err(TransferError::TimedOut));
    assert_eq!(block.read(), Err(TransferError::TimedOut));
    driver.patience(1);
    block.upload(&[1; 4096]).unwrap();
    driver.lose(719);
    assert!(matches!(block.upload(&[2; 4]), Err(TransferError::Backend(_))));
    assert!(matches!(block.read(), Err(TransferError::Backend(_))));
    driver.heal();
}

#[test]
fn from_the_device_to_pinned_memory_to_the_disk() {
    let Some(driver) = standin() else { return };
    let context = cuda::probe().unwrap().context(0).unwrap();
    let gpu = cuda::allocator(&context, Config::default().limit(16 * MIB)).unwrap();
    let pinned = cuda::pinned(&context, Config::default().limit(16 * MIB)).unwrap();
    let disk = Allocator::host_file(&std::env::temp_dir(), Config::default().limit(64 * MIB)).unwrap();
    let memory = Fallback::new("gpu", &gpu).then("pinned", &pinned).then("disk", &disk);
    let mut placed: Vec<_> = (0..6).map(|_| memory.alloc(7 * MIB).unwrap()).collect();
    let tiers: Vec<&str> = placed.iter().map(|placed| placed.tier).collect();
    assert_eq!(tiers, ["gpu", "gpu", "pinned", "pinned", "disk", "disk"]);
    for (at, placed) in placed.iter_mut().enumerate() {
        placed.block.upload(&[at as u8; 1000]).unwrap();
    }
    for (at, placed) in placed.iter().enumerate() {
        assert!(placed.block.read().unwrap().starts_with(&[at as u8; 1000]), "{}", placed.tier);
        assert_eq!(placed.block.is::<Pinned>(), placed.tier == "pinned");
    }
    let error = memory.alloc(60 * MIB).unwrap_err();
    assert_eq!(error.tiers.iter().filter(|(_, error)| error.report().is_some()).count(), 3, "{error}");
    drop((placed, memory, gpu, pinned, context));
    driver.assert_clean();
}

#[test]
fn the_tool_probes_and_plays_on_it() {
    let Some(_driver) = standin() else { return };
    let Some(tool) = option_env!("CARGO_BIN_EXE_larder") else {
        println!("not run: the tool is not built");
        return;
    };
    let trace = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/06_resnet50_server.gz");
    let run = |arguments: &[&str]| {
        let output = Command::new(tool).args(arguments).env("LD_LIBRARY_PATH", driver::built()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text)
    };
    let (code, text) = run(&["probe"]);
    assert!(code == Some(0) && text.contains("the best for programs that let larder choose: cuda:0"), "{text}");
    let (code, text) = run(&["replay", trace, "--backend", "cuda", "--no-time"]);
    assert!(code == Some(0) && text.starts_with("backend cuda:0, slack") && text.contains("passes"), "{text}");
    let (code, text) = run(&["replay", trace, "--backend", "cuda", "--no-time", "--capacity", "300MiB"]);
    assert!(code == Some(1) && text.contains("of cuda, limit 300 MiB"), "{text}");
}
