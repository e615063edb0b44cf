//! What goes wrong is a typed error, leaves the accounting exact, and disturbs nothing that comes after.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use larder::allocator::AllocError;
use larder::backend::{Backend, BackendError};
use larder::snapshot::{Outcome, Rung};
use larder::units::{KIB, MIB};
use larder::wgpu::api::{Features, Limits};
use larder::wgpu::{Choice, OpenError, TransferError, open};
use larder::{Config, PoolConfig};

use crate::common::Rng;
use crate::stage::{Stage, adapter, noop, stages};

#[test]
fn a_request_beyond_every_limit_is_too_large() {
    for stage in stages(&Config::default()) {
        let max = stage.gpu.capabilities().region_max;
        assert!(max <= stage.backing.limits().max_buffer_size);
        for bytes in [max + 1, 1 << 40, u64::MAX] {
            assert_eq!(stage.gpu.alloc(bytes).unwrap_err(), AllocError::TooLarge { requested: bytes, max });
            let error = stage.backing.grow_segment(bytes).unwrap_err();
            assert!(matches!(error, BackendError::TooLarge { .. }), "{error}");
        }
        assert_eq!(stage.backing.created(), 0);
    }
}

#[test]
fn a_device_whose_buffers_are_smaller_than_a_segment_gives_what_it_can() {
    let limits = Limits { max_buffer_size: MIB + 600 * KIB, ..Limits::default() };
    let stage = Stage::over(noop(limits), Config::default());
    let max = stage.gpu.capabilities().region_max;
    assert_eq!(max, MIB + 600 * KIB);
    let blocks = [stage.gpu.alloc(max).unwrap(), stage.gpu.alloc(1).unwrap(), stage.gpu.alloc(max - 1).unwrap()];
    stage.gpu.check().unwrap();
    let data: Vec<u8> = (0..max).map(|at| (at % 251) as u8).collect();
    stage.gpu.upload(&blocks[0], &data).unwrap();
    for skip in [0, 1, 3] {
        let read = stage.gpu.read::<u8>(blocks[0].part(skip, max - skip)).unwrap();
        assert!(read == data[skip as usize..], "in pieces that a buffer can hold, whatever comes before {skip}");
    }
    let odd = Limits { max_buffer_size: MIB + 100, ..Limits::default() };
    assert_eq!(Stage::over(noop(odd), Config::default()).gpu.capabilities().region_max, MIB);
}

#[test]
fn a_creation_is_tried_again_once() {
    for stage in stages(&Config::default()) {
        stage.backing.refuse_next(1);
        let region = stage.backing.grow_segment(MIB).unwrap();
        stage.backing.refuse_next(2);
        assert!(stage.backing.grow_segment(MIB).unwrap_err().is_out_of_memory());
        stage.backing.release(region.id).unwrap();
    }
}

#[test]
fn a_refused_creation_walks_the_ladder_to_the_idle_memory_of_another_pool() {
    for stage in stages(&Config::default()) {
        let (gpu, other) = (&stage.gpu, stage.gpu.pool("other", PoolConfig::default()).unwrap());
        drop(other.alloc(4 * MIB).unwrap());
        assert!(other.stats().reserved.current >= 4 * MIB);
        // wgpu has work of its own after a device is made; what is idle must be complete to go back without a wait.
        let event = stage.backing.record(larder::ids::StreamId(0)).unwrap();
        assert!(stage.backing.host_wait(event, None).unwrap());
        // Growth within the slack and growth to the limit each ask twice.
        stage.backing.refuse_next(4);
        let block = gpu.alloc(3 * MIB).unwrap();
        assert_eq!(other.stats().reserved.current, 0, "what was idle went back first");
        gpu.upload(&block, &vec![7_u8; 3 << 20]).unwrap();
        gpu.check().unwrap();
    }
}

