//! The suite for backends with segments: by hand, then a random program against a shadow.

use larder::backend::Region;
use larder::units::{KIB, MIB};

use crate::{Random, Subject, check_bytes, check_zero, grow};

/// Everything about segments.
pub fn conform(subject: &Subject<'_>) {
    segments_come_and_go(subject);
    segments_from_four_threads(subject);
    (0..3).for_each(|seed| random_segments(subject, seed));
}

fn segments_come_and_go(subject: &Subject<'_>) {
    let sizes = [1, 63, 4096, 4097, 100 * KIB, 2 * MIB - 1, 2 * MIB, 64 * MIB];
    let regions: Vec<Region> = sizes.iter().map(|size| grow(subject, *size)).collect();
    for (region, byte) in regions.iter().zip(1..) {
        subject.write(*region, 0, region.size, byte);
    }
    for (region, byte) in regions.iter().zip(1..) {
        subject.expect(*region, 0, byte);
        subject.expect(*region, region.size - 1, byte);
    }
    check_zero(subject, regions[4]);
    check_bytes(subject, regions[4]);
    for region in regions {
        subject.backend.release(region.id).unwrap();
    }
    let many: Vec<Region> = (0..200).map(|_| grow(subject, 5_000)).collect();
    many.iter().for_each(|region| subject.backend.release(region.id).unwrap());
}

fn segments_from_four_threads(subject: &Subject<'_>) {
    std::thread::scope(|scope| {
        for thread in 1..=4_u8 {
            scope.spawn(move || {
                for round in 0..50 {
                    let region = grow(subject, 10_000 * (round + 1));
                    subject.write(region, 0, region.size, thread);
                    subject.expect(region, region.size - 1, thread);
                    subject.backend.release(region.id).unwrap();
                }
            });
        }
    });
}

/// A random program over segments against a shadow of what each holds at both ends.
fn random_segments(subject: &Subject<'_>, seed: u64) {
    let mut random = Random(seed);
    let mut live: Vec<(Region, Option<u8>)> = Vec::new();
    for _ in 0..2_000 {
        let choice = random.below(4);
        if live.is_empty() || (choice == 0 && live.len() < 24) {
            let magnitude = 6 + random.below(16);
            let size = 1 + random.below(1 << magnitude);
            live.push((grow(subject, size), subject.fresh.map(|_| 0)));
            continue;
        }
        let index = random.below(live.len() as u64) as usize;
        let (region, byte) = live[index];
        if let Some(byte) = byte {
            subject.expect(region, 0, byte);
            subject.expect(region, region.size - 1, byte);
        }
        match choice {
            1 => {
                let byte = random.below(256) as u8;
                subject.write(region, 0, 1, byte);
                subject.write(region, region.size - 1, 1, byte);
                live[index].1 = Some(byte);
            }
            2 => {
                subject.zero(region, 0, region.size);
                live[index].1 = Some(0);
            }
            _ => {
                subject.settle();
                subject.backend.release(region.id).unwrap();
                live.swap_remove(index);
            }
        }
    }
    live.into_iter().for_each(|(region, _)| subject.backend.release(region.id).unwrap());
}
