//! The event history: a bounded ring, in order over all pools, from which a trace can be written that reaches the same peaks.

mod common;

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use common::Rng;
use larder::backend::BackendError;
use larder::backend::sim::{Call, Lag, Sim, SimConfig, SimMemory};
use larder::ids::{PoolId, StreamId};
use larder::policy::PoolConfig;
use larder::snapshot::{Action, Event, History, PoolRecord, Snapshot};
use larder::trace::replay::{Player, ReplayConfig, stage};
use larder::trace::{Op, Reader, Trace, Writer, write_history};
use larder::units::MIB;
use larder::{AllocError, Allocator, Block, Config, OomReport, Simulated};

fn simulated(config: Config) -> (Allocator<Simulated>, Sim) {
    Allocator::simulated(SimConfig { lag: Lag::Events(0), ..SimConfig::default() }, config).unwrap()
}

fn history(allocator: &Allocator<impl larder::Memory>) -> History {
    allocator.snapshot().history.expect("the history is on")
}

/// What is asked for in each pool and in all together: the model that peaks are compared with.
#[derive(Clone, Default)]
struct Asked {
    now: BTreeMap<PoolId, i64>,
    peaks: BTreeMap<PoolId, i64>,
    peak: i64,
}

impl Asked {
    fn change(&mut self, pool: PoolId, by: i64) {
        let now = self.now.entry(pool).or_default();
        *now += by;
        let most = self.peaks.entry(pool).or_default();
        *most = (*most).max(*now);
        self.peak = self.peak.max(self.now.values().sum());
    }

    /// From here on.
    fn forget_peaks(&mut self) {
        self.peaks = self.now.clone();
        self.peak = self.now.values().sum();
    }
}

/// One thing that a program did: bytes asked for, negative when they came back, 0 when a block was used.
type Done = (PoolId, i64);

/// A random program on three pools and three streams, its last snapshot, and what it did.
fn program(seed: u64, events: usize) -> (Snapshot, Vec<Done>, Vec<larder::Stats>) {
    let (allocator, _sim) = simulated(Config::default().history(events));
    let mut random = Rng::new(seed);
    let streams = [allocator.default_stream(), allocator.stream().unwrap(), allocator.stream().unwrap()];
    // Two pools of one name are two pools.
    let more = || allocator.pool("more", PoolConfig::default()).unwrap();
    let pools = [allocator.clone(), more(), more()];
    let mut held: Vec<(PoolId, Block<Simulated>, Vec<StreamId>)> = Vec::new();
    let mut done = Vec::new();
    for _ in 0..3_000 {
        let at = random.below(held.len().max(1) as u64) as usize;
        match random.below(8) {
            0..4 => {
                let pool = &pools[random.below(3) as usize];
                let stream = &streams[random.below(3) as usize];
                let request = pool.request(1 + random.below(1 << 22)).on(stream);
                let tag = ["", "weights", "kv cache"][random.below(3) as usize];
                let block = request.align(1 << random.below(14)).tag(tag).alloc().unwrap();
                done.push((pool.pool_id(), block.len() as i64));
                held.push((pool.pool_id(), block, vec![stream.id()]));
            }
            4 if !held.is_empty() => {
                let stream = &streams[random.below(3) as usize];
                let (pool, block, users) = &mut held[at];
                block.used_on(stream);
                // Only a stream that is new to the block is an event.
                if !users.contains(&stream.id()) {
                    users.push(stream.id());
                    done.push((*pool, 0));
                }
            }
            _ if !held.is_empty() => {
                let (pool, block, _) = held.swap_remove(at);
                done.push((pool, -(block.len() as i64)));
            }
            _ => {}
        }
    }
    let stats = pools.iter().map(Allocator::stats).collect();
    (allocator.snapshot(), done, stats)
}

fn written(snapshot: &Snapshot) -> Trace {
    let text = write_history(snapshot, Writer::gzip(Vec::new())).unwrap();
    Trace::from_reader(Reader::new(text.as_slice())).unwrap()
}

/// What a replay holds at its end: the first pool, then those that the trace names.
fn replayed(trace: &Trace) -> Vec<PoolRecord> {
    let (allocator, sim) = stage(&ReplayConfig { lag: Lag::Events(0), ..ReplayConfig::default() }).unwrap();
    let mut player = Player::new(trace, &allocator, sim).unwrap();
    player.play(1, |_| true).unwrap();
    allocator.snapshot().pools
}

/// Figures that a replay repeats, by pool, in an order that does not depend on the pools' numbers.
fn figures<'a>(stats: impl Iterator<Item = &'a larder::Stats>) -> Vec<String> {
    let mut rows: Vec<_> = stats.map(|s| format!("{:?}", (s.requested, s.live, s.blocks))).collect();
    rows.sort();
    rows
}

