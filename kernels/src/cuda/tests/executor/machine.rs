//! A small model on an emulated device: two KV groups, a window, a mixture of experts.

use std::sync::Arc;

use super::super::noises;
use crate::batch::{Batch, BlockCopy, NO_SLOT, PENDING_TOKEN};
use crate::cuda::driver::Driver;
use crate::cuda::executor::CudaExecutor;
use crate::cuda::linear_choice::Target;
use crate::cuda::memory::{CudaKv, CudaTensor, CudaVector, CudaWeight};
use crate::cuda::program::CudaProgram;
use crate::cuda::{CudaDevice, CudaOptions};
use crate::device::{Device, Executor, KvSpec, Limits, Step};
use crate::dtype::{DType, HostTensor};
use crate::error::KernelError;
use crate::ops::{
    Activation, Attention, AttnInput, AttnOutput, Embed, Head, Heads, Mlp, Moe, Norm, Ops,
    QkRopeStore, Rope, RopeStyle, Routing, Sample, Stacking,
};
use crate::sampling::Purpose;

const HIDDEN: usize = 32;
const HEADS: Heads = Heads { num_q: 4, num_kv: 2, head_dim: 16 };
const INNER: usize = 24;
const EXPERTS: usize = 3;
pub(super) const BLOCK: usize = 64;
/// Of the second layer.
const WINDOW: u32 = 100;
/// Blocks that plans aim at: long rows of few sequences are split.
const MULTIPROCESSORS: u32 = 8;
/// Pieces that plans may cut beyond tiles.
pub(super) const CUTS: u32 = 2 * MULTIPROCESSORS / HEADS.num_kv as u32;

pub(super) const LIMITS: Limits = Limits {
    max_tokens: 24,
    max_seqs: 6,
    max_logits_rows: 24,
    vocab: 61,
    max_model_len: 640,
    max_top: 5,
};
const BLOCKS_EACH: usize = LIMITS.max_model_len / BLOCK;

/// Whether steps are replayed from graphs where they can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Eager,
    Graphs,
}

/// A model that is ready, and its caches.
pub(super) struct Machine {
    pub(super) executor: CudaExecutor,
    driver: Arc<dyn Driver>,
    caches: [CudaKv; 2],
}

/// What steps gave and left.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Outcome {
    /// By step, with every bit of every number.
    pub(super) outputs: Vec<String>,
    /// Keys and values of both groups.
    caches: Vec<Vec<u8>>,
}

impl Machine {
    pub(super) fn new(driver: Arc<dyn Driver>, format: DType, mode: Mode) -> Self {
        let options = CudaOptions { deterministic: true };
        let target = Target { options, ..Target::of(&*driver, MULTIPROCESSORS) };
        let (block_size, arch) = (BLOCK, None);
        let device = CudaDevice { driver: driver.clone(), block_size, target, arch };
        let cache = || {
            let (num_layers, num_blocks) = (1, BLOCKS_EACH * LIMITS.max_seqs);
            let Heads { num_kv: num_kv_heads, head_dim, .. } = HEADS;
            let format = format.into();
            device.kv_cache(KvSpec { num_layers, num_kv_heads, head_dim, format, num_blocks })
        };
        let caches = [cache().unwrap(), cache().unwrap()];
        let program = record(&device, format, &caches);
        let executor = match mode {
            Mode::Graphs => device.executor(program, LIMITS),
            Mode::Eager => CudaExecutor::start(&driver, program, LIMITS, target),
        };
        let machine = Machine { executor: executor.unwrap(), driver, caches };
        machine.fill_caches(format);
        machine
    }

    /// Sequences may begin behind tokens that nobody computed.
    fn fill_caches(&self, format: DType) {
        for (seed, cache) in (50..).zip(&self.caches) {
            for plane in cache.planes(0) {
                let values = noises(seed, plane_len());
                let bytes: Vec<u8> =
                    values.iter().flat_map(|&value| super::super::encode(value, format)).collect();
                // SAFETY: a plane.
                unsafe { self.driver.upload(plane, &bytes) }.unwrap();
            }
        }
    }

