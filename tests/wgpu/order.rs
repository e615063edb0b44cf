//! Memory is reused in the order of the queue, and recorded commands are waited for.

use std::time::Duration;

use larder::allocator::AllocError;
use larder::backend::Backend;
use larder::ids::StreamId;
use larder::units::{KIB, MIB};
use larder::wgpu::Wgpu;
use larder::wgpu::api::PollType;
use larder::{Block, Config};

use crate::stage::{Stage, adapter, place, stages};

const SIZE: u64 = 4 * KIB;

fn bytes(byte: u8) -> Vec<u8> {
    vec![byte; SIZE as usize]
}

/// A block that holds one byte all over.
fn holding(stage: &Stage, byte: u8) -> Block<Wgpu> {
    let block = stage.gpu.alloc(SIZE).unwrap();
    stage.gpu.upload(&block, &bytes(byte)).unwrap();
    block
}

/// A block in a buffer of its own kind, so that copies to it need no shader.
fn apart(stage: &Stage, from: &Block<Wgpu>) -> Block<Wgpu> {
    stage.gpu.request(SIZE).apart_from(from).alloc().unwrap()
}

#[test]
fn a_block_dropped_after_its_use_was_recorded_is_not_reused_before_the_submission() {
    for stage in stages(&Config::default()) {
        let gpu = &stage.gpu;
        let (first, _beside) = (holding(&stage, 1), holding(&stage, 0));
        let out = apart(&stage, &first);
        let recording = gpu.recording().unwrap();
        let mut encoder = stage.encoder();
        gpu.copy_in(&mut encoder, &first, &out).unwrap();
        let was = place(&first);
        drop(first);
        let second = gpu.alloc(SIZE).unwrap();
        assert_ne!(place(&second), was, "recorded commands still read there");
        gpu.upload(&second, &bytes(2)).unwrap();
        recording.submit([encoder.finish()]);
        assert_eq!(gpu.read::<u8>(&out).unwrap(), bytes(1));
        assert_eq!(place(&gpu.alloc(SIZE).unwrap()), was, "once submitted, the place is had again");
        assert_eq!(gpu.stats().host_waits, 0);
        gpu.check().unwrap();
    }
}

/// Why recordings are there: the same story without one ends with the wrong bytes.
#[test]
fn without_a_recording_it_is_reused_too_early() {
    for stage in stages(&Config::default()) {
        let gpu = &stage.gpu;
        let (first, _beside) = (holding(&stage, 1), holding(&stage, 0));
        let out = apart(&stage, &first);
        let mut encoder = stage.encoder();
        gpu.copy_in(&mut encoder, &first, &out).unwrap();
        let was = place(&first);
        drop(first);
        let second = gpu.alloc(SIZE).unwrap();
        assert_eq!(place(&second), was);
        gpu.upload(&second, &bytes(2)).unwrap();
        gpu.queue().submit([encoder.finish()]);
        assert_eq!(gpu.read::<u8>(&out).unwrap(), bytes(2));
    }
}

#[test]
fn two_recordings_submitted_out_of_order_both_read_what_was_there() {
    for stage in stages(&Config::default()) {
        let gpu = &stage.gpu;
        let (a, b) = (holding(&stage, 1), holding(&stage, 2));
        let _beside = holding(&stage, 0);
        let (of_a, of_b) = (apart(&stage, &a), apart(&stage, &a));
        let (first, second) = (gpu.recording().unwrap(), gpu.recording().unwrap());
        let (mut early, mut late) = (stage.encoder(), stage.encoder());
        gpu.copy_in(&mut early, &a, &of_a).unwrap();
        gpu.copy_in(&mut late, &b, &of_b).unwrap();
        let places = [place(&a), place(&b)];
        drop((a, b));
        let over = |byte| {
            let block = holding(&stage, byte);
            assert!(!places.contains(&place(&block)), "a recording that was open at the drop is open still");
            block
        };
        let _mine = [over(3), over(4)];
        second.submit([late.finish()]);
        let _more = [over(5), over(6)];
        first.submit([early.finish()]);
        assert!(places.contains(&place(&holding(&stage, 7))));
        assert_eq!((gpu.read(&of_a).unwrap(), gpu.read(&of_b).unwrap()), (bytes(1), bytes(2)));
        gpu.check().unwrap();
    }
}

