//! Replays a recorded program on a GPU: brings the batch over, launches, reads what was sampled.
//!
//! Everything is allocated in [`CudaExecutor::start`]; a step allocates nothing on the device.

use std::sync::Arc;

use crate::admission::Admission;
use crate::batch::Batch;
use crate::cuda::attention::{Attention, AttentionKernels, AttentionPiece};
use crate::cuda::attention_plan::{AttentionPlan, PlanShape};
use crate::cuda::driver::{DeviceBuffer, DevicePointer, Driver};
use crate::cuda::embed::Embed;
use crate::cuda::gather::Gather;
use crate::cuda::inputs::Inputs;
use crate::cuda::linear::Linear;
use crate::cuda::memory::{CudaTensor, CudaWeight};
use crate::cuda::moe::{Combine, Route};
use crate::cuda::norm::{Norm, Put};
use crate::cuda::program::{Command, CudaProgram, Recorded};
use crate::cuda::rope_store::RopeStore;
use crate::cuda::sampler::Sampler;
use crate::cuda::staging::{Place, Staging, StagingPlan};
use crate::device::{Executor, Limits, Step};
use crate::error::KernelError;
use crate::ops::{self, Epilogue, RopeStyle, Routing};
use crate::shapes::{CacheShape, ExpertsShape, MatrixShape, Rows, TensorShape};

/// Replays a program, one step at a time.
pub struct CudaExecutor {
    driver: Arc<dyn Driver>,
    commands: Vec<Command>,
    admission: Admission,
    staging: Staging,
    inputs: Inputs,
    sampler: Sampler,
    attention: Vec<AttentionLayers>,
    routed: Routed,
    launched: Option<Step>,
}

/// Layers that attend alike: one plan a step serves all of them.
struct AttentionLayers {
    group: usize,
    heads: ops::Heads,
    window: Option<u32>,
    kernels: AttentionKernels,
    plan: AttentionPlan,
    pieces: Place<AttentionPiece>,
    partials: DeviceBuffer,
}

/// Choices of experts, of the layer at hand.
struct Routed {
    experts: DeviceBuffer,
    weights: DeviceBuffer,
}

impl CudaExecutor {
    /// Allocates for steps within `limits`. `blocks` run on the device at once.
    pub(crate) fn start(
        driver: &Arc<dyn Driver>,
        program: CudaProgram,
        limits: Limits,
        blocks: u32,
    ) -> Result<Self, KernelError> {
        let Recorded { commands, bounds, groups } = program.finish()?;
        let admission = Admission::new(limits, bounds, &groups)?;
        let mut plan = StagingPlan::default();
        let inputs = Inputs::new(&mut plan, &limits, &groups);
        let sampler = Sampler::new(driver, &mut plan, &limits)?;
        let mut attention: Vec<AttentionLayers> = Vec::new();
        let mut chosen_max = 0;
        for command in &commands {
            match command {
                Command::Attention(op) if !attention.iter().any(|layers| layers.serves(op)) => {
                    attention.push(AttentionLayers::new(driver, op, &limits, blocks, &mut plan)?);
                }
                Command::Moe(op) => chosen_max = op.num_chosen.max(chosen_max),
                _ => {}
            }
        }
        let routed = || DeviceBuffer::new(driver, limits.max_tokens * chosen_max * 4, "routing");
        Ok(CudaExecutor {
            driver: Arc::clone(driver),
            commands,
            admission,
            staging: Staging::new(driver, &plan)?,
            inputs,
            sampler,
            attention,
            routed: Routed { experts: routed()?, weights: routed()? },
            launched: None,
        })
    }

    /// Writes all that the host tells the device for this step.
    fn prepare(&mut self, batch: &Batch) -> Result<(), KernelError> {
        self.inputs.write(&mut self.staging, batch)?;
        for layers in &mut self.attention {
            layers.plan.make(batch, &batch.groups[layers.group]);
            self.staging.write(&layers.pieces, layers.plan.pieces())?;
        }
        self.sampler.prepare(&*self.driver, &mut self.staging, batch)?;
        self.staging.upload()
    }

