//! Random programs: the maps stay whole, and the oracle agrees with one that forgets nothing.

use super::*;

/// A small generator of numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// One piece of a stream, with all that comes before it.
struct Node {
    stream: usize,
    before: Vec<bool>,
    complete: bool,
    /// Owner and cells, for work.
    used: Option<(u64, u64, u64)>,
}

/// All pieces ever issued, in order; order and completion worked out the long way.
#[derive(Default)]
struct Model {
    nodes: Vec<Node>,
    last: [Option<usize>; 3],
}

impl Model {
    fn add(&mut self, stream: usize, waits_for: Option<usize>, used: Option<(u64, u64, u64)>) -> usize {
        let number = self.nodes.len();
        let mut before = vec![false; number];
        for earlier in self.last[stream].into_iter().chain(waits_for) {
            before[earlier] = true;
            for (index, seen) in self.nodes[earlier].before.iter().enumerate() {
                before[index] |= seen;
            }
        }
        self.last[stream] = Some(number);
        self.nodes.push(Node { stream, before, complete: false, used });
        number
    }

    /// Whether the last piece, which is work, follows all earlier work of other owners on its cells.
    fn last_is_ordered(&self) -> bool {
        let Some((node, earlier)) = self.nodes.split_last() else { return true };
        let (owner, from, to) = node.used.unwrap();
        earlier.iter().enumerate().all(|(index, old)| match old.used {
            Some((other, start, end)) if other != owner && start < to && from < end => {
                old.complete || node.before[index]
            }
            _ => true,
        })
    }

    /// Whether work on these cells is unfinished.
    fn busy(&self, from: u64, to: u64) -> bool {
        let unfinished = self.nodes.iter().filter(|node| !node.complete).filter_map(|node| node.used);
        unfinished.into_iter().any(|(_, start, end)| start < to && from < end)
    }

    fn complete(&mut self, stream: usize, pieces: u64) {
        let next = self.nodes.iter_mut().filter(|node| node.stream == stream && !node.complete);
        next.take(pieces as usize).for_each(|node| node.complete = true);
    }
}

/// Waits are not counted as pieces, so the model does not keep them as nodes: they order what is issued next.
#[test]
fn the_oracle_agrees_with_one_that_forgets_nothing() {
    const CELL: u64 = PAGE / 4;
    let (mut accepted, mut refused, mut busy) = (0, 0, 0);
    for seed in 0..60 {
        let mut random = Random(seed);
        let sim = sim(SimMemory::Remap, Lag::Manual);
        let region = backed(&sim, 4);
        let streams = [DEFAULT, sim.open_stream().unwrap(), sim.open_stream().unwrap()];
        let mut model = Model::default();
        let mut waits: [Option<usize>; 3] = [None; 3];
        let mut events: Vec<(EventId, usize)> = Vec::new();
        for _ in 0..200 {
            let stream = random.below(3) as usize;
            match random.below(8) {
                0..=3 => {
                    let from = random.below(16);
                    let to = (from + 1 + random.below(4)).min(16);
                    let owner = random.below(4);
                    model.add(stream, waits[stream].take(), Some((owner, from, to)));
                    let span = Span { region, offset: from * CELL, size: (to - from) * CELL };
                    let result = sim.work(streams[stream], owner, span);
                    assert_eq!(result.is_ok(), model.last_is_ordered(), "seed {seed}: {result:?}");
                    *if result.is_ok() { &mut accepted } else { &mut refused } += 1;
                }
                4 => {
                    let node = model.add(stream, waits[stream].take(), None);
                    events.push((sim.record(streams[stream]).unwrap(), node));
                }
                5 | 6 if !events.is_empty() && waits[stream].is_none() => {
                    let (event, node) = events[random.below(events.len() as u64) as usize];
                    sim.stream_wait(streams[stream], event).unwrap();
                    waits[stream] = Some(node);
                }
                _ => {
                    let pieces = sim.complete(streams[stream], random.below(4));
                    model.complete(stream, pieces);
                    for (event, node) in &events {
                        assert_eq!(sim.done(*event), Ok(model.nodes[*node].complete));
                    }
                }
            }
            let page = random.below(4);
            let expected = model.busy(page * 4, page * 4 + 4);
            let (here, there) = (pages(region, page, 1), pages(region, page + 8, 1));
            assert_eq!(sim.remap(here, there).is_err(), expected, "seed {seed}");
            if expected {
                busy += 1;
            } else {
                sim.remap(there, here).unwrap();
            }
            sim.check().unwrap();
        }
    }
    assert!(accepted > 1000 && refused > 1000 && busy > 1000, "{accepted} {refused} {busy}");
}

/// Random programs of a careful caller break no rule; the maps stay whole.
#[test]
fn random_programs_keep_the_maps_whole() {
    for seed in 1..40u64 {
        let memory = if seed % 2 == 0 { SimMemory::Alias } else { SimMemory::Remap };
        let sim =
            Sim::new(SimConfig { memory, capacity: 40 * PAGE, lag: Lag::Events(seed % 5), ..SimConfig::default() });
        let region = sim.reserve(64 * PAGE).unwrap().id;
        let mut mapped = [false; 64];
        let mut random = Random(seed);
        let mut events = Vec::new();
        for owner in 0..300 {
            let (page, target) = (random.below(64), random.below(64));
            let span = pages(region, page, 1);
            match (mapped[page as usize], random.below(4)) {
                (false, _) => mapped[page as usize] = sim.back(span).is_ok(),
                (true, 0) => {
                    sim.complete_all();
                    sim.unback(span).unwrap();
                    mapped[page as usize] = false;
                }
                (true, 1) if !mapped[target as usize] => {
                    sim.complete_all();
                    sim.remap(span, pages(region, target, 1)).unwrap();
                    mapped[target as usize] = true;
                    mapped[page as usize] = memory == SimMemory::Alias;
                }
                (true, _) => {
                    let half = Span { size: PAGE / (1 + random.below(3)), ..span };
                    sim.work(DEFAULT, owner, half).unwrap();
                    events.push(sim.record(DEFAULT).unwrap());
                }
            }
            sim.advance(1);
            if events.len() > 4 {
                sim.forget(events.remove(0));
            }
            clean(&sim);
        }
        sim.complete_all();
        for page in (0..64).filter(|page| mapped[*page as usize]) {
            sim.unback(pages(region, page, 1)).unwrap();
        }
        sim.release(region).unwrap();
        assert_eq!(sim.counters().used, 0);
        clean(&sim);
    }
}

/// The size of a replay: this takes a second or so without optimisation, and must not take minutes.
#[test]
fn large_devices_cost_their_spans_only() {
    let sim = sim(SimMemory::Alias, Lag::Events(3));
    let region = sim.reserve(16 * TIB).unwrap().id;
    sim.back(pages(region, 0, 30_000)).unwrap();
    let mut top = 30_000;
    for round in 0..20u64 {
        sim.advance(10);
        sim.remap(pages(region, round * 1500, 1500), pages(region, top, 1500)).unwrap();
        sim.work(DEFAULT, round, pages(region, top, 1500)).unwrap();
        sim.unback(pages(region, round * 1500, 1500)).unwrap();
        top += 1500;
    }
    for owner in 0..20_000u64 {
        sim.advance(1);
        sim.work(DEFAULT, owner, pages(region, 30_000 + owner, 1 + owner % 64)).unwrap();
    }
    assert_eq!(sim.counters().used, 30_000 * PAGE);
    clean(&sim);
}