#[test]
fn an_upload_comes_before_what_is_recorded_and_an_upload_into_an_encoder_in_its_place() {
    for stage in stages(&Config::default()) {
        let gpu = &stage.gpu;
        let block = holding(&stage, 1);
        let (before, after) = (apart(&stage, &block), apart(&stage, &block));
        let recording = gpu.recording().unwrap();
        let mut encoder = stage.encoder();
        gpu.copy_in(&mut encoder, &block, &before).unwrap();
        gpu.upload_in(&mut encoder, &block, &bytes(3)).unwrap();
        gpu.copy_in(&mut encoder, &block, &after).unwrap();
        gpu.upload(&block, &bytes(2)).unwrap();
        recording.submit([encoder.finish()]);
        assert_eq!((gpu.read(&before).unwrap(), gpu.read(&after).unwrap()), (bytes(2), bytes(3)));
    }
}

#[test]
fn what_only_the_callers_own_recording_keeps_is_an_error_that_says_so() {
    let config = Config { segment_min: SIZE, ..Config::default().limit(SIZE) };
    for stage in stages(&config) {
        let gpu = &stage.gpu;
        let recording = gpu.recording().unwrap();
        drop(gpu.alloc(SIZE).unwrap());
        let error = gpu.alloc(SIZE).unwrap_err();
        assert!(matches!(error, AllocError::OutOfMemory(_)), "{error}");
        assert!(error.to_string().contains("recorded and not submitted"), "{error}");
        recording.submit([]);
        let block = gpu.alloc(SIZE).unwrap();
        let abandoned = gpu.recording().unwrap();
        drop(block);
        gpu.alloc(SIZE).unwrap_err();
        drop(abandoned);
        gpu.alloc(SIZE).unwrap();
        gpu.check().unwrap();
    }
}

#[test]
fn zeros_are_zeros_however_often_the_place_was_used() {
    for stage in stages(&Config::default()) {
        for length in [1, 3, 4, 255, 256, 257, SIZE] {
            drop(holding(&stage, 9));
            let block = stage.gpu.alloc_zeroed(length).unwrap();
            assert_eq!(stage.gpu.read::<u8>(&block).unwrap(), vec![0; length as usize]);
        }
    }
}

#[test]
fn an_event_is_done_when_the_work_before_it_is() {
    let Some(device) = adapter(|_| {}) else { return };
    let stage = Stage::over(device, Config::default());
    let block = stage.gpu.alloc(64 * MIB).unwrap();
    let mut waited = 0;
    for round in 1..20 {
        let mut encoder = stage.encoder();
        (0..4).for_each(|_| stage.gpu.fill_in(&mut encoder, &block, round).unwrap());
        let index = stage.gpu.queue().submit([encoder.finish()]);
        let event = stage.backing.record(StreamId(0)).unwrap();
        let done = if round % 2 == 0 {
            stage.backing.host_wait(event, Some(Duration::ZERO)).unwrap()
        } else {
            stage.backing.done(event).unwrap()
        };
        let poll = PollType::Wait { submission_index: Some(index), timeout: Some(Duration::ZERO) };
        let is_complete = stage.device().poll(poll).is_ok();
        assert!(is_complete || !done, "round {round}");
        waited += u32::from(!done);
        assert!(stage.backing.host_wait(event, None).unwrap() && stage.backing.done(event).unwrap());
    }
    println!("{waited} of 19 were not done at once");
}

#[test]
fn a_recording_keeps_its_allocator_alive() {
    for stage in stages(&Config::default()) {
        let recording = stage.gpu.recording().unwrap();
        drop(stage.gpu.alloc(SIZE).unwrap());
        let Stage { gpu, backing } = stage;
        drop(gpu);
        recording.submit([]);
        assert!(backing.created() > 0);
    }
}
