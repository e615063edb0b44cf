//! Bytes there, on the device, and back: every length and place, and never beyond the block.

use std::time::Duration;

use larder::Config;
use larder::backend::Backend;
use larder::units::{KIB, MIB};
use larder::wgpu::{TransferError, same_segment};

use crate::common::Rng;
use crate::stage::{Stage, adapter, noop, stages};

fn noise(rng: &mut Rng, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|_| rng.next() as u8).collect()
}

#[test]
fn what_is_uploaded_is_read_back_and_neighbours_keep_theirs() {
    for stage in stages(&Config::default()) {
        let (gpu, mut rng) = (&stage.gpu, Rng::new(1));
        let mut held = Vec::new();
        for length in [1, 2, 3, 5, 255, 256, 257, 1021, 4096, 70_001] {
            let block = gpu.alloc(length).unwrap();
            let data = noise(&mut rng, length);
            gpu.upload(&block, &data).unwrap();
            held.push((block, data));
        }
        for _ in 0..100 {
            let at = rng.below(held.len() as u64) as usize;
            let (block, data) = &mut held[at];
            let offset = rng.below(block.len()) / 4 * 4;
            let rest = block.len() - offset;
            let bytes = if rng.one_in(2) { rest } else { rng.below(rest + 1) / 4 * 4 };
            let new = noise(&mut rng, bytes);
            gpu.upload(block.part(offset, bytes), &new).unwrap();
            data[offset as usize..(offset + bytes) as usize].copy_from_slice(&new);
            let (skip, count) = (rng.below(block.len()), 0);
            let count = count + rng.below(block.len() - skip + 1);
            let read = gpu.read::<u8>(block.part(skip, count)).unwrap();
            assert_eq!(read, &data[skip as usize..(skip + count) as usize], "any bytes can be read");
        }
        for (block, data) in &held {
            assert_eq!(gpu.read::<u8>(block).unwrap(), *data);
        }
    }
}

#[test]
fn elements_are_moved_as_they_are() {
    for stage in stages(&Config::default()) {
        let gpu = &stage.gpu;
        let block = gpu.alloc(10).unwrap();
        gpu.upload(&block, &[1_u16, 2, 3, 4, 5]).unwrap();
        assert_eq!(gpu.read::<u16>(&block).unwrap(), [1, 2, 3, 4, 5]);
        assert_eq!(gpu.read::<u16>(block.part(4, 4)).unwrap(), [3, 4]);
        let error = gpu.read::<u32>(&block).unwrap_err();
        assert_eq!(error, TransferError::PartialElement { bytes: 10, element: 4 });
        let empty = gpu.alloc(0).unwrap();
        gpu.upload::<f32>(&empty, &[]).unwrap();
        gpu.fill(&empty, 1).unwrap();
        gpu.copy(&empty, block.part(4, 0)).unwrap();
        assert_eq!(gpu.read::<f32>(&empty).unwrap(), []);
    }
}

#[test]
fn what_cannot_be_moved_is_refused() {
    for stage in stages(&Config::default()) {
        let gpu = &stage.gpu;
        let (block, other) = (gpu.alloc(100).unwrap(), gpu.alloc(100).unwrap());
        let leaves = |offset, bytes| TransferError::OutOfBlock { offset, bytes, len: 100 };
        assert_eq!(gpu.fill(block.part(100, 4), 1), Err(leaves(100, 4)));
        assert_eq!(gpu.fill(block.part(u64::MAX, 4), 1), Err(leaves(u64::MAX, 4)));
        assert_eq!(gpu.read::<u8>(block.part(1, u64::MAX)), Err(leaves(1, u64::MAX)));
        let partial = |offset, bytes| Err(TransferError::PartialWord { offset, bytes });
        assert_eq!(gpu.upload(block.part(2, 4), &[0_u8; 4]), partial(2, 4));
        assert_eq!(gpu.upload(block.part(0, 3), &[0_u8; 3]), partial(0, 3));
        assert_eq!(gpu.copy(block.part(2, 4), other.part(4, 4)), partial(2, 4));
        assert_eq!(gpu.copy(block.part(4, 4), other.part(2, 4)), partial(2, 4));
        assert_eq!(gpu.upload(&block, &[0_u8; 99]), Err(TransferError::Sizes { from: 99, to: 100 }));
        assert_eq!(gpu.copy(&block, other.part(0, 4)), Err(TransferError::Sizes { from: 100, to: 4 }));
        assert_eq!(gpu.copy(block.part(0, 8), block.part(4, 8)), Err(TransferError::Overlap));
        assert_eq!(gpu.copy(block.part(4, 8), block.part(0, 8)), Err(TransferError::Overlap));
        assert_eq!(gpu.copy(&block, &block), Err(TransferError::Overlap));
        let foreign = Stage::over(noop(Default::default()), Config::default());
        assert_eq!(foreign.gpu.fill(&block, 1), Err(TransferError::ForeignBlock));
        assert_eq!(foreign.gpu.read::<u8>(&block), Err(TransferError::ForeignBlock));
    }
}

