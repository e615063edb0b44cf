//! Synthetic allocation programs: a server of a language model, a training run, and a heap full of holes.
//!
//! They stand in where a recorded trace has one stream only, or where a property needs a program of a known shape.
//! They do not claim to be any real program. Invariants: a model is a function of its arguments, the same on every
//! machine and in every version of this crate (integer arithmetic only); every size is from 512 B to 256 MiB.

use std::collections::VecDeque;

use super::program::{Alloc, Builder, Trace};
use crate::units::{KIB, MIB};

/// Least size asked for.
const SMALLEST: u64 = 512;
/// Greatest size asked for.
const LARGEST: u64 = 256 * MIB;

/// SplitMix64: the next of a sequence of 64-bit numbers that the seed determines.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to below `high`; `low` when there is nothing between.
    fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % high.saturating_sub(low).max(1)
    }

    /// From `low` to below twice the last doubling of it that is below `high`: as many small ones as large ones.
    fn doublings(&mut self, low: u64, high: u64) -> u64 {
        let steps = u64::from((high / low).max(1).ilog2()).max(1);
        let base = low << self.within(0, steps);
        self.within(base, 2 * base)
    }
}

/// A program in the making, whose sizes are kept in bounds.
struct Program {
    builder: Builder,
}

/// A model breaks no rule of a program, whatever its arguments.
const SOUND: &str = "a model makes a sound program";

impl Program {
    fn new(name: &str, seed: u64) -> Self {
        let mut builder = Builder::new();
        builder.header("name", name);
        builder.header("source", "synthetic, not a real workload");
        builder.header("seed", &seed.to_string());
        Program { builder }
    }

    fn alloc(&mut self, bytes: u64, stream: u16, tag: &str) -> u32 {
        let bytes = bytes.clamp(SMALLEST, LARGEST);
        self.builder.alloc(Alloc { bytes, stream, tag, ..Alloc::default() }).expect(SOUND)
    }

    fn free(&mut self, slot: u32) {
        self.builder.free(slot).expect(SOUND);
    }

    fn use_on(&mut self, slot: u32, stream: u16) {
        self.builder.use_on(slot, stream).expect(SOUND);
    }
}

/// What a worker of the server does next; keys are its own names of blocks.
enum Act {
    Alloc { key: usize, bytes: u64, stream: u16, tag: &'static str },
    Free { key: usize },
    Use { key: usize, stream: u16 },
    Mark { label: String },
}

/// A request in progress.
struct Request {
    tokens: u64,
    left: u64,
    cache: Vec<usize>,
}

/// One stream's worth of server: a few requests at a time, round robin.
struct Worker {
    stream: u16,
    acts: VecDeque<Act>,
    active: VecDeque<Request>,
    slots: Vec<u32>,
}

/// Shape of the served model.
mod served {
    pub(super) const LAYERS: usize = 8;
    pub(super) const WIDTH: u64 = 2048;
    pub(super) const INNER: u64 = 5632;
    pub(super) const WORDS: u64 = 32000;
    /// Tokens in one block of the cache of keys and values.
    pub(super) const PAGE: u64 = 16;
    /// Requests of one worker at a time.
    pub(super) const AT_ONCE: usize = 4;
}

impl Worker {
    fn new(stream: u16) -> Self {
        Worker { stream, acts: VecDeque::new(), active: VecDeque::new(), slots: Vec::new() }
    }

    fn alloc(&mut self, bytes: u64, tag: &'static str) -> usize {
        self.alloc_on(bytes, self.stream, tag)
    }

    fn alloc_on(&mut self, bytes: u64, stream: u16, tag: &'static str) -> usize {
        let key = self.slots.len();
        self.slots.push(0);
        self.acts.push_back(Act::Alloc { key, bytes, stream, tag });
        key
    }

    fn free(&mut self, key: usize) {
        self.acts.push_back(Act::Free { key });
    }

    /// Admits a request if there is room and one is waiting, then plans the next step of the next request.
    fn plan(&mut self, random: &mut Random, waiting: &mut u32, served: &mut u64) {
        if self.active.len() < served::AT_ONCE && *waiting > 0 {
            *waiting -= 1;
            *served += 1;
            let request = Request { tokens: 0, left: random.within(4, 32), cache: Vec::new() };
            let prompt = random.doublings(64, 2048);
            self.acts.push_back(Act::Mark { label: format!("admit {served} prompt {prompt} on {}", self.stream) });
            self.active.push_front(request);
            self.step(random, prompt);
        } else if !self.active.is_empty() {
            self.step(random, 1);
        }
    }