#[test]
fn a_whole_history_replays_to_the_same_figures() {
    for seed in 0..3 {
        let (snapshot, done, stats) = program(seed, 1 << 14);
        let trace = written(&snapshot);
        assert_eq!(trace.events() as usize, done.len());
        assert!(trace.headers().get("lost").is_none());
        let again = replayed(&trace);
        assert_eq!(figures(again.iter().map(|pool| &pool.stats)), figures(stats.iter()), "seed {seed}");
        let mut asked = Asked::default();
        done.iter().for_each(|(pool, by)| asked.change(*pool, *by));
        assert_eq!(trace.peak_requested() as i64, asked.peak, "the peak of all pools together, seed {seed}");
        let labelled = again.iter().filter(|pool| pool.tags.iter().any(|tag| tag.tag == "kv cache")).count();
        assert_eq!(labelled, 3, "labels are kept");
    }
}

#[test]
fn an_overwritten_history_replays_to_the_peak_of_its_window() {
    for (seed, events) in [(0, 100), (1, 500), (2, 500), (3, 37), (4, 1)] {
        let (snapshot, done, stats) = program(seed, events);
        let history = snapshot.history.as_ref().unwrap();
        assert!(history.overwritten() > 0);
        let from = history.whole_from();
        let kept = history.events.iter().filter(|event| event.stamp >= from && event.block.is_some()).count();
        let mut asked = Asked::default();
        for (pool, by) in &done[..done.len() - kept] {
            asked.change(*pool, *by);
        }
        asked.forget_peaks();
        for (pool, by) in &done[done.len() - kept..] {
            asked.change(*pool, *by);
        }
        let trace = written(&snapshot);
        assert_eq!(trace.peak_requested() as i64, asked.peak, "seed {seed}, {events} events");
        let again = replayed(&trace);
        let mut peaks: Vec<i64> = again.iter().map(|pool| pool.stats.requested.peak as i64).collect();
        let mut expected: Vec<i64> = asked.peaks.values().copied().collect();
        peaks.sort_unstable();
        expected.sort_unstable();
        assert_eq!(peaks, expected, "each pool, seed {seed}, {events} events");
        let live: u64 = stats.iter().map(|stats| stats.live.current).sum();
        assert_eq!(again.iter().map(|pool| pool.stats.live.current).sum::<u64>(), live, "what is live at the end");
    }
}

/// Bytes asked for by the allocs of these events, in order.
fn allocs(events: &[Event]) -> Vec<u64> {
    events.iter().filter(|event| event.action == Action::Alloc).map(|event| event.requested).collect()
}

#[test]
fn the_ring_is_bounded_and_counts_what_it_lost() {
    let (allocator, _sim) = simulated(Config::default().history(4));
    let blocks: Vec<_> = (1..=10).map(|bytes| allocator.alloc(bytes).unwrap()).collect();
    let now = history(&allocator);
    assert_eq!(allocs(&now.events), [7, 8, 9, 10]);
    // Ten allocs and the growth for the first of them.
    assert_eq!((now.windows[0].overwritten, now.windows[0].from), (7, now.events[0].stamp));
    drop(blocks);
    assert_eq!(history(&allocator).overwritten(), 17);
}

#[test]
fn a_report_has_the_last_events_of_both_laps() {
    for (kept, before) in [(24, 0), (24, 5), (24, 20), (24, 30), (24, 45), (8, 5), (8, 13), (100, 50)] {
        let (allocator, _sim) = simulated(Config::default().limit(4 * MIB).history(kept));
        let _blocks: Vec<_> = (1..=before).map(|bytes| allocator.alloc(bytes).unwrap()).collect();
        let AllocError::OutOfMemory(report) = allocator.alloc(8 * MIB).unwrap_err() else { panic!("above the limit") };
        let events = history(&allocator).events;
        assert_eq!(report.events, events[events.len().saturating_sub(OomReport::EVENTS)..], "{kept}, {before}");
    }
}

#[test]
fn the_history_is_switched_at_run_time() {
    let (allocator, _sim) = simulated(Config::default());
    assert_eq!(allocator.snapshot().history, None, "off unless asked for");
    let before = allocator.alloc(512).unwrap();
    allocator.set_config(allocator.config().history(100)).unwrap();
    let memory = allocator.own_memory();
    drop(before);
    let after = allocator.alloc(1024).unwrap();
    let now = history(&allocator);
    let actions: Vec<_> = now.events.iter().map(|event| (event.action, event.requested)).collect();
    assert_eq!(actions, [(Action::Free, 512), (Action::Alloc, 1024)], "a free tells of a block from before");
    assert_eq!(now.overwritten(), 0);
    let trace = written(&allocator.snapshot());
    assert_eq!((trace.events(), trace.peak_requested()), (3, 1024), "what was live is in front");

    let slack = Config { slack: 1.1, ..allocator.config() };
    allocator.set_config(slack).unwrap();
    assert_eq!(history(&allocator), now, "other changes leave it");
    allocator.set_config(allocator.config().history(50)).unwrap();
    assert_eq!(history(&allocator).events, [], "another length begins anew");
    assert!(allocator.own_memory() < memory);
    allocator.set_config(allocator.config().history(0)).unwrap();
    assert_eq!(allocator.snapshot().history, None);
    drop(after);
    assert!(Config::default().history((1 << 24) + 1).validate().is_err());
}

