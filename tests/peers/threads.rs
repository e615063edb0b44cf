//! Rows 13 and 14: threads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, mpsc};
use std::thread;

use larder::backend::sim::Lag;
use larder::units::{KIB, MIB};
use larder::{AllocError, Any, Block, Config, Stream};

use crate::common::{Rng, runs};
use crate::{Ground, grounds, simulated};

/// Which streams the threads use.
#[derive(Clone, Copy, Debug)]
enum Streams {
    /// The default one.
    Default,
    /// One for all.
    Same,
    /// Each its own.
    Different,
}

/// A block, who made it, and the number of its owner on the device.
struct Parcel {
    block: Block<Any>,
    byte: u8,
}

/// Every thread makes blocks and hands them to the next, which looks at them and drops them.
fn ring(ground: &Ground, threads: usize, streams: Streams) {
    let (allocator, sim) = (&ground.allocator, &ground.sim);
    let shared = allocator.stream().ok();
    let (doors, mut rooms): (Vec<_>, Vec<_>) = (0..threads).map(|_| mpsc::sync_channel::<Parcel>(16)).unzip();
    thread::scope(|scope| {
        for thread in (0..threads).rev() {
            let (door, room) = (doors[(thread + 1) % threads].clone(), rooms.pop().unwrap());
            let shared = shared.clone();
            scope.spawn(move || {
                let stream = match streams {
                    Streams::Default => allocator.default_stream(),
                    Streams::Same => shared.unwrap_or_else(|| allocator.default_stream()),
                    Streams::Different => allocator.stream().unwrap_or_else(|_| allocator.default_stream()),
                };
                let mut rng = Rng::new(thread as u64);
                for turn in 0..runs(150, 3000) {
                    let byte = (turn + thread as u64) as u8;
                    let owner = turn * threads as u64 + thread as u64 + 1;
                    door.send(made(ground, &stream, &mut rng, byte, owner)).unwrap();
                    check(room.recv().unwrap());
                    if let Some(sim) = sim {
                        sim.advance(1);
                    }
                }
            });
        }
    });
}

fn made(ground: &Ground, stream: &Stream, rng: &mut Rng, byte: u8, owner: u64) -> Parcel {
    let mut block = ground.allocator.alloc_on(stream, rng.skewed(64 * KIB)).unwrap();
    block.host_bytes_mut().into_iter().for_each(|bytes| bytes.fill(byte));
    if let Some(sim) = &ground.sim {
        // What is wrong is among the violations.
        let _ = sim.work(stream.id(), owner, block.span().unwrap());
    }
    Parcel { block, byte }
}

fn check(Parcel { block, byte }: Parcel) {
    let whole = |bytes: &[u8]| bytes == vec![byte; bytes.len()];
    assert!(block.host_bytes().is_none_or(whole), "a block was given twice");
}

#[test]
fn t13_threads_and_streams() {
    for threads in [4, 8, 16] {
        for streams in [Streams::Same, Streams::Different, Streams::Default] {
            let mut all = grounds(&Config::default());
            all.extend(simulated(&Config::default(), Lag::Events(40)));
            for ground in all {
                ring(&ground, threads, streams);
                assert_eq!(ground.allocator.stats().blocks.current, 0, "{} {streams:?}", ground.name);
                ground.end();
            }
        }
    }
}

/// Who owns which addresses, as those who asked for them know it.
#[derive(Default)]
struct Owners {
    places: Mutex<BTreeMap<u64, u64>>,
}

impl Owners {
    fn enter(&self, block: &Block<Any>) {
        let (start, end) = (block.address(), block.address() + block.size());
        let mut places = self.places.lock().unwrap();
        let below = places.range(..end).next_back();
        assert!(below.is_none_or(|(_, until)| *until <= start), "{start:#x} has an owner: {below:x?}");
        places.insert(start, end);
    }

    /// Before the block is dropped.
    fn leave(&self, block: &Block<Any>) {
        self.places.lock().unwrap().remove(&block.address()).expect("an owner");
    }
}

#[test]
fn t14_released_while_others_grow() {
    let config = Config { segment_min: 64 * KIB, ..Config::default().limit(64 * MIB) };
    for ground in grounds(&config) {
        let (owners, done) = (Owners::default(), AtomicBool::new(false));
        thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|thread| {
                    let (ground, owners) = (&ground, &owners);
                    scope.spawn(move || come_and_go(ground, owners, thread))
                })
                .collect();
            // Everything idle goes back, all the time: segments are freed under the feet of those who ask for new ones.
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    ground.allocator.trim(0).unwrap();
                    thread::yield_now();
                }
            });
            workers.into_iter().for_each(|worker| worker.join().unwrap());
            done.store(true, SeqCst);
        });
        assert!(owners.places.lock().unwrap().is_empty());
        ground.end();
    }
}

fn come_and_go(ground: &Ground, owners: &Owners, thread: u64) {
    let mut rng = Rng::new(thread);
    let mut held = Vec::new();
    for turn in 0..runs(400, 20_000) {
        match ground.allocator.alloc(rng.range(1, 4 * MIB)) {
            Ok(mut block) => {
                owners.enter(&block);
                // Ends only: whoever shares them shares the rest.
                if let Some(bytes) = block.host_bytes_mut() {
                    let last = bytes.len() - 1;
                    (bytes[0], bytes[last]) = (turn as u8, turn as u8);
                }
                held.push((block, turn as u8));
            }
            Err(AllocError::OutOfMemory(_)) => {}
            Err(error) => panic!("{error}"),
        }
        if held.len() > 3 {
            let (block, byte) = held.swap_remove(rng.below(held.len() as u64) as usize);
            // The delay between the end of use and the return, in which others may run.
            thread::yield_now();
            let same = |bytes: &[u8]| (bytes[0], bytes[bytes.len() - 1]) == (byte, byte);
            assert!(block.host_bytes().is_none_or(same), "{}: a block was given twice", ground.name);
            owners.leave(&block);
            drop(block);
        }
    }
    held.iter().for_each(|(block, _)| owners.leave(block));
}