    /// One pass of the model over `count` new tokens of the request in front.
    fn step(&mut self, random: &mut Random, count: u64) {
        use served::{INNER, LAYERS, PAGE, WIDTH};
        let Some(mut request) = self.active.pop_front() else { return };
        let pages = |tokens: u64| tokens.div_ceil(PAGE);
        let grow = pages(request.tokens + count) - pages(request.tokens);
        request.tokens += count;
        let row = 2 * WIDTH * count;
        let input = self.hand_over(8 * count);
        let mut hidden = self.alloc(row, "activation");
        self.free(input);
        for _ in 0..LAYERS {
            if grow > 0 {
                request.cache.push(self.alloc(grow * PAGE * WIDTH * 4, "kv"));
            }
            let joint = self.alloc(3 * row, "activation");
            let mixed = self.alloc(row, "activation");
            self.free(joint);
            let gate = self.alloc(2 * INNER * count, "activation");
            let up = self.alloc(2 * INNER * count, "activation");
            self.free(mixed);
            let next = self.alloc(row, "activation");
            self.free(gate);
            self.free(up);
            self.free(hidden);
            hidden = next;
        }
        self.answer(random, hidden, count);
        request.left -= 1;
        if request.left > 0 {
            self.active.push_back(request);
        } else {
            request.cache.into_iter().for_each(|key| self.free(key));
        }
    }

    /// A block made on the stream of the front end and read on this one.
    fn hand_over(&mut self, bytes: u64) -> usize {
        let key = self.alloc_on(bytes, 0, "input");
        if self.stream != 0 {
            self.acts.push_back(Act::Use { key, stream: self.stream });
        }
        key
    }

    /// Scores of all tokens, wide then narrow, read by the front end now and then before they go.
    fn answer(&mut self, random: &mut Random, hidden: usize, count: u64) {
        let narrow = self.alloc(2 * served::WORDS * count, "scores");
        self.free(hidden);
        let wide = self.alloc(4 * served::WORDS * count, "scores");
        self.free(narrow);
        if self.stream != 0 && random.within(0, 4) == 0 {
            self.acts.push_back(Act::Use { key: wide, stream: 0 });
        }
        self.free(wide);
    }