#[test]
fn stamps_order_the_pools_of_one_thread() {
    let (first, _sim) = simulated(Config::default().history(1000));
    let second = first.pool("second", PoolConfig::default()).unwrap();
    let mut random = Rng::new(1);
    for bytes in 1..=300 {
        let pool = if random.below(3) > 0 { &first } else { &second };
        drop(pool.alloc(bytes).unwrap());
    }
    assert_eq!(allocs(&history(&first).events), (1..=300).collect::<Vec<_>>());
    let events = history(&first).events;
    assert!(events.windows(2).all(|pair| pair[0].stamp < pair[1].stamp), "no two stamps of one thread are the same");
}

#[test]
fn stamps_order_what_threads_know_of_each_other() {
    let (first, _sim) = simulated(Config::default().history(1000));
    let second = first.pool("second", PoolConfig::default()).unwrap();
    let (to_second, from_first) = mpsc::channel();
    let (to_first, from_second) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for bytes in from_first {
                drop(second.alloc(bytes).unwrap());
                to_first.send(()).unwrap();
            }
        });
        for turn in 0..200 {
            drop(first.alloc(2 * turn + 1).unwrap());
            to_second.send(2 * turn + 2).unwrap();
            from_second.recv().unwrap();
        }
        drop(to_second);
    });
    assert_eq!(allocs(&history(&first).events), (1..=400).collect::<Vec<_>>());
}

#[test]
fn time_passes_with_the_events() {
    let (allocator, _sim) = simulated(Config::default().history(1000));
    drop(allocator.alloc(1).unwrap());
    std::thread::sleep(std::time::Duration::from_millis(3));
    for _ in 0..128 {
        drop(allocator.alloc(1).unwrap());
    }
    let events = history(&allocator).events;
    let (first, last) = (events[0].stamp, events[events.len() - 1].stamp);
    assert!(last >= first + 3_000_000, "{first} to {last}: the clock was read in between");
    assert!(history(&allocator).epoch > 1_600_000_000_000_000_000);
}

/// The events of one kind.
fn of(events: &[Event], action: Action) -> Vec<&Event> {
    events.iter().filter(|event| event.action == action).collect()
}

#[test]
fn every_kind_of_event_is_written_down_with_what_brought_it_about() {
    let device = SimConfig { lag: Lag::Never, page: 2 * MIB, ..SimConfig::default() };
    let config = Config::default().history(1000).limit(8 * MIB);
    let (allocator, sim) = Allocator::simulated(device, config).unwrap();
    let (one, two) = (allocator.stream().unwrap(), allocator.stream().unwrap());
    let _tag = larder::tag("story");
    let blocks: Vec<_> = (0..4).map(|_| allocator.alloc_on(&one, 2 * MIB).unwrap()).collect();
    let events = history(&allocator).events;
    let grown = of(&events, Action::Grow);
    assert_eq!(grown.iter().map(|event| event.size).sum::<u64>(), 8 * MIB);
    assert!(grown.iter().all(|event| event.tag == "story" && event.site.is_some() && event.block.is_none()));
    assert_eq!(of(&events, Action::Alloc)[1].address, blocks[1].address());

    blocks[0].used_on(&two);
    blocks[0].used_on(&two);
    let events = history(&allocator).events;
    let used = of(&events, Action::Use);
    assert_eq!((used.len(), used[0].stream, used[0].block, used[0].size), (1, two.id(), blocks[0].id(), 2 * MIB));

    // The first and the third go; together they serve the other stream, moved, behind a wait.
    let ids: Vec<_> = blocks.iter().map(|block| block.id()).collect();
    let mut blocks = blocks.into_iter();
    drop(blocks.next());
    let second = blocks.next();
    drop(blocks.next());
    let both = allocator.alloc_on(&two, 4 * MIB).unwrap();
    let events = history(&allocator).events;
    assert_eq!(of(&events, Action::Free).iter().map(|event| event.block).collect::<Vec<_>>(), [ids[0], ids[2]]);
    assert!(of(&events, Action::Free).iter().all(|event| event.requested == 2 * MIB && event.stream == one.id()));
    let moved = of(&events, Action::Remap);
    assert_eq!(moved.iter().map(|event| event.size).sum::<u64>(), allocator.stats().moved);
    assert!(!moved.is_empty() && moved.iter().all(|event| event.tag == "story"));
    let waited = of(&events, Action::StreamWait);
    assert_eq!(waited.len() as u64, allocator.stats().stream_waits);
    assert_eq!((waited[0].stream, waited[0].other), (two.id(), Some(one.id())));

    let AllocError::OutOfMemory(report) = allocator.alloc(MIB).unwrap_err() else { panic!("the limit is in the way") };
    let last = report.events.last().unwrap();
    assert_eq!((last.action, last.requested, last.site), (Action::Oom, MIB, Some(report.request.site)));
    assert!(report.to_string().contains("lately"), "{report}");
    assert_eq!(history(&allocator).events.iter().rfind(|event| event.action == Action::Oom), Some(last));

    drop((both, second, blocks));
    sim.complete_all();
    let returned = allocator.purge().unwrap();
    assert_eq!(returned, 8 * MIB);
    let events = history(&allocator).events;
    let back = of(&events, Action::Return);
    assert_eq!(back.iter().map(|event| event.size).sum::<u64>(), returned);
    assert!(back.iter().all(|event| event.site.is_none()), "nobody's request brought it about");
    assert_eq!(of(&events, Action::Trim).last().unwrap().size, returned);
    assert_eq!(of(&events, Action::HostWait).len() as u64, allocator.stats().host_waits);
}

