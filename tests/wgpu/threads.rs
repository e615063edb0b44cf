//! Many threads on one device, and the program's own callbacks among them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use larder::Config;
use larder::backend::Backend;
use larder::units::KIB;
use larder::wgpu::api::{BufferDescriptor, BufferUsages, ErrorFilter, PollType};

use crate::common::Rng;
use crate::stage::stages;

#[test]
fn threads_share_a_device_and_each_finds_its_own_bytes() {
    for stage in stages(&Config { segment_min: 64 * KIB, ..Config::default() }) {
        std::thread::scope(|scope| {
            for thread in 0..4_u32 {
                let gpu = stage.gpu.clone();
                scope.spawn(move || {
                    let mut rng = Rng::new(thread.into());
                    for round in 0..60 {
                        let recording = gpu.recording().unwrap();
                        let mut encoder = gpu.device().create_command_encoder(&Default::default());
                        let block = gpu.alloc(4 * rng.range(1, 5_000)).unwrap();
                        let data = vec![thread << 16 | round; block.len() as usize / 4];
                        gpu.upload_in(&mut encoder, &block, &data).unwrap();
                        let copy = gpu.request(block.len()).apart_from(&block).alloc().unwrap();
                        gpu.copy_in(&mut encoder, &block, &copy).unwrap();
                        drop(block);
                        recording.submit([encoder.finish()]);
                        assert!(gpu.read::<u32>(&copy).unwrap() == data);
                        if rng.one_in(10) {
                            gpu.trim(0).unwrap();
                        }
                    }
                });
            }
        });
        stage.gpu.check().unwrap();
        stage.gpu.purge().unwrap();
        assert_eq!(stage.gpu.stats().reserved.current, 0);
    }
}

#[test]
fn a_callback_of_the_program_may_drop_blocks_and_its_panic_is_the_programs_own() {
    for stage in stages(&Config::default()) {
        let (gpu, dropped) = (&stage.gpu, Arc::new(AtomicU32::new(0)));
        let (block, counter) = (gpu.alloc(100).unwrap(), dropped.clone());
        gpu.queue().on_submitted_work_done(move || {
            drop(block);
            counter.fetch_add(1, SeqCst);
        });
        gpu.read::<u8>(&gpu.alloc_zeroed(8).unwrap()).unwrap();
        assert_eq!((dropped.load(SeqCst), gpu.stats().live.current), (1, 0));
        gpu.queue().on_submitted_work_done(|| panic!("of the program"));
        let looked = catch_unwind(AssertUnwindSafe(|| stage.backing.tidy()));
        assert_eq!(looked.unwrap_err().downcast_ref::<&str>(), Some(&"of the program"));
        assert_eq!(gpu.read::<u8>(&gpu.alloc_zeroed(8).unwrap()).unwrap(), [0; 8]);
        gpu.check().unwrap();
    }
}

#[test]
fn what_a_callback_of_the_program_does_wrong_is_the_programs_to_hear_and_no_failure_of_ours() {
    for stage in stages(&Config::default()) {
        let (gpu, wrong) = (&stage.gpu, Arc::new(AtomicU32::new(0)));
        let block = gpu.alloc(4096).unwrap();
        let mistakes = || {
            let (device, counter) = (gpu.device().clone(), wrong.clone());
            gpu.queue().on_submitted_work_done(move || {
                let usage = BufferUsages::MAP_READ | BufferUsages::MAP_WRITE | BufferUsages::STORAGE;
                let _ =
                    device.create_buffer(&BufferDescriptor { label: None, size: 4, usage, mapped_at_creation: false });
                counter.fetch_add(1, SeqCst);
            });
        };
        let calls: [&dyn Fn(); 3] =
            [&|| gpu.upload(&block, &[7_u8; 4096]).unwrap(), &|| gpu.fill(&block, 0).unwrap(), &|| {
                assert_eq!(gpu.read::<u8>(block.part(0, 1)).unwrap(), [0])
            }];
        for (at, call) in (0..).zip(calls) {
            let scope = gpu.device().push_error_scope(ErrorFilter::Validation);
            mistakes();
            call();
            // Whether it ran within the call or runs now is the device's choice.
            gpu.device().poll(PollType::wait_indefinitely()).unwrap();
            assert_eq!(wrong.load(SeqCst), at + 1);
            assert!(pollster::block_on(scope.pop()).is_some(), "the program hears of it");
        }
    }
}

#[test]
fn a_panic_of_a_callback_does_not_meet_another() {
    for stage in stages(&Config::default()) {
        let queue = stage.gpu.queue().clone();
        let caught = catch_unwind(AssertUnwindSafe(move || {
            let _block = stage.gpu.alloc_zeroed(100).unwrap();
            queue.on_submitted_work_done(|| panic!("of a callback"));
            let _stage = stage;
            panic!("of the program");
        }));
        assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"of the program"));
    }
}