    /// Runs `steps` one at a time, the host giving each sampled token back.
    pub(super) fn run_known(&mut self, steps: &[Batch]) -> Result<Outcome, KernelError> {
        let mut outcome = Outcome::default();
        let mut last_tokens = [0; LIMITS.max_seqs];
        for batch in steps {
            let mut batch = batch.clone();
            for seq in 0..batch.num_seqs() {
                let id = &mut batch.ids[batch.query_start[seq] as usize];
                if *id == PENDING_TOKEN {
                    *id = last_tokens[batch.seq_slot[seq] as usize];
                }
            }
            self.executor.launch(Step { batch, ..Step::default() })?;
            let Step { batch, output } = self.executor.finish()?;
            for (row, sampled) in batch.logits.iter().zip(&output.rows) {
                if matches!(row.purpose, Purpose::Sample { .. }) {
                    last_tokens[batch.seq_slot[row.seq as usize] as usize] = sampled.token;
                }
            }
            outcome.outputs.push(format!("{output:?}"));
        }
        self.read_caches(&mut outcome)?;
        Ok(outcome)
    }

    /// Runs `steps` with up to `depth` in flight.
    pub(super) fn run(&mut self, steps: &[Batch], depth: usize) -> Result<Outcome, KernelError> {
        let mut outcome = Outcome::default();
        let mut in_flight = 0;
        for batch in steps {
            if in_flight == depth {
                outcome.outputs.push(format!("{:?}", self.executor.finish()?.output));
                in_flight -= 1;
            }
            self.executor.launch(Step { batch: batch.clone(), ..Step::default() })?;
            in_flight += 1;
        }
        for _ in 0..in_flight {
            outcome.outputs.push(format!("{:?}", self.executor.finish()?.output));
        }
        self.read_caches(&mut outcome)?;
        Ok(outcome)
    }

    /// Makes the copies of `batch` here, and takes them out of it.
    pub(super) fn copy_on_host(&self, batch: &mut Batch) -> Result<(), KernelError> {
        let mut caches = Outcome::default();
        self.read_caches(&mut caches)?;
        let planes = self.caches.iter().flat_map(|cache| cache.planes(0));
        for (at, (plane, bytes)) in planes.zip(&mut caches.caches).enumerate() {
            let block = bytes.len() / (BLOCKS_EACH * LIMITS.max_seqs);
            for copy in &batch.groups[at / 2].copies {
                let from = copy.from as usize * block;
                bytes.copy_within(from..from + block, copy.to as usize * block);
            }
            // SAFETY: a plane.
            unsafe { self.driver.upload(plane, bytes) }?;
        }
        batch.groups.iter_mut().for_each(|group| group.copies.clear());
        Ok(())
    }

    fn read_caches(&self, outcome: &mut Outcome) -> Result<(), KernelError> {
        for plane in self.caches.iter().flat_map(|cache| cache.planes(0)) {
            let mut bytes = vec![0; plane_len() * self.element_bytes()];
            // SAFETY: a plane.
            unsafe { self.driver.download(plane, &mut bytes) }?;
            outcome.caches.push(bytes);
        }
        Ok(())
    }

    fn element_bytes(&self) -> usize {
        use crate::shapes::CacheShape;
        self.caches[0].spec().format.element_bytes()
    }
}

fn plane_len() -> usize {
    BLOCKS_EACH * LIMITS.max_seqs * HEADS.num_kv * BLOCK * HEADS.head_dim
}

/// The block of the sequence in `slot` that holds its tokens from `at` × [`BLOCK`] on, in each group.
fn block_of(group: usize, slot: u32, at: usize) -> u32 {
    let block = (at * LIMITS.max_seqs) as u32 + slot;
    if group == 0 { block } else { (BLOCKS_EACH * LIMITS.max_seqs) as u32 - 1 - block }
}