    /// # Safety
    /// The batch was admitted and prepared.
    unsafe fn run(&self, command: &Command, batch: &Batch) -> Result<(), KernelError> {
        let driver = &*self.driver;
        let tokens = batch.num_tokens() as u32;
        // SAFETY: shapes were checked when the op was recorded, its buffers hold the rows of any
        // batch that is admitted, and numbers of the batch are in range.
        unsafe {
            match command {
                Command::Embed(op) => self.embed(op, tokens),
                Command::Norm(op, rows) => {
                    norm(&op.x, &op.norm, &op.out).launch(driver, Put::Store, of(*rows, batch))
                }
                Command::AddNormed(op) => {
                    norm(&op.projected, &op.norm, &op.x).launch(driver, Put::Add, tokens)
                }
                Command::Linear(op, rows) => {
                    let bias = op.bias.as_ref().map_or(DevicePointer::NULL, |bias| bias.pointer());
                    let linear = linear(&op.x, &op.weight, &op.out, of(*rows, batch));
                    let linear = Linear { bias, ..linear }.with_epilogue(op.epilogue);
                    linear.launch(driver, op.weight.format())
                }
                Command::QkRopeStore(op) => self.qk_rope_store(op, tokens),
                Command::Attention(op) => self.attend(op),
                Command::GatherRows(op) => {
                    let gather = Gather {
                        x: op.x.pointer(),
                        rows: self.inputs.rows(&self.staging).logits_rows,
                        out: op.out.pointer(),
                        cols: op.x.cols() as u32,
                    };
                    gather.launch(driver, batch.logits.len() as u32)
                }
                Command::Moe(op) => self.mix(op, tokens),
                Command::Sample(op) => {
                    let logits = (op.logits.pointer(), op.logits.cols() as u32);
                    self.sampler.launch(driver, &self.staging, logits)
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::run`].
    unsafe fn embed(&self, op: &ops::Embed<CudaProgram>, rows: u32) -> Result<(), KernelError> {
        let inputs = self.inputs.rows(&self.staging);
        let embed = Embed {
            table: op.table.pointer(),
            ids: inputs.ids,
            row_seq: inputs.row_seq,
            seq_slot: inputs.seq_slot,
            last_tokens: self.sampler.last_tokens(),
            x: op.x.pointer(),
            cols: op.x.cols() as u32,
            stride: op.table.stride() as u32,
            scale: op.scale,
        };
        // SAFETY: the caller's promise.
        unsafe { embed.launch(&*self.driver, op.table.format(), rows) }
    }

    /// # Safety
    /// As [`Self::run`].
    unsafe fn qk_rope_store(
        &self,
        op: &ops::QkRopeStore<CudaProgram>,
        rows: u32,
    ) -> Result<(), KernelError> {
        let weight = |norm: &Option<ops::Norm<CudaProgram>>| {
            norm.as_ref().map_or((DevicePointer::NULL, 0.0), |n| (n.weight.pointer(), n.eps))
        };
        let ((q_norm, q_eps), (k_norm, k_eps)) = (weight(&op.q_norm), weight(&op.k_norm));
        let rope = op.rope.as_ref();
        let [keys, values] = op.kv.planes(op.layer);
        let store = RopeStore {
            qkv: op.qkv.pointer(),
            q_norm,
            k_norm,
            table: rope.map_or(DevicePointer::NULL, |rope| rope.table.pointer()),
            positions: self.inputs.rows(&self.staging).positions,
            slots: self.inputs.group(&self.staging, op.group).slots,
            keys,
            values,
            num_q: op.heads.num_q as u32,
            num_kv: op.heads.num_kv as u32,
            head_dim: op.heads.head_dim as u32,
            block_size: op.kv.block_size() as u32,
            rotary_dim: rope.map_or(0, |rope| rope.rotary_dim as u32),
            style: u32::from(rope.is_some_and(|rope| rope.style == RopeStyle::Interleaved)),
            q_eps,
            k_eps,
        };
        // SAFETY: the caller's promise.
        unsafe { store.launch(&*self.driver, op.kv.spec().dtype, rows) }
    }

    /// # Safety
    /// As [`Self::run`].
    unsafe fn attend(&self, op: &ops::Attention<CudaProgram>) -> Result<(), KernelError> {
        let Some(layers) = self.attention.iter().find(|layers| layers.serves(op)) else {
            return Err(KernelError::Fault("attention without a plan".into()));
        };
        let group = self.inputs.group(&self.staging, op.group);
        let [keys, values] = op.kv.planes(op.layer);
        let attention = Attention {
            qkv: op.qkv.pointer(),
            out: op.out.pointer(),
            keys,
            values,
            block_table: group.block_table,
            slots: group.slots,
            pieces: self.staging.pointer(&layers.pieces),
            sinks: op.sinks.as_ref().map_or(DevicePointer::NULL, |sinks| sinks.pointer()),
            partials: layers.partials.pointer(),
            num_q: op.heads.num_q as u32,
            num_kv: op.heads.num_kv as u32,
            head_dim: op.heads.head_dim as u32,
            block_bits: op.kv.block_size().ilog2(),
            window: op.window.unwrap_or(u32::MAX),
            scale: op.scale,
            soft_cap: op.soft_cap.unwrap_or(0.0),
        };
        // SAFETY: the caller's promise; the plan is this step's.
        unsafe { attention.launch(&*self.driver, &layers.kernels, &layers.plan) }
    }

    /// Behind the norm, which was recorded by itself.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn mix(&self, op: &ops::Moe<CudaProgram>, rows: u32) -> Result<(), KernelError> {
        let driver = &*self.driver;
        let (experts, weights) = (self.routed.experts.pointer(), self.routed.weights.pointer());
        let num_chosen = op.num_chosen as u32;
        let route = Route {
            scores: op.scores.pointer(),
            experts,
            weights,
            num_experts: op.gate_up.num_experts() as u32,
            num_chosen,
            routing: u32::from(op.routing == Routing::Sigmoid),
            renormalize: u32::from(op.renormalize),
        };
        let pairs = rows * num_chosen;
        let gate_up = Linear {
            experts,
            rows_per_x: num_chosen,
            ..linear(&op.normed, &op.gate_up, &op.inner, pairs)
        };
        let down = Linear { experts, ..linear(&op.inner, &op.down, &op.outer, pairs) };
        let combine = Combine {
            outer: op.outer.pointer(),
            weights,
            x: op.x.pointer(),
            cols: op.x.cols() as u32,
            num_chosen,
        };
        // SAFETY: the caller's promise; choices were planned for all rows.
        unsafe {
            linear(&op.normed, &op.router, &op.scores, rows).launch(driver, op.router.format())?;
            route.launch(driver, rows)?;
            let glu = Epilogue::Glu(op.activation);
            gate_up.with_epilogue(glu).launch(driver, op.gate_up.format())?;
            down.launch(driver, op.down.format())?;
            combine.launch(driver, rows)
        }
    }
}

impl Executor for CudaExecutor {
    fn launch(&mut self, step: Step) -> Result<(), KernelError> {
        if self.launched.is_some() {
            return Err(KernelError::Fault("a step was launched before the last finished".into()));
        }
        self.admission.check(&step.batch)?;
        self.prepare(&step.batch)?;
        for command in &self.commands {
            // SAFETY: admitted and prepared.
            unsafe { self.run(command, &step.batch) }?;
        }
        self.launched = Some(step);
        Ok(())
    }

    fn finish(&mut self) -> Result<Step, KernelError> {
        let Some(mut step) = self.launched.take() else {
            return Err(KernelError::Fault("no step was launched".into()));
        };
        self.sampler.collect(&mut step.output)?;
        Ok(step)
    }
}

impl AttentionLayers {
    fn new(
        driver: &Arc<dyn Driver>,
        op: &ops::Attention<CudaProgram>,
        limits: &Limits,
        blocks: u32,
        plan: &mut StagingPlan,
    ) -> Result<Self, KernelError> {
        let heads = op.heads;
        let kernels = AttentionKernels::new(heads, op.kv.spec().dtype, SHARED_BYTES_MAX)?;
        let shape = PlanShape {
            group: (heads.num_q / heads.num_kv) as u32,
            num_kv: heads.num_kv as u32,
            window: op.window,
            rows: kernels.tile_rows(),
            blocks,
        };
        let room = shape.room(limits);
        let floats = room.partial_floats(&shape, heads.head_dim);
        Ok(AttentionLayers {
            group: op.group,
            heads,
            window: op.window,
            kernels,
            plan: AttentionPlan::with_room(shape, limits),
            pieces: plan.place(room.pieces),
            partials: DeviceBuffer::new(driver, floats * 4, "attention's partial results")?,
        })
    }

    fn serves(&self, op: &ops::Attention<CudaProgram>) -> bool {
        (self.group, self.heads, self.window) == (op.group, op.heads, op.window)
    }
}

/// Shared memory that a block may ask for, on Hopper.
const SHARED_BYTES_MAX: usize = 232_448;

fn of(rows: Rows, batch: &Batch) -> u32 {
    rows.of(batch) as u32
}

fn norm(x: &CudaTensor, norm: &ops::Norm<CudaProgram>, out: &CudaTensor) -> Norm {
    Norm {
        x: x.pointer(),
        weight: norm.weight.pointer(),
        out: out.pointer(),
        cols: x.cols() as u32,
        eps: norm.eps,
    }
}

/// A product without bias, whose results are stored.
fn linear(x: &CudaTensor, weight: &CudaWeight, out: &CudaTensor, rows: u32) -> Linear {
    let pointers = [x.pointer(), weight.pointer(), out.pointer()];
    Linear::plain(pointers, rows as usize, (weight.rows(), weight.cols()), weight.format())
}
