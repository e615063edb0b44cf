//! Any program: buffers on several streams by chance, against what a program without streams would read.

use crate::common::Rng;
use crate::*;

const COUNT: usize = 32;

/// Buffers, written, copied, read and dropped on streams by chance, while the device runs what it likes: what is read is what a program
/// without streams would read.
#[test]
fn any_program_reads_what_it_wrote() {
    for seed in 0..6 {
        story(|standin| any_program(standin, seed));
    }
}

fn any_program(standin: &Standin, seed: u64) {
    let world = World::new();
    let (World { gpu, context, one, two, s, t }, pinned) = (&world, world.pinned());
    let _known = pinned.stream_of(one).unwrap();
    let streams = [one.clone(), two.clone(), context.new_stream().unwrap(), context.default_stream()];
    let homes = [s.clone(), t.clone(), gpu.default_stream()];
    let mut random = Rng::new(seed);
    let mut device: Vec<(Buffer<u32>, [u32; COUNT])> = Vec::new();
    let mut staging = pinned.buffer::<u32>(COUNT).unwrap();
    let mut next = 0_u32;
    for _ in 0..400 {
        let stream = &streams[random.below(4) as usize];
        let at = random.below(device.len().max(1) as u64) as usize;
        match random.below(8) {
            0 | 1 if device.len() < 12 => {
                let mut buffer = gpu.buffer_on(&homes[random.below(3) as usize], COUNT).unwrap();
                stream.memset_zeros(&mut buffer).unwrap();
                device.push((buffer, [0; COUNT]));
            }
            2 if device.len() > 4 => drop(device.swap_remove(at)),
            3 if !device.is_empty() => {
                next += 1;
                staging.as_mut_slice().unwrap().fill(next);
                let (buffer, shadow) = &mut device[at];
                stream.memcpy_htod(&staging, buffer).unwrap();
                shadow.fill(next);
            }
            4 if device.len() > 1 => {
                let (mut to, shadow_to) = device.swap_remove(at);
                let (from, shadow) = &device[random.below(device.len() as u64) as usize];
                let cut = random.below(COUNT as u64) as usize;
                stream.memcpy_dtod(&from.slice(cut..).unwrap(), &mut to.slice_mut(cut..).unwrap()).unwrap();
                let mut mixed = shadow_to;
                mixed[cut..].copy_from_slice(&shadow[cut..]);
                device.push((to, mixed));
            }
            5 if !device.is_empty() => {
                let (buffer, shadow) = &mut device[at];
                let (mut front, mut back) = buffer.as_slice_mut().split_at(COUNT / 2).unwrap();
                next += 1;
                stream.memset_zeros(&mut front).unwrap();
                streams[random.below(4) as usize].memcpy_htod(&[next; COUNT / 2], &mut back).unwrap();
                shadow[..COUNT / 2].fill(0);
                shadow[COUNT / 2..].fill(next);
            }
            6 if !device.is_empty() => {
                let (buffer, shadow) = &device[at];
                stream.memcpy_dtoh(buffer, &mut staging).unwrap();
                assert_eq!(staging.as_slice().unwrap(), shadow, "seed {seed}");
            }
            _ => {
                let _ = (0..random.below(4)).all(|_| standin.step_any(random.below(4)));
            }
        }
        standin.assert_clean();
    }
    for (buffer, shadow) in &device {
        assert_eq!(one.clone_dtoh(buffer).unwrap(), shadow, "seed {seed}");
    }
    gpu.check().unwrap();
    pinned.check().unwrap();
}