/// Has the block of a sequence become what one of another is, in both groups: (slot, index) of each.
pub(super) fn push_copy(batch: &mut Batch, from: (u32, usize), to: (u32, usize)) {
    for (index, group) in batch.groups.iter_mut().enumerate() {
        let [from, to] = [from, to].map(|(slot, at)| block_of(index, slot, at));
        group.copies.push(BlockCopy { from, to });
    }
}

/// Appends rows of the sequence in `slot`, from `position` on.
pub(super) fn push_rows(batch: &mut Batch, slot: u32, position: u32, ids: &[u32]) {
    let end = position + ids.len() as u32;
    batch.ids.extend_from_slice(ids);
    batch.positions.extend(position..end);
    batch.query_start.push(batch.ids.len() as u32);
    batch.kv_len.push(end);
    batch.seq_slot.push(slot);
    for (index, group) in batch.groups.iter_mut().enumerate() {
        let seen = if index == 0 { 0 } else { (position + 1).saturating_sub(WINDOW) };
        let first = seen as usize / BLOCK;
        let block = |at: usize| if at >= first { block_of(index, slot, at) } else { NO_SLOT };
        group.push_table((0..(end as usize).div_ceil(BLOCK)).map(block));
        let place = |at: u32| block(at as usize / BLOCK) * BLOCK as u32 + at % BLOCK as u32;
        group.slots.extend((position..end).map(place));
    }
}

fn weight(device: &CudaDevice, seed: u64, (n, k): (usize, usize), format: DType) -> CudaWeight {
    let bytes: Vec<u8> = noises(seed, n * k).iter().flat_map(|value| value.to_le_bytes()).collect();
    let part = HostTensor { bytes: &bytes, dtype: DType::F32, rows: n, cols: k };
    device.pack(&[part], Stacking::Stack, format.into()).unwrap()
}

fn experts(device: &CudaDevice, seed: u64, (n, k): (usize, usize), format: DType) -> CudaWeight {
    let mut weight = device.experts(EXPERTS, (n, k), format.into()).unwrap();
    for expert in 0..EXPERTS {
        let values = noises(seed + expert as u64, n * k);
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let part = HostTensor { bytes: &bytes, dtype: DType::F32, rows: n, cols: k };
        device.pack_expert(&mut weight, expert, &[part], Stacking::Stack).unwrap();
    }
    weight
}

fn norm(device: &CudaDevice, seed: u64) -> Norm<CudaProgram> {
    let weight = noises(seed, HIDDEN).iter().map(|value| 1.0 + value / 4.0).collect::<Vec<_>>();
    Norm { weight: device.vector(&weight).unwrap(), eps: 1e-6 }
}

fn rope_table(device: &CudaDevice) -> CudaVector {
    let half = HEADS.head_dim / 2;
    let angle = |position: usize, i: usize| position as f32 / 100f32.powf(i as f32 / half as f32);
    let table: Vec<f32> = (0..LIMITS.max_model_len)
        .flat_map(|at| {
            let cosines = (0..half).map(move |i| angle(at, i).cos());
            cosines.chain((0..half).map(move |i| angle(at, i).sin()))
        })
        .collect();
    device.vector(&table).unwrap()
}

/// What a program is recorded from.
struct Recorder<'a> {
    device: &'a CudaDevice,
    format: DType,
    program: CudaProgram,
    x: CudaTensor,
    normed: CudaTensor,
    table: CudaVector,
}

fn record(device: &CudaDevice, format: DType, caches: &[CudaKv; 2]) -> CudaProgram {
    let tensor = || device.tensor(LIMITS.max_tokens, HIDDEN).unwrap();
    let (program, table) = (device.program(), rope_table(device));
    let mut recorder = Recorder { device, format, program, x: tensor(), normed: tensor(), table };
    let table = weight(device, 1, (LIMITS.vocab, HIDDEN), format);
    recorder.program.embed(Embed { table, scale: 1.0, x: recorder.x.clone() });
    for (layer, kv) in caches.iter().enumerate() {
        recorder.attention(layer, kv);
        if layer == 0 { recorder.mlp() } else { recorder.moe() }
    }
    recorder.head();
    recorder.program
}

