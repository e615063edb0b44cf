//! Threads with a stream each, which hand blocks to each other, while another thread lets the device run.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::Rng;
use crate::driver::standin;
use crate::world::{Held, PAGE, Setup, World};

const THREADS: usize = 3;

#[test]
fn threads_hand_blocks_to_each_other() {
    let Some(driver) = standin() else { return };
    let usual = Setup { lanes: THREADS + 1, ..Setup::default() };
    for setup in [usual.clone(), Setup { plain: true, ..usual }] {
        let world = World::new(&driver, &setup);
        let (shelf, running) = (Mutex::new(Vec::new()), AtomicUsize::new(THREADS));
        std::thread::scope(|scope| {
            for lane in 1..=THREADS {
                let (world, shelf, running) = (&world, &shelf, &running);
                scope.spawn(move || {
                    work(world, lane, shelf);
                    running.fetch_sub(1, Ordering::Relaxed);
                });
            }
            // As long as there is anybody to wait for the device.
            let mut pick = 0;
            while running.load(Ordering::Relaxed) > 0 {
                world.driver.step_any(pick);
                pick += 1;
                std::thread::yield_now();
            }
        });
        shelf.into_inner().unwrap().clear();
        world.sound(&format!("{setup:?}"));
        world.end(&format!("{setup:?}"));
    }
}

fn work(world: &World<'_>, lane: usize, shelf: &Mutex<Vec<Held>>) {
    let mut random = Rng::new(lane as u64);
    let mut mine: Vec<Held> = Vec::new();
    for _ in 0..150 {
        match random.below(8) {
            0..=3 => {
                let bytes = 1 + random.below(3 * PAGE);
                // Full is full: others hold the rest.
                if let Ok(block) = world.allocator.alloc_on(&world.lanes[lane].stream, bytes) {
                    let held = Held { block, lanes: vec![lane], byte: lane as u8 };
                    world.write(&held, lane);
                    mine.push(held);
                }
            }
            4 if !mine.is_empty() => shelf.lock().unwrap().push(mine.swap_remove(0)),
            5 => {
                let Some(mut held) = shelf.lock().unwrap().pop() else { continue };
                world.order(lane, *held.lanes.last().expect("its own")).unwrap();
                held.block.used_on(&world.lanes[lane].stream);
                held.lanes.push(lane);
                world.write(&held, lane);
                mine.push(held);
            }
            6 => mine.truncate(random.below(4) as usize),
            _ => drop(world.allocator.trim(random.below(8 * PAGE)).unwrap()),
        }
        if mine.len() > 4 {
            mine.remove(0);
        }
    }
    shelf.lock().unwrap().extend(mine);
}
