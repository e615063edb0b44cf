//! Blocks as bindings: alone, beside each other in one buffer, and apart.

use larder::units::{KIB, MIB};
use larder::wgpu::api::{BindingResource, ErrorFilter, Limits};
use larder::wgpu::{BindingError, same_segment};
use larder::{Block, Config};

use crate::stage::{Stage, adapter, dispatch, made_of, noop, pipeline, stages};

#[test]
fn a_binding_is_the_block_in_whole_words() {
    for stage in stages(&Config::default()) {
        let align = u64::from(stage.backing.limits().min_storage_buffer_offset_alignment);
        let blocks: Vec<_> = [1, 2, 3, 4, 255, 256, 257, 4096].map(|bytes| stage.gpu.alloc(bytes).unwrap()).into();
        for block in &blocks {
            let BindingResource::Buffer(binding) = block.binding().unwrap() else { panic!("a buffer") };
            assert_eq!(binding.size.unwrap().get(), block.len().next_multiple_of(4));
            assert_eq!((binding.offset, binding.offset % align), (block.span().unwrap().offset, 0));
            assert!(binding.offset + block.binding_size() <= binding.buffer.size());
            assert!(same_segment(block, &blocks[0]));
        }
        let mut addresses: Vec<u64> = blocks.iter().map(Block::address).collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), blocks.len());
        let empty = stage.gpu.alloc(0).unwrap();
        assert_eq!(empty.binding().unwrap_err(), BindingError::Empty);
        assert!(empty.buffer().is_none() && !same_segment(&empty, &empty));
    }
}

#[test]
fn a_block_larger_than_a_binding_is_an_error_when_it_is_bound() {
    let limits = Limits { max_storage_buffer_binding_size: 64 * KIB, ..Limits::default() };
    let stage = Stage::over(noop(limits), Config::default());
    assert!(stage.gpu.alloc(64 * KIB).unwrap().binding().is_ok());
    let large = stage.gpu.alloc(64 * KIB + 1).unwrap();
    assert_eq!(large.binding().unwrap_err(), BindingError::TooLarge { size: 64 * KIB + 4, max: 64 * KIB });
    assert!(large.buffer().is_some(), "parts of it can be bound");
}

#[test]
fn a_shader_reads_one_block_and_writes_another_when_they_lie_apart() {
    let Some(device) = adapter(|_| {}) else { return };
    let stage = Stage::over(device, Config::default());
    let gpu = &stage.gpu;
    let words: Vec<u32> = (0..1000).collect();
    let from = gpu.alloc(4000).unwrap();
    gpu.upload(&from, &words).unwrap();
    let (near, far) = (gpu.alloc(4000).unwrap(), gpu.request(4000).apart_from(&from).alloc().unwrap());
    assert!(same_segment(&from, &near) && !same_segment(&from, &far));
    let run = |access, to: &Block<_>| {
        let scope = stage.device().push_error_scope(ErrorFilter::Validation);
        let mut encoder = stage.encoder();
        let shader = pipeline(stage.device(), access);
        dispatch(stage.device(), &mut encoder, &shader, [from.binding().unwrap(), to.binding().unwrap()], 1000);
        gpu.queue().submit([encoder.finish()]);
        pollster::block_on(scope.pop()).map(|error| error.to_string())
    };
    let made: Vec<u32> = words.iter().map(|word| made_of(*word)).collect();
    assert_eq!(run("read", &far), None);
    assert_eq!(gpu.read::<u32>(&far).unwrap(), made);
    let refused = run("read", &near).expect("wgpu tracks whole buffers");
    assert!(refused.contains("conflicting usages"), "{refused}");
    assert_eq!(run("read_write", &near), None);
    assert_eq!(gpu.read::<u32>(&near).unwrap(), made);
}

#[test]
fn a_request_may_be_kept_apart_from_several() {
    for stage in stages(&Config::default()) {
        let a = stage.gpu.alloc(256).unwrap();
        let b = stage.gpu.request(256).apart_from(&a).alloc().unwrap();
        let c = stage.gpu.request(256).apart_from(&a).apart_from(&b).alloc().unwrap();
        let empty = stage.gpu.alloc(0).unwrap();
        let d = stage.gpu.request(256).apart_from(&empty).apart_from(&c).alloc().unwrap();
        assert!(!same_segment(&a, &b) && !same_segment(&a, &c) && !same_segment(&b, &c) && !same_segment(&c, &d));
        assert!(a.address() != b.address() && b.address() != c.address() && a.address() != c.address());
        assert_eq!(stage.backing.created(), 3, "the fourth lies beside the first or the second");
    }
}

#[test]
fn a_segment_that_is_returned_is_gone_once_nobody_keeps_its_buffer() {
    let Some(device) = adapter(|_| {}) else { return };
    let stage = Stage::over(device, Config::default());
    let segments = || {
        let report = stage.device().generate_allocator_report().expect("Vulkan reports");
        report.allocations.iter().filter(|held| held.name.starts_with("larder r")).count()
    };
    let block = stage.gpu.alloc(20 * MIB).unwrap();
    let kept = block.buffer().unwrap().clone();
    assert_eq!(segments(), 1);
    drop(block);
    stage.gpu.purge().unwrap();
    assert_eq!((stage.gpu.stats().reserved.current, segments(), kept.size()), (0, 1, 20 * MIB));
    drop(kept);
    assert_eq!(segments(), 0);
    drop(stage.gpu.alloc(20 * MIB).unwrap());
    stage.gpu.purge().unwrap();
    assert_eq!(segments(), 0);
}