#[test]
fn belts_use_their_buffers_again_and_give_them_back() {
    for stage in stages(&Config::default()) {
        let (gpu, data) = (&stage.gpu, vec![3_u8; 100_000]);
        let block = gpu.alloc(100_000).unwrap();
        let round = || {
            gpu.upload(&block, &data).unwrap();
            assert_eq!(gpu.read::<u8>(&block).unwrap(), data);
        };
        round();
        let (belts, spare) = (256 * KIB, stage.backing.beneath());
        (0..50).for_each(|_| round());
        assert_eq!(stage.backing.beneath(), spare, "no more than the first round needed");
        assert!(spare >= belts, "one buffer of 128 KiB in each belt");
        // An encoder that is never submitted takes its buffers along.
        let mut encoder = stage.encoder();
        (0..10).for_each(|_| gpu.upload_in(&mut encoder, &block, &data).unwrap());
        drop(encoder);
        gpu.trim(0).unwrap();
        assert!(stage.backing.beneath() <= spare, "{} of {spare}", stage.backing.beneath());
        assert_eq!(gpu.snapshot().beneath, stage.backing.beneath());
        round();
    }
}

#[test]
fn the_rest_of_a_last_word_is_zeros_and_not_what_travelled_before() {
    for stage in stages(&Config::default()) {
        let region = stage.backing.grow_segment(4 * KIB).unwrap().id;
        let mut bytes = [7; 8];
        stage.backing.upload(region, 0, &[0xFF; 64]).unwrap();
        let read = |bytes: &mut [u8]| stage.backing.read(region, 0, bytes, Duration::from_secs(60)).unwrap();
        assert!(read(&mut bytes));
        stage.backing.upload(region, 0, &[1; 5]).unwrap();
        assert!(read(&mut bytes));
        assert_eq!(bytes, [1, 1, 1, 1, 1, 0, 0, 0]);
    }
}

#[test]
fn long_transfers_go_in_pieces() {
    for stage in stages(&Config::default()) {
        let bytes = 33 * MIB + 3;
        let data: Vec<u8> = (0..bytes).map(|at| (at ^ (at >> 9) ^ (at >> 17)) as u8).collect();
        let block = stage.gpu.alloc(bytes).unwrap();
        stage.gpu.upload(&block, &data).unwrap();
        assert!(stage.gpu.read::<u8>(&block).unwrap() == data);
    }
}

/// A device with few groups across and small bindings, so that grids of two dimensions and jobs of several pieces are small.
fn cramped() -> Option<Stage> {
    let device = adapter(|limits| {
        limits.max_compute_workgroups_per_dimension = 3;
        limits.max_storage_buffer_binding_size = 8 * KIB;
    });
    device.map(|device| Stage::over(device, Config::default()))
}

#[test]
fn kernels_fill_and_copy_exactly_what_they_are_told() {
    let usual = adapter(|_| {}).map(|device| Stage::over(device, Config::default()));
    for stage in [usual, cramped()].into_iter().flatten() {
        let (gpu, mut rng) = (&stage.gpu, Rng::new(2));
        let (a, b) = (gpu.alloc(40_001).unwrap(), gpu.alloc(40_001).unwrap());
        let far = gpu.request(40_001).apart_from(&a).alloc().unwrap();
        assert!(same_segment(&a, &b));
        let mut holds = [noise(&mut rng, 40_001), noise(&mut rng, 40_001), noise(&mut rng, 40_001)];
        let blocks = [&a, &b, &far];
        for (block, data) in blocks.iter().zip(&holds) {
            gpu.upload(*block, data).unwrap();
        }
        for round in 0..150 {
            let (from, to) = (rng.below(3) as usize, rng.below(3) as usize);
            let (source, target) = (rng.below(40_001) / 4 * 4, rng.below(40_001) / 4 * 4);
            let room = 40_001 - source.max(target);
            let bytes =
                if target >= source && rng.one_in(3) { room } else { rng.skewed(room.max(1)).min(room) / 4 * 4 };
            let (source_bytes, target_bytes) = (source as usize.., target as usize..(target + bytes) as usize);
            if rng.one_in(3) {
                let value = rng.next() as u32;
                gpu.fill(blocks[to].part(target, bytes), value).unwrap();
                let filled = value.to_le_bytes().into_iter().cycle();
                holds[to][target_bytes].iter_mut().zip(filled).for_each(|(byte, new)| *byte = new);
            } else {
                let copied = gpu.copy(blocks[from].part(source, bytes), blocks[to].part(target, bytes));
                let overlap = from == to && source.abs_diff(target) < bytes;
                assert_eq!(copied, if overlap { Err(TransferError::Overlap) } else { Ok(()) }, "round {round}");
                if !overlap {
                    let moved = holds[from][source_bytes][..bytes as usize].to_vec();
                    holds[to][target_bytes].copy_from_slice(&moved);
                }
            }
            if round % 10 == 9 {
                for (block, data) in blocks.iter().zip(&holds) {
                    assert!(gpu.read::<u8>(*block).unwrap() == *data, "round {round}");
                }
            }
        }
    }
}

#[test]
fn a_fill_of_more_groups_than_one_dimension_has_reaches_the_end() {
    let Some(device) = adapter(|_| {}) else { return };
    let stage = Stage::over(device, Config::default());
    // 65535 groups of 256 words are 4 bytes less than 64 MiB less 1 KiB.
    let block = stage.gpu.alloc_zeroed(72 * MIB).unwrap();
    stage.gpu.fill(block.part(4, 72 * MIB - 8), 0xA5A5_0001).unwrap();
    let words = stage.gpu.read::<u32>(&block).unwrap();
    let (last, inner) = (words.len() - 1, &words[1..words.len() - 1]);
    assert_eq!((words[0], words[last]), (0, 0));
    assert_eq!(inner.iter().position(|word| *word != 0xA5A5_0001), None);
}