impl Recorder<'_> {
    fn tensor(&self, cols: usize) -> CudaTensor {
        self.device.tensor(LIMITS.max_tokens, cols).unwrap()
    }

    fn weight(&self, seed: u64, n: usize, k: usize) -> CudaWeight {
        weight(self.device, seed, (n, k), self.format)
    }

    fn attention(&mut self, layer: usize, kv: &CudaKv) {
        let seed = 10 * (layer as u64 + 1);
        let (x, group) = (self.x.clone(), layer);
        let qkv_cols = (HEADS.num_q + 2 * HEADS.num_kv) * HEADS.head_dim;
        let attended_cols = HEADS.num_q * HEADS.head_dim;
        let (qkv, attended) = (self.tensor(qkv_cols), self.tensor(attended_cols));
        let (keys, style) = (self.table.clone(), RopeStyle::Halves);
        let queries = keys.clone();
        let store = QkRopeStore {
            qkv: qkv.clone(),
            heads: HEADS,
            q_norm: None,
            k_norm: None,
            rope: Some(Rope { keys, queries, rotary_dim: HEADS.head_dim, style }),
            kv: kv.clone(),
            group,
            layer: 0,
        };
        let input = AttnInput {
            x: x.clone(),
            norm: norm(self.device, seed),
            normed: self.normed.clone(),
            weight: self.weight(seed + 1, qkv_cols, HIDDEN),
            bias: None,
            qkv: qkv.clone(),
            store,
        };
        self.program.attn_input(input);
        self.program.attention(Attention {
            qkv,
            heads: HEADS,
            scale: 0.25,
            window: (layer == 1).then_some(WINDOW),
            soft_cap: None,
            sinks: None,
            kv: kv.clone(),
            group,
            layer: 0,
            out: attended.clone(),
        });
        let weight = self.weight(seed + 2, HIDDEN, attended_cols);
        self.program.attn_output(AttnOutput { attended, weight, bias: None, post_norm: None, x });
    }

    fn mlp(&mut self) {
        let mlp = Mlp {
            x: self.x.clone(),
            norm: norm(self.device, 33),
            normed: self.normed.clone(),
            gate_up: self.weight(34, 2 * INNER, HIDDEN),
            activation: Activation::Silu,
            inner: self.tensor(INNER),
            down: self.weight(35, HIDDEN, INNER),
            post_norm: None,
        };
        self.program.mlp(mlp);
    }

    fn moe(&mut self) {
        let pairs = |cols: usize| self.device.tensor(2 * LIMITS.max_tokens, cols).unwrap();
        let moe = Moe {
            x: self.x.clone(),
            norm: norm(self.device, 43),
            normed: self.normed.clone(),
            router: self.weight(46, EXPERTS, HIDDEN),
            scores: self.tensor(EXPERTS),
            num_chosen: 2,
            routing: Routing::Softmax,
            renormalize: true,
            gate_up: experts(self.device, 100, (2 * INNER, HIDDEN), self.format),
            activation: Activation::Silu,
            inner: pairs(INNER),
            down: experts(self.device, 200, (HIDDEN, INNER), self.format),
            outer: pairs(HIDDEN),
        };
        self.program.moe(moe);
    }

    fn head(&mut self) {
        let tensor = |cols: usize| self.device.tensor(LIMITS.max_logits_rows, cols).unwrap();
        let logits = tensor(LIMITS.vocab);
        let head = Head {
            x: self.x.clone(),
            gathered: tensor(HIDDEN),
            norm: norm(self.device, 2),
            weight: self.weight(3, LIMITS.vocab, HIDDEN),
            bias: None,
            scale: 1.0,
            soft_cap: None,
            logits: logits.clone(),
        };
        self.program.head(head);
        self.program.sample(Sample { logits, vocab: LIMITS.vocab });
        self.program.advance();
    }
}
