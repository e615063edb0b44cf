//! Host blocks as their users take them: what is written in one is there until it is dropped, whoever drops it, and what is asked for
//! as zeros is zeros where others have written before. Small enough for the checkers of memory, which run it too.

mod common;

use std::sync::mpsc;

use common::{Rng, runs};
use larder::units::{KIB, MIB};
use larder::{Allocator, Block, Config, Host};

/// Bytes of a block at most. The interpreter takes its time for each.
const MOST: u64 = if cfg!(miri) { 256 } else { 8 * KIB };

/// A limit so low that memory is used again soon.
fn config() -> Config {
    Config { segment_min: 64 * KIB, ..Config::default().limit(MIB) }
}

#[allow(unused_mut, reason = "one kind everywhere, the other where there are pages")]
fn hosts() -> Vec<Allocator<Host>> {
    let mut hosts = vec![Allocator::host_system(config()).unwrap()];
    // The interpreter knows no addresses without memory.
    #[cfg(all(unix, not(miri)))]
    hosts.push({
        use larder::backend::host::MmapConfig;
        let mmap = MmapConfig { page: 64 * KIB, region_max: Some(64 * MIB), ..MmapConfig::default() };
        Allocator::host_mmap(mmap, config()).unwrap()
    });
    hosts
}

/// A block full of one byte.
struct Full {
    block: Block<Host>,
    byte: u8,
}

impl Full {
    fn new(host: &Allocator<Host>, rng: &mut Rng) -> Option<Full> {
        let (bytes, byte, zeroed) = (rng.skewed(MOST), rng.next() as u8, rng.one_in(4));
        let request = host.request(bytes).align(1 << rng.below(9));
        let mut block = if zeroed { request.zeroed() } else { request }.alloc().ok()?;
        if zeroed {
            assert!(block.as_bytes().iter().all(|byte| *byte == 0));
        }
        block.as_mut_bytes().fill(byte);
        Some(Full { block, byte })
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        assert!(self.block.as_bytes().iter().all(|byte| *byte == self.byte), "others have written here");
    }
}

#[test]
fn what_is_written_stays_until_it_is_dropped() {
    for host in hosts() {
        let (mut rng, mut held) = (Rng::new(3), Vec::new());
        for _ in 0..runs(600, 60_000) {
            if held.len() > 200 || (!held.is_empty() && rng.one_in(3)) {
                held.swap_remove(rng.below(held.len() as u64) as usize);
            } else {
                held.extend(Full::new(&host, &mut rng));
            }
            if rng.one_in(64) {
                host.trim(0).unwrap();
            }
        }
        drop(held);
        host.check().unwrap();
        host.purge().unwrap();
        assert_eq!((host.stats().live.current, host.stats().reserved.current), (0, 0));
    }
}

#[test]
fn what_one_thread_writes_another_drops() {
    for host in hosts() {
        let (send, receive) = mpsc::sync_channel::<Full>(8);
        std::thread::scope(|scope| {
            for seed in 0..2 {
                let (host, send) = (host.clone(), send.clone());
                scope.spawn(move || {
                    let mut rng = Rng::new(seed);
                    for _ in 0..runs(300, 30_000) {
                        Full::new(&host, &mut rng).into_iter().for_each(|full| send.send(full).unwrap());
                    }
                });
            }
            drop(send);
            scope.spawn(move || receive.into_iter().for_each(drop));
        });
        host.check().unwrap();
        assert_eq!(host.stats().live.current, 0);
    }
}

#[test]
fn the_last_block_holds_the_memory_whoever_drops_it() {
    for seed in 0..runs(20, 2000) {
        for host in hosts() {
            let mut rng = Rng::new(seed);
            let mut some = || -> Vec<Full> { (0..3).filter_map(|_| Full::new(&host, &mut rng)).collect() };
            let (here, there) = (some(), some());
            // From here on nothing but the blocks holds it, and two threads drop them at once.
            drop(host);
            let other = std::thread::spawn(move || drop(there));
            drop(here);
            other.join().unwrap();
        }
    }
}

#[test]
fn elements_are_seen_as_they_were_written() {
    for host in hosts() {
        let mut block = host.request(1024).align(64).zeroed().alloc().unwrap();
        block.as_mut_slice::<u64>().unwrap().iter_mut().zip(0..).for_each(|(at, number)| *at = number);
        assert_eq!(block.as_slice::<u64>().unwrap()[127], 127);
        assert_eq!(
            block.as_slice::<[u32; 2]>().unwrap()[5],
            if cfg!(target_endian = "little") { [5, 0] } else { [0, 5] }
        );
        let mut any = block.erase();
        any.host_bytes_mut().unwrap()[1023] = 7;
        assert_eq!(any.host_bytes().unwrap()[1016..].iter().map(|byte| u64::from(*byte)).sum::<u64>(), 134);
    }
}
