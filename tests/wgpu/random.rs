//! Ten thousand allocations, uploads, dispatches, copies and frees, recorded and submitted as programs do, against a shadow.

use larder::units::KIB;
use larder::wgpu::api::{CommandEncoder, ComputePipeline};
use larder::wgpu::{Recording, Wgpu};
use larder::{Block, Config};

use crate::common::Rng;
use crate::stage::{Stage, adapter, dispatch, made_of, pipeline};

struct Program {
    stage: Stage,
    shader: ComputePipeline,
    rng: Rng,
    /// Blocks, and what they will hold when all that was recorded has run.
    held: Vec<(Block<Wgpu>, Vec<u32>)>,
    open: Option<(Recording, CommandEncoder)>,
    dispatches: u32,
    copies: u32,
}

impl Program {
    fn encoder(&mut self) -> &mut CommandEncoder {
        let stage = &self.stage;
        &mut self.open.get_or_insert_with(|| (stage.gpu.recording().unwrap(), stage.encoder())).1
    }

    fn submit(&mut self) {
        if let Some((recording, encoder)) = self.open.take() {
            recording.submit([encoder.finish()]);
        }
    }

    fn pick(&mut self) -> usize {
        self.rng.below(self.held.len() as u64) as usize
    }

    fn alloc(&mut self) {
        let words = self.rng.skewed(16 * KIB);
        let block = self.stage.gpu.alloc(4 * words).unwrap();
        let data: Vec<u32> = (0..words).map(|_| self.rng.next() as u32).collect();
        self.encoder();
        let (_, encoder) = self.open.as_mut().unwrap();
        match self.rng.below(3) {
            // At once: the block is new, so that nothing recorded can be about it.
            0 => self.stage.gpu.upload(&block, &data).unwrap(),
            _ => self.stage.gpu.upload_in(encoder, &block, &data).unwrap(),
        }
        self.held.push((block, data));
    }

    fn dispatch(&mut self) {
        let (from, to) = (self.pick(), self.pick());
        if from == to {
            return;
        }
        self.encoder();
        let (_, encoder) = self.open.as_mut().unwrap();
        let [source, target] = self.held.get_disjoint_mut([from, to]).unwrap();
        let words = source.1.len().min(target.1.len());
        // Where the source is the shorter one, the rest reads its last word.
        let binding = [source.0.binding().unwrap(), target.0.binding().unwrap()];
        if source.1.len() < target.1.len() {
            return;
        }
        dispatch(self.stage.device(), encoder, &self.shader, binding, words as u64);
        target.1.iter_mut().zip(&source.1).for_each(|(to, from)| *to = made_of(*from));
        self.dispatches += 1;
    }

    fn copy(&mut self) {
        let (from, to) = (self.pick(), self.pick());
        if from == to {
            return;
        }
        self.encoder();
        let (_, encoder) = self.open.as_mut().unwrap();
        let [source, target] = self.held.get_disjoint_mut([from, to]).unwrap();
        let words = source.1.len().min(target.1.len());
        let bytes = 4 * words as u64;
        self.stage.gpu.copy_in(encoder, source.0.part(0, bytes), target.0.part(0, bytes)).unwrap();
        target.1[..words].copy_from_slice(&source.1[..words]);
        self.copies += 1;
    }

    fn verify(&mut self, at: usize) {
        self.submit();
        let (block, data) = &self.held[at];
        assert!(self.stage.gpu.read::<u32>(block).unwrap() == *data, "{block:?}");
    }

    fn step(&mut self) {
        let choice = self.rng.below(20);
        if self.held.is_empty() || (choice < 7 && self.held.len() < 60) {
            return self.alloc();
        }
        match choice {
            0..=11 => self.dispatch(),
            12..=14 => self.copy(),
            15 => self.submit(),
            _ => {
                let at = self.pick();
                if self.rng.one_in(8) {
                    self.verify(at);
                }
                // What was recorded about it may not have been submitted.
                drop(self.held.swap_remove(at));
            }
        }
    }
}

#[test]
fn ten_thousand_steps_keep_every_word() {
    let Some(device) = adapter(|_| {}) else { return };
    for config in [Config::default(), Config { segment_min: 256 * KIB, ..Config::default() }] {
        let stage = Stage::over(device.clone(), config);
        let shader = pipeline(stage.device(), "read_write");
        let rng = Rng::new(7);
        let mut program = Program { stage, shader, rng, held: Vec::new(), open: None, dispatches: 0, copies: 0 };
        for step in 0..10_000 {
            program.step();
            if step % 500 == 0 {
                program.stage.gpu.check().unwrap();
                program.stage.gpu.trim(program.rng.below(1 << 20)).unwrap();
            }
        }
        (0..program.held.len()).for_each(|at| program.verify(at));
        assert!(program.dispatches > 1_500 && program.copies > 1_000, "{} {}", program.dispatches, program.copies);
        program.held.clear();
        let gpu = &program.stage.gpu;
        gpu.purge().unwrap();
        gpu.check().unwrap();
        assert_eq!(gpu.stats().reserved.current, 0);
    }
}
