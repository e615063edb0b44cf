//! Placement on traces: the time of an event and the least memory on which the trace passes, for larder and its peers.
//!
//! `cargo bench --bench placement` prints the tables that `BENCHMARKS.md` holds: medians of thread CPU time measured in turns, and
//! memory found by halving. `LARDER_TRACES` names another folder of traces.

use std::time::Duration;

use larder::backend::sim::Lag;
use larder::trace::replay::{ReplayConfig, Stage, least_capacity};
use larder::trace::{Op, Trace};
use larder_peers::common::{self, Contestant, Effort, Larder};
use larder_peers::in_band::{Rlsf, Talcs};
use larder_peers::out_of_band::{Buddy, Offset, Ranges, Virtual};
use larder_peers::vulkan::Gpu;
use larder_peers::{Locked, Placer, rounded};

/// Bytes of the range in which times are measured: more than any trace needs.
const WIDE: u64 = 1 << 40;

/// One trace played on a placer.
struct Played<'a, P: Placer> {
    trace: &'a Trace,
    placer: P,
    slots: Vec<Option<P::Block>>,
}

impl<'a, P: Placer> Played<'a, P> {
    fn over(range: u64, trace: &'a Trace) -> Self {
        let slots = (0..trace.slots()).map(|_| None).collect();
        Played { trace, placer: P::over(range, trace.slots()), slots }
    }

    /// All events, up to the first that finds no place.
    fn play(&mut self) -> Option<()> {
        for op in self.trace.ops() {
            match *op {
                Op::Alloc { slot, bytes, .. } => self.slots[slot as usize] = Some(self.placer.place(bytes)?),
                Op::Free { slot } => self.free(slot as usize),
                Op::Use { .. } | Op::Mark { .. } => {}
            }
        }
        Some(())
    }

    fn free(&mut self, slot: usize) {
        if let Some(block) = self.slots[slot].take() {
            self.placer.free(block);
        }
    }
}

impl<P: Placer> Contestant for Played<'_, P> {
    fn pass(&mut self) {
        self.play().expect("a trace within 1 TiB");
        (0..self.slots.len()).for_each(|slot| self.free(slot));
    }
}

/// The least range on which the trace passes, in steps of a 4096th of its peak. Searches by halving, as if more never hurt.
fn least_range<P: Placer>(trace: &Trace) -> u64 {
    let step = rounded(trace.peak_requested() / 4096);
    let passes = |steps: u64| Played::<P>::over(steps * step, trace).play().is_some();
    let (mut low, mut high) = (trace.peak_requested().div_ceil(step), trace.peak_requested().div_ceil(step));
    while !passes(high) {
        (low, high) = (high + 1, 2 * high);
    }
    while low < high {
        let middle = low + (high - low) / 2;
        if passes(middle) { high = middle } else { low = middle + 1 }
    }
    high * step
}

/// The same for larder, in pages; the work of every block is complete when it is freed, as for the peers.
fn least_device(stage: Stage, trace: &Trace) -> u64 {
    let config = ReplayConfig { stage, lag: Lag::Events(0), ..ReplayConfig::default() };
    least_capacity(trace, &config, |_| true).expect("a device as large as wished")
}

/// A contestant: how it is played, and the least memory on which the trace passes.
struct Entry {
    name: &'static str,
    contestant: for<'a> fn(&'a Trace) -> Box<dyn Contestant + 'a>,
    least: fn(&Trace) -> u64,
}

fn peer<P: Placer + 'static>(name: &'static str) -> Entry {
    Entry { name, contestant: |trace| Box::new(Played::<P>::over(WIDE, trace)), least: least_range::<P> }
}

fn entries() -> Vec<Entry> {
    let larder = |name, least| Entry { name, contestant: |trace| Box::new(Larder::new(trace)), least };
    vec![
        larder("larder", |trace| least_device(Stage::Sim, trace)),
        peer::<Offset>("offset-allocator, no lock"),
        peer::<Locked<Offset>>("offset-allocator"),
        peer::<Locked<Rlsf>>("rlsf"),
        peer::<Locked<Talcs>>("talc"),
        peer::<Locked<Virtual>>("VMA VirtualBlock"),
        peer::<Locked<Buddy>>("buddy_system_allocator"),
        peer::<Locked<Ranges>>("range-alloc"),
        peer::<Locked<Gpu>>("gpu-allocator"),
    ]
}

/// Nanoseconds an event and memory of each contestant on one trace.
struct Row {
    name: String,
    real: bool,
    ns: Vec<f64>,
    memory: Vec<f64>,
}

fn measure(name: &str, trace: &Trace, entries: &[Entry], effort: Effort) -> Row {
    let mut contestants: Vec<_> = entries.iter().map(|entry| (entry.contestant)(trace)).collect();
    let mut turns: Vec<&mut dyn Contestant> = contestants.iter_mut().map(|one| &mut **one as _).collect();
    let times = common::in_turns(&mut turns, effort);
    let events = common::events(trace) as f64;
    let ns = times.into_iter().map(|time| time / events).collect();
    let peak = trace.peak_requested() as f64;
    let memory = entries.iter().map(|entry| (entry.least)(trace) as f64 / peak).collect();
    Row { name: name.into(), real: common::is_real(name, trace), ns, memory }
}

fn main() {
    let figures = common::wants_figures();
    if !figures && common::skips() {
        return;
    }
    let traces = if figures { common::traces() } else { common::smoke_traces() };
    let effort = if figures { Effort { passes: 5, at_least: Duration::from_millis(25) } } else { Effort::SMOKE };
    let entries = entries();
    let rows: Vec<Row> = traces.iter().map(|(name, trace)| measure(name, trace, &entries, effort)).collect();
    let counted: Vec<&Row> = rows.iter().filter(|row| row.real || !figures).collect();
    let mean = |of: &dyn Fn(&Row) -> f64| common::geometric_mean(counted.iter().map(|row| of(row)));

    println!("| {} traces | ns an event | larder's time over it | memory / requested | worst |", counted.len());
    println!("|---|--:|--:|--:|--:|");
    for (at, entry) in entries.iter().enumerate() {
        let (ns, memory) = (mean(&|row| row.ns[at]), mean(&|row| row.memory[at]));
        let ratio = mean(&|row| row.ns[0] / row.ns[at]);
        let worst = counted.iter().map(|row| row.memory[at]).fold(1.0, f64::max);
        println!("| {} | {ns:.1} | {ratio:.3} | {memory:.4} | {worst:.3} |", entry.name);
    }
    let names: Vec<&str> = entries.iter().map(|entry| entry.name).collect();
    println!("\n| ns an event; memory / requested | {} |", names.join(" | "));
    println!("|---|{}", "--:|".repeat(names.len()));
    for row in &rows {
        let cells = row.ns.iter().zip(&row.memory).map(|(ns, memory)| format!("{ns:.1}; {memory:.3}"));
        println!("| {} | {} |", row.name, cells.collect::<Vec<_>>().join(" | "));
    }
}