#[test]
fn segments_are_had_and_go_back() {
    let host = Allocator::host_system(Config::default().limit(64 * MIB).history(100)).unwrap();
    let address = host.alloc(MIB).unwrap().address();
    host.purge().unwrap();
    let events = history(&host).events;
    let (had, back) = (of(&events, Action::Grow)[0], of(&events, Action::Return)[0]);
    assert_eq!((had.address, had.size), (address, back.size));
    assert_eq!(back.address, address);
    assert!(had.stamp < back.stamp);
}

#[test]
fn any_label_and_name_can_be_written() {
    let (allocator, _sim) = simulated(Config::default().history(100));
    let long = "\u{1f980}\n".repeat(100);
    let pools =
        [format!("{long}1"), format!("{long}2")].map(|name| allocator.pool(&name, PoolConfig::default()).unwrap());
    let labels = ["a\nb", "a=b c\r%", "\0\u{2028}\u{a0}", &long];
    for (at, label) in labels.iter().enumerate() {
        drop(pools[at % 2].request(100).tag(label).alloc().unwrap());
    }
    let trace = written(&allocator.snapshot());
    let names = |op: &Op| match *op {
        Op::Alloc { tag, pool, .. } => Some((trace.name(tag).unwrap(), trace.name(pool).unwrap())),
        _ => None,
    };
    let (tags, pools): (Vec<_>, Vec<_>) = trace.ops().iter().filter_map(names).unzip();
    // A character and a line end have 5 bytes.
    assert_eq!((&tags[..3], tags[3]), (&labels[..3], &long[..255]));
    assert_eq!((pools[0], pools[1]), (&*format!("{} p1", &long[..245]), &*format!("{} p2", &long[..245])));
}

#[test]
fn a_trim_tells_what_went_back_however_it_ends() {
    let device = SimConfig { lag: Lag::Events(0), memory: SimMemory::Segments, ..SimConfig::default() };
    let config = Config { decay: Some(Duration::from_secs(1)), ..Config::default().limit(64 * MIB).history(1000) };
    let (allocator, sim) = Allocator::simulated(device, config).unwrap();
    let two_idle = || drop((allocator.alloc(4 * MIB).unwrap(), allocator.alloc(4 * MIB).unwrap()));
    let trims = || of(&history(&allocator).events, Action::Trim).iter().map(|event| event.size).collect::<Vec<_>>();
    two_idle();
    sim.fail_at(Call::Release, 2, BackendError::Driver { call: "release", code: 1, reason: "not now".into() });
    assert!(allocator.trim(0).is_err());
    assert_eq!((trims(), allocator.stats().reserved.current), (vec![4 * MIB], 4 * MIB));
    sim.fail_clear();

    two_idle();
    allocator.tick(Duration::ZERO).unwrap();
    assert_eq!(trims(), [4 * MIB], "time begins");
    assert_eq!(allocator.tick(Duration::from_secs(1)).unwrap(), 8 * MIB);
    allocator.tick(Duration::from_millis(1500)).unwrap();
    assert_eq!(trims(), [4 * MIB, 8 * MIB], "one for each time that was due");
}
