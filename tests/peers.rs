//! What other allocators test of themselves, asked of this one. Told anew from what their tests claim; sizes are ours where theirs are
//! tied to their rounding. Each row runs on every kind of memory that suits it; those of many steps in full length with `LARDER_FULL=1`.
//!
//! | # | test here | origin | asserted here |
//! |--:|---|---|---|
//! | 1 | `t01_no_two_blocks_are_the_same` | TensorFlow, BFC: NoDups | 1 to 1023 bytes: addresses apart, live bytes exact for quanta of 64, 256 and 512 |
//! | 2 | `t02_odd_ones_freed_and_made_again` | TensorFlow, BFC: AllocationsAndDeallocations | no two of 255 blocks overlap; hosts: contents stay |
//! | 3 | `t03_every_round_coalesces` | TensorFlow, ONNX Runtime: ExerciseCoalescing | after each of 1024 rounds every region is one free block, and the first block is where it was |
//! | 4 | `t04_shuffled_stress` | XLA: StressAllocFree | 350 blocks, 20 rounds: every invariant is recounted along the way |
//! | 5 | `t05_a_device_that_refuses` | XLA: sub-allocator that always fails; ONNX Runtime: BackoffDoesntHang | a typed error after few calls, nothing kept; a refusal at any one call is survived (`tests/faults.rs` does so at every call of a longer script) |
//! | 6 | `t06_alignments` | XLA: alignments | 32 to 4096 and 2 MiB, eight sizes each: aligned, and nothing lost afterwards |
//! | 7 | `t07_offsets_are_stable` | XLA: spatial suite | 31 seeds of churn: the same offsets again, and after it those of a fresh allocator |
//! | 8 | `t08_what_the_report_says` | XLA: OomLogsAllocationAnnotations; RMM: DumpLogOnFailure; VMA: TestJson | the text names the request, its place and who holds what, by tag; sums over holders and over blocks equal the statistics; with the feature `serde` the JSON says the same |
//! | 9 | `t09_contents_survive_churn` | tinygrad: fuzz of its TLSF | 100,000 iterations, 30 % full: contents intact; simulated: the order of all uses |
//! | 10 | `t10_random_allocations` | RMM: random_allocations | 1 MiB to 4 GiB, 1000 allocations (in full length 100,000): held is at most 1.06 of the peak of live by the page and 2.5 in segments, and misses an allocation do not grow with their number. Not timed: the peers' benches play traces and holes, and no such matrix |
//! | 11 | `t11_holes_equal_and_mixed` | RMM: free-list bench of rmm#2507 | no call of the device, no miss, and the hole that fits. Timed: `benches/holes.rs`, with p50 and p99 `benches/peers/benches/holes.rs`; counted: `tests/instructions.rs` |
//! | 12 | `t12_least_size_of_a_trace` | RMM: replay with a simulated size | the least device over the peak, by halving |
//! | 13 | `t13_threads_and_streams` | RMM: AllocFreeDifferentThreads; TensorFlow, XLA: contention | 4, 8, 16 threads; one makes, the next drops; same, different and default streams: no byte has two owners, no rule of the device is broken, nothing stays live or held. Not timed: `benches/threads.rs` |
//! | 14 | `t14_released_while_others_grow` | RMM: delayed_memory_resource | memory goes back and comes again under the same addresses while others run: no byte has two owners |
//! | 15 | `t15_no_use_is_forgotten` | rmm#2490, onnxruntime#32342 | every reuse is behind every use; one wait left out, and the device says so (at length: `tests/stream_model.rs`) |
//! | 16 | `t16_a_fence_in_a_field` | pytorch#123548 | a small live block in a large free area, 100 cycles: reserved at most 1.1 of the peak of live where pages move, else 1.5 |
//! | 17 | `t17_two_streams_fit_where_one_does` | rmm#2039 | the capacity that serves one stream serves two after a synchronisation, and behind waits |
//! | 18 | `t18_all_of_it_in_one_block` | rmm#1957 | grown to the limit in pieces; then one block of all of it |
//! | 19 | `t19_trim_to_the_byte` | rmm#1421, onnxruntime#22297 | what is left after a trim, and whole pages of a partial free, in bytes |
//! | 20 | `t20_typed_answers` | RMM: DeletedStream, MultidevicePool, NonAlignedPoolSize, ThrowMaxLessThanInitial | each is served, or is an error of its own |

mod common;
#[path = "peers/order.rs"]
mod order;
#[path = "peers/placement.rs"]
mod placement;
#[path = "peers/shortage.rs"]
mod shortage;
#[path = "peers/threads.rs"]
mod threads;

use larder::backend::sim::{Lag, Sim, SimConfig, SimMemory};
use larder::snapshot::BlockState;
use larder::units::GIB;
use larder::{Allocator, Any, Block, Config};

/// An allocator over some kind of memory.
struct Ground {
    name: &'static str,
    allocator: Allocator<Any>,
    /// The device, where it is simulated.
    sim: Option<Sim>,
}

/// Every kind: simulated pages and segments, the host's pages and segments.
fn grounds(config: &Config) -> Vec<Ground> {
    let mut all = simulated(config, Lag::Events(0));
    let mut host = |name, made: Result<Allocator<larder::Host>, larder::AllocError>| {
        all.push(Ground { name, allocator: made.unwrap().erase(), sim: None });
    };
    #[cfg(unix)]
    host("host pages", Allocator::host_mmap(larder::backend::host::MmapConfig::default(), config.clone()));
    host("host segments", Allocator::host_system(config.clone()));
    all
}

/// The simulated kinds: pages that move, and segments.
fn simulated(config: &Config, lag: Lag) -> Vec<Ground> {
    let kinds = [("simulated pages", SimMemory::Alias), ("simulated segments", SimMemory::Segments)];
    let ground = |(name, memory)| {
        let device = SimConfig { memory, lag, capacity: 64 * GIB, ..SimConfig::default() };
        let (allocator, sim) = Allocator::simulated(device, config.clone()).unwrap();
        Ground { name, allocator: allocator.erase(), sim: Some(sim) }
    };
    kinds.map(ground).into()
}

impl Ground {
    fn is_paged(&self) -> bool {
        self.allocator.capabilities().page.is_some()
    }

    fn reserved(&self) -> u64 {
        self.allocator.stats().reserved.current
    }

    /// Nothing is live, and all that is held is whole: one free block in each region.
    fn assert_whole(&self) {
        let snapshot = self.allocator.snapshot();
        for region in &snapshot.pools[0].regions {
            let held: Vec<_> = region.blocks.iter().filter(|block| block.state != BlockState::Unbacked).collect();
            assert!(held.len() <= 1, "{}: {held:?}", self.name);
            assert!(held.iter().all(|block| block.state == BlockState::Free), "{}: {held:?}", self.name);
        }
    }

    /// Everything goes back, and no rule was broken.
    fn end(self) {
        self.allocator.check().unwrap();
        self.allocator.purge().unwrap();
        assert_eq!(self.reserved(), 0, "{}", self.name);
        if let Some(sim) = self.sim {
            assert_eq!((sim.violations(), sim.counters().used), (vec![], 0), "{}", self.name);
        }
    }
}

/// No two blocks share a byte.
fn assert_apart<'a>(blocks: impl IntoIterator<Item = &'a Block<Any>>) {
    let mut places: Vec<(u64, u64)> = blocks.into_iter().map(|block| (block.address(), block.size())).collect();
    places.sort_unstable();
    for two in places.windows(2) {
        assert!(two[0].0 + two[0].1 <= two[1].0, "{two:?}");
    }
}