#[test]
fn a_device_without_memory_is_out_of_memory_until_it_has_some_again() {
    for stage in stages(&Config::default()) {
        let gpu = &stage.gpu;
        let kept = gpu.alloc(MIB).unwrap();
        stage.backing.refuse_next(u32::MAX);
        let error = gpu.alloc(64 * MIB).unwrap_err();
        let refused = |step: &larder::snapshot::Step| {
            step.rung == Rung::Grow
                && matches!(&step.outcome, Outcome::Refused { reason } if reason.contains("out of memory"))
        };
        assert!(error.report().unwrap().trail.iter().any(refused), "{error}");
        gpu.check().unwrap();
        stage.backing.refuse_next(0);
        gpu.alloc(3 * MIB).unwrap();
        drop(kept);
        gpu.check().unwrap();
    }
}

#[test]
fn refusals_at_any_time_leave_the_accounting_exact() {
    let stage = Stage::over(noop(Limits::default()), Config { segment_min: 64 * KIB, ..Config::default() });
    let (mut rng, mut held, mut refused) = (Rng::new(5), Vec::new(), 0);
    for _ in 0..2_000 {
        stage.backing.refuse_next(if rng.one_in(2) { rng.range(1, 9) as u32 } else { 0 });
        if held.len() == 30 || (rng.one_in(3) && !held.is_empty()) {
            drop(held.swap_remove(rng.below(held.len() as u64) as usize));
            if rng.one_in(2) {
                stage.gpu.purge().unwrap();
            }
        } else {
            match stage.gpu.alloc(rng.skewed(200 * KIB)) {
                Ok(block) => held.push(block),
                Err(AllocError::OutOfMemory(_)) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        stage.gpu.check().unwrap();
    }
    assert!(refused > 10, "{refused}");
    stage.backing.refuse_next(0);
    held.clear();
    stage.gpu.purge().unwrap();
    assert_eq!(stage.gpu.stats().reserved.current, 0);
}

#[track_caller]
fn lost<T: std::fmt::Debug>(result: Result<T, impl Into<TransferError>>) {
    let error = result.unwrap_err().into();
    assert!(matches!(error, TransferError::Backend(BackendError::Lost { .. })), "{error}");
}

#[test]
fn a_lost_device_is_an_error_of_every_call_and_drops_are_safe() {
    for stage in stages(&Config::default()) {
        let (gpu, backing) = (&stage.gpu, &stage.backing);
        let told = Arc::new(AtomicU32::new(0));
        let counter = told.clone();
        stage.device().set_device_lost_callback(move |_, _| {
            counter.fetch_add(1, SeqCst);
        });
        let (a, b) = (gpu.alloc(MIB).unwrap(), gpu.alloc(MIB).unwrap());
        gpu.upload(&a, &vec![1_u8; 1 << 20]).unwrap();
        let event = backing.record(larder::ids::StreamId(0)).unwrap();
        let recording = gpu.recording().unwrap();
        let mut encoder = stage.encoder();
        gpu.upload_in(&mut encoder, &a, &vec![2_u8; 1 << 20]).unwrap();
        drop(gpu.alloc(5 * MIB).unwrap());

        stage.device().destroy();
        for _ in 0..2 {
            match gpu.alloc(64 * MIB) {
                Err(AllocError::Backend(error)) => lost(Err::<(), _>(error)),
                other => panic!("{other:?}"),
            }
        }
        lost(gpu.upload(&a, &vec![1_u8; 1 << 20]));
        lost(gpu.read::<u8>(&a));
        lost(gpu.fill(&a, 0));
        lost(backing.grow_segment(MIB));
        lost(backing.release(a.span().unwrap().region));
        lost(backing.record(larder::ids::StreamId(0)));
        lost(backing.zero(larder::ids::StreamId(0), a.span().unwrap()));
        lost(backing.budget());
        // It was done when the device went, or is never.
        match backing.host_wait(event, None) {
            Ok(done) => assert!(done),
            Err(error) => lost(Err::<(), _>(error)),
        }
        assert!(backing.done(larder::ids::EventId(u64::MAX)).is_err());
        let _ = gpu.purge();
        gpu.check().unwrap();
        recording.submit([encoder.finish()]);
        drop((a, b));
        gpu.check().unwrap();
        stage.device().poll(larder::wgpu::api::PollType::Poll).unwrap();
        assert_eq!(told.load(SeqCst), 1, "the callback stays the program's");
        drop(stage);
    }
}

#[test]
fn a_lost_device_makes_no_allocator() {
    let (device, queue) = noop(Limits::default());
    device.destroy();
    let error = larder::wgpu::allocator(&device, &queue, Config::default()).unwrap_err();
    assert!(matches!(error, AllocError::Backend(BackendError::Lost { .. })), "{error}");
}

#[test]
fn what_fails_here_does_not_reach_the_programs_own_handlers() {
    for stage in stages(&Config::default()) {
        let heard = Arc::new(AtomicU32::new(0));
        let counter = heard.clone();
        stage.device().on_uncaptured_error(Arc::new(move |_| {
            counter.fetch_add(1, SeqCst);
        }));
        let scope = stage.device().push_error_scope(larder::wgpu::api::ErrorFilter::Validation);
        stage.backing.refuse_next(9);
        stage.gpu.alloc(MIB).unwrap_err();
        stage.backing.refuse_next(0);
        stage.gpu.alloc(u64::MAX).unwrap_err();
        stage.backing.grow_segment(u64::MAX).unwrap_err();
        let block = stage.gpu.alloc(100).unwrap();
        stage.gpu.upload(block.part(2, 8), &[0_u64]).unwrap_err();
        stage.device().destroy();
        stage.gpu.upload(block.part(0, 8), &[0_u64]).unwrap_err();
        assert!(pollster::block_on(scope.pop()).is_none());
        assert_eq!(heard.load(SeqCst), 0);
    }
}

#[test]
fn an_unusable_config_is_refused() {
    let config = larder::wgpu::WgpuConfig { usages: larder::wgpu::api::BufferUsages::empty(), ..Default::default() };
    let (device, queue) = noop(Limits::default());
    let gpu = larder::wgpu::allocator_with(&device, &queue, config, Config::default()).unwrap();
    let error = gpu.alloc(1).unwrap_err();
    assert!(matches!(error, AllocError::Backend(BackendError::Driver { .. })), "{error}");
    let config = Config { quantum: Some(64), ..Config::default() };
    let error = larder::wgpu::allocator(&device, &queue, config).unwrap_err();
    assert!(error.to_string().contains("min_storage_buffer_offset_alignment = 256 is above quantum = 64"), "{error}");
}

#[test]
fn the_least_segment_is_as_the_config_says_and_else_as_suits_wgpu() {
    let wgpu = larder::wgpu::WgpuConfig::default();
    let least = |segment_min| {
        let config = Config { segment_min, ..Config::default() };
        let stage = Stage::with(noop(Limits::default()), wgpu, config);
        stage.gpu.alloc(1).unwrap();
        stage.gpu.stats().reserved.current
    };
    for said in [64 * KIB, MIB, 3 * MIB, 65 * MIB] {
        assert_eq!(least(said), said);
    }
    assert_eq!(least(Config::default().segment_min), wgpu.segment_min);
}

#[test]
fn an_adapter_that_is_not_there_is_an_error_that_names_those_that_are() {
    let choice = Choice::Named("no such adapter".into());
    let error = open(&choice, Features::empty(), Config::default()).unwrap_err();
    let found = larder::wgpu::adapters().into_iter().map(|info| info.name).collect();
    assert_eq!(error, OpenError::NoAdapter { choice, found });
    if let Some((device, _)) = adapter(|_| {}) {
        let name = device.adapter_info().name;
        let gpu = open(&Choice::Named(name.to_uppercase()), Features::SHADER_F16, Config::default()).unwrap();
        assert_eq!(gpu.device().adapter_info().name, name);
    }
}
