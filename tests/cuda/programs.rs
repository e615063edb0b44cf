//! Random programs on several streams, with a device that runs whatever it likes first.

use std::time::Duration;

use larder::allocator::{Capture, GraphMemory};
use larder::cuda::Cuda;
use larder::policy::Config;

use crate::captures;
use crate::common::{Rng, full};
use crate::driver::{Standin, standin};
use crate::world::{Held, PAGE, Setup, World};

/// What one seed plays.
#[derive(Debug)]
struct Plan {
    seed: u64,
    setup: Setup,
    steps: u64,
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Setup { pages, plain, page, stock, config, lanes } = &self.setup;
        write!(f, "seed {}: {pages} pages, {lanes} lanes, plain {plain}, page {page}, stock {stock}", self.seed)?;
        write!(f, ", alias {}, slack {}", config.alias, config.slack)
    }
}

/// A lane that is being captured, and the blocks that were made for it.
struct Capturing {
    lane: usize,
    capture: Capture<Cuda>,
    blocks: Vec<Held>,
}

/// A captured graph, and the lane that ran it last.
struct Graph {
    executable: cudarc::driver::sys::CUgraphExec,
    memory: GraphMemory,
    last: usize,
}

/// Captures and graphs of one program.
#[derive(Default)]
struct Graphs {
    capturing: Option<Capturing>,
    graphs: Vec<Graph>,
}

impl Graphs {
    fn is_capturing(&self, lane: usize) -> bool {
        self.capturing.as_ref().is_some_and(|capturing| capturing.lane == lane)
    }

    /// Something about captures and graphs.
    fn step(&mut self, world: &mut World<'_>, random: &mut Rng, lane: usize) {
        match (&mut self.capturing, random.below(4)) {
            (None, 0) if lane > 0 => {
                let capture = world.allocator.capture(&world.lanes[lane].stream).unwrap();
                captures::begin(world, lane, captures::MODES[random.below(3) as usize]);
                self.capturing = Some(Capturing { lane, capture, blocks: Vec::new() });
            }
            (Some(capturing), 0) => {
                let executable = captures::end(world, capturing.lane);
                let Capturing { lane, capture, blocks } = self.capturing.take().expect("just seen");
                drop(blocks);
                self.graphs.push(Graph { executable, memory: capture.end(), last: lane });
            }
            (Some(capturing), _) => {
                if capturing.blocks.len() > 2 || random.one_in(4) {
                    capturing.blocks.clear();
                }
                // Where there is no room, the graph does without.
                if world.alloc(capturing.lane, 1 + random.below(2 * PAGE)).is_ok() {
                    capturing.blocks.extend(world.held.pop());
                }
            }
            (None, 1) if !self.graphs.is_empty() => {
                let graph = self.graphs.swap_remove(random.below(self.graphs.len() as u64) as usize);
                captures::destroy(graph.executable);
                drop(graph.memory);
            }
            (None, _) if !self.graphs.is_empty() => {
                let at = random.below(self.graphs.len() as u64) as usize;
                let graph = &mut self.graphs[at];
                if graph.last != lane {
                    world.order(lane, graph.last).unwrap();
                }
                captures::launch(world, graph.executable, lane);
                graph.last = lane;
            }
            _ => {}
        }
    }

    fn end(&mut self, world: &World<'_>) {
        if let Some(Capturing { lane, capture, blocks }) = self.capturing.take() {
            captures::destroy(captures::end(world, lane));
            drop((blocks, capture));
        }
        for graph in self.graphs.drain(..) {
            captures::destroy(graph.executable);
            drop(graph.memory);
        }
    }
}

/// What programs came across.
#[derive(Default)]
struct Seen {
    moved: u64,
    stream_waits: u64,
    refused: u64,
    graphs: u64,
}