    /// Does one planned act; false when none is left.
    fn act(&mut self, program: &mut Program) -> bool {
        match self.acts.pop_front() {
            Some(Act::Alloc { key, bytes, stream, tag }) => self.slots[key] = program.alloc(bytes, stream, tag),
            Some(Act::Free { key }) => program.free(self.slots[key]),
            Some(Act::Use { key, stream }) => program.use_on(self.slots[key], stream),
            Some(Act::Mark { label }) => program.builder.mark(&label),
            None => return false,
        }
        true
    }
}

/// A server of a language model: weights that stay, blocks of keys and values that grow with each request, and
/// activations that come and go, on `streams` worker streams (at least 1) that take turns at random.
///
/// Each request belongs to one stream. Inputs are made on stream 0 and used on the worker's; scores are sometimes used
/// on stream 0 (`u` events, none with a single stream). About 1,500 events a request; peak from 1.6 GiB with one stream
/// to some 3 GiB with eight.
pub fn serving(seed: u64, requests: u32, streams: u16) -> Trace {
    let mut random = Random(seed);
    let mut program = Program::new("serving", seed);
    program.builder.mark("load");
    load_served(&mut program);
    let mut workers: Vec<Worker> = (0..streams.max(1)).map(Worker::new).collect();
    let (mut waiting, mut served) = (requests, 0);
    loop {
        let turn = random.within(0, workers.len() as u64) as usize;
        let quantum = random.within(1, 50);
        run(&mut workers[turn], quantum, &mut program, &mut random, &mut waiting, &mut served);
        if waiting == 0 && workers.iter().all(|worker| worker.acts.is_empty() && worker.active.is_empty()) {
            break;
        }
    }
    program.builder.finish()
}

fn run(
    worker: &mut Worker,
    acts: u64,
    program: &mut Program,
    random: &mut Random,
    waiting: &mut u32,
    served: &mut u64,
) {
    for _ in 0..acts {
        if !worker.act(program) {
            worker.plan(random, waiting, served);
            if worker.acts.is_empty() {
                return;
            }
        }
    }
}

fn load_served(program: &mut Program) {
    use served::{INNER, LAYERS, WIDTH, WORDS};
    program.alloc(2 * WORDS * WIDTH, 0, "weights");
    for _ in 0..LAYERS {
        for bytes in [3 * 2 * WIDTH * WIDTH, 2 * WIDTH * WIDTH, 2 * WIDTH, 2 * WIDTH] {
            program.alloc(bytes, 0, "weights");
        }
        for _ in 0..3 {
            program.alloc(2 * WIDTH * INNER, 0, "weights");
        }
    }
    program.alloc(2 * WORDS * WIDTH, 0, "weights");
}

/// Width of the trained model, in elements of two bytes.
const TRAINED_WIDTH: u64 = 1024;

/// A training run on one stream: weights and moments that stay, activations kept on the way forward and freed in
/// reverse, gradients that live until the optimiser ran, batches of varying length.
///
/// About 60 events a layer and step; with 24 layers a peak of about 4.5 GiB.
pub fn training(seed: u64, layers: u32, steps: u32) -> Trace {
    let mut random = Random(seed);
    let mut program = Program::new("training", seed);
    const SQUARE: u64 = 2 * TRAINED_WIDTH * TRAINED_WIDTH;
    const PARTS: [u64; 6] = [3 * SQUARE, SQUARE, 4 * SQUARE, 4 * SQUARE, 2 * TRAINED_WIDTH, 2 * TRAINED_WIDTH];
    program.builder.mark("load");
    for part in (0..layers).flat_map(|_| PARTS) {
        for tag in ["weights", "moments", "moments"] {
            program.alloc(part, 0, tag);
        }
    }
    for step in 0..steps {
        let tokens = random.within(2048, 6144) / 8 * 8;
        program.builder.mark(&format!("step {step} tokens {tokens}"));
        let kept = forward(&mut program, layers, tokens);
        let mut gradients = Vec::new();
        program.builder.mark("backward");
        backward(&mut program, kept, tokens, &PARTS, &mut gradients);
        program.builder.mark("optimizer");
        for gradient in gradients {
            let scratch = program.alloc(random.doublings(SMALLEST, 64 * KIB), 0, "scratch");
            program.free(gradient);
            program.free(scratch);
        }
    }
    program.builder.finish()
}

/// The activations each layer keeps.
fn forward(program: &mut Program, layers: u32, tokens: u64) -> Vec<Vec<u32>> {
    let row = 2 * TRAINED_WIDTH * tokens;
    let mut kept = Vec::new();
    for _ in 0..layers {
        let mut layer = Vec::new();
        for bytes in [row, 3 * row, row, 4 * tokens, row, 4 * row] {
            let scratch = program.alloc(bytes / 2, 0, "scratch");
            layer.push(program.alloc(bytes, 0, "activation"));
            program.free(scratch);
        }
        kept.push(layer);
    }
    kept
}

fn backward(program: &mut Program, kept: Vec<Vec<u32>>, tokens: u64, parts: &[u64], gradients: &mut Vec<u32>) {
    let row = 2 * TRAINED_WIDTH * tokens;
    let mut incoming = program.alloc(row, 0, "gradient");
    for layer in kept.into_iter().rev() {
        for (at, block) in layer.into_iter().enumerate().rev() {
            let outgoing = program.alloc(row, 0, "gradient");
            program.free(incoming);
            program.free(block);
            incoming = outgoing;
            if let Some(&part) = parts.get(at) {
                gradients.push(program.alloc(part, 0, "gradient"));
            }
        }
    }
    program.free(incoming);
}

/// A heap with `n` holes, none beside another: 2 n blocks of 512 B to 256 KiB, every second one freed in a random
/// order; then blocks of 1 to 64 MiB, together nine tenths of the holes; then n random replacements.
///
/// Seven events a hole, and a peak of about 84 KiB a hole: n from 13,000 to 28,000 gives 1 to 2.3 GiB.
pub fn holes(seed: u64, n: u32) -> Trace {
    let mut random = Random(seed);
    let mut program = Program::new("holes", seed);
    program.builder.mark("fill");
    let (mut stay, mut go) = (Vec::new(), Vec::new());
    for _ in 0..n {
        stay.push(program.alloc(random.doublings(SMALLEST, 256 * KIB), 0, "stay"));
        let bytes = random.doublings(SMALLEST, 256 * KIB);
        go.push((program.alloc(bytes, 0, "go"), bytes));
    }
    program.builder.mark("holes");
    let free_bytes = go.iter().map(|(_, bytes)| bytes).sum::<u64>() / 10 * 9;
    for last in (0..go.len()).rev() {
        go.swap(last, random.within(0, last as u64 + 1) as usize);
        program.free(go[last].0);
    }
    program.builder.mark("large");
    let mut large = Vec::new();
    let mut used = 0;
    loop {
        let bytes = random.doublings(MIB, 64 * MIB);
        used += bytes;
        if used > free_bytes {
            break;
        }
        large.push(program.alloc(bytes, 0, "large"));
    }
    large.into_iter().for_each(|slot| program.free(slot));
    program.builder.mark("replace");
    for _ in 0..n {
        let at = random.within(0, stay.len() as u64) as usize;
        program.free(stay[at]);
        stay[at] = program.alloc(random.doublings(SMALLEST, 256 * KIB), 0, "stay");
        let short = program.alloc(random.doublings(SMALLEST, 256 * KIB), 0, "short");
        program.free(short);
    }
    program.builder.finish()
}