impl Plan {
    fn new(seed: u64) -> Plan {
        let mut random = Rng::new(seed);
        let pick = |random: &mut Rng, values: &[f64]| values[random.below(values.len() as u64) as usize];
        let config = Config {
            slack: pick(&mut random, &[1.0, 1.01, 1.05, 1.3]),
            segment_min: PAGE,
            alias: seed % 3 != 1,
            poll_every: [1, 3, 16, 256][random.below(4) as usize],
            wait_max: if random.one_in(5) { Duration::ZERO } else { Duration::from_secs(30) },
            ..Config::default()
        };
        let setup = Setup {
            pages: 8 + random.below(28),
            plain: seed % 5 == 4,
            page: [1, 1, 2, 4][random.below(4) as usize],
            stock: random.below(4),
            config,
            lanes: 1 + random.below(5) as usize,
        };
        Plan { seed, setup, steps: 150 }
    }

    fn play(&self, driver: &Standin, seen: &mut Seen) {
        let mut world = World::new(driver, &self.setup);
        let mut random = Rng::new(self.seed ^ 0xABCDEF);
        let mut graphs = Graphs::default();
        for step in 0..self.steps {
            let lane = random.below(world.lanes.len() as u64) as usize;
            if self.seed.is_multiple_of(2) && random.one_in(5) {
                graphs.step(&mut world, &mut random, lane);
            } else if !graphs.is_capturing(lane) {
                let still = graphs.capturing.is_none() && graphs.graphs.is_empty();
                self.step(&mut world, &mut random, lane, still, seen);
            }
            seen.graphs += graphs.graphs.len() as u64;
            if step % 16 == 0 {
                world.sound(self);
            }
        }
        graphs.end(&world);
        for held in &world.held {
            assert_eq!(world.ends(held), [held.byte; 2], "{self}: a block's bytes");
        }
        let stats = world.allocator.total_stats();
        seen.moved += u64::from(stats.moved > 0);
        seen.stream_waits += u64::from(stats.stream_waits > 0);
        world.sound(self);
        world.end(self);
    }

    /// Something about blocks. `still`: no capture or graph names a lane.
    fn step(&self, world: &mut World<'_>, random: &mut Rng, lane: usize, still: bool, seen: &mut Seen) {
        let at = random.below(world.held.len().max(1) as u64) as usize;
        match random.below(100) {
            0..=39 => {
                let bytes = 1 + match random.below(10) {
                    0..=2 => random.below(4096),
                    3..=6 => random.below(2 * PAGE),
                    7..=8 => random.below(4 * PAGE),
                    _ => random.below(self.setup.pages * PAGE / 2),
                };
                let zeroed = random.one_in(10);
                let served = world.serve(lane, bytes, |request| if zeroed { request.zeroed() } else { request });
                if served.is_err() {
                    seen.refused += 1;
                    world.held.truncate(at);
                }
            }
            40..=54 if !world.held.is_empty() && still => world.share(at, lane),
            55..=79 if !world.held.is_empty() => drop(world.held.swap_remove(at)),
            80..=81 => drop(world.allocator.trim(random.below(self.setup.pages * PAGE)).unwrap()),
            82 if random.one_in(3) => drop(world.allocator.purge().unwrap()),
            83 if world.lanes.len() < 6 => world.open_lane().unwrap(),
            84 if lane > 0 && still => close_lane(world, lane),
            _ => (0..random.below(12)).for_each(|_| _ = world.driver.step_any(random.next())),
        }
    }
}

/// A stream goes, and the blocks that it used.
fn close_lane(world: &mut World<'_>, lane: usize) {
    world.held.retain(|held| !held.lanes.contains(&lane));
    let last = world.lanes.len() - 1;
    world.lanes.swap_remove(lane);
    for held in &mut world.held {
        held.lanes.iter_mut().filter(|used| **used == last).for_each(|used| *used = lane);
    }
}

#[test]
fn random_programs_break_no_rule() {
    let Some(driver) = standin() else { return };
    let mut seen = Seen::default();
    let seeds = if full() { 3000 } else { 150 };
    for seed in 0..seeds {
        Plan::new(seed).play(&driver, &mut seen);
    }
    let Seen { moved, stream_waits, refused, graphs } = seen;
    println!("{seeds} programs: pages moved in {moved}, streams waited in {stream_waits}, {refused} requests refused");
    let met = moved > seeds / 10 && stream_waits > seeds / 4 && refused > 0 && graphs > seeds;
    assert!(met, "the programs meet what they are for");
}
