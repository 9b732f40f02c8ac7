//! Replays a recorded program on a GPU: brings the batch over, launches, reads what was sampled.
//!
//! Everything is allocated in [`CudaExecutor::start`]; a step allocates nothing. `launch` only asks:
//! copies, a graph or launches, copies back, a mark. `finish` waits for its own step's mark, so the
//! next step, which takes its tokens on the device, is on its way meanwhile.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::admission::Admission;
use crate::batch::Batch;
use crate::cuda::attention::Attention;
use crate::cuda::attention_layers::AttentionLayers;
use crate::cuda::driver::{DeviceBuffer, DevicePointer, Driver};
use crate::cuda::embed::Embed;
use crate::cuda::expert_products::{ExpertProducts, Ways};
use crate::cuda::gather::Gather;
use crate::cuda::graphs::{Graphs, StepShape, buckets};
use crate::cuda::inputs::Inputs;
use crate::cuda::kv_copy::BlockCopies;
use crate::cuda::linear::Linear;
use crate::cuda::linear_choice::{ProductShape, Target, is_in_bytes};
use crate::cuda::memory::{CudaTensor, CudaWeight};
use crate::cuda::moe::{Combine, Route};
use crate::cuda::norm::{Norm, Put};
use crate::cuda::products::Products;
use crate::cuda::program::{Command, CudaProgram, Recorded};
use crate::cuda::quantize_rows::byte_rows_bytes;
use crate::cuda::rope_store::RopeStore;
use crate::cuda::sampler::Sampler;
use crate::cuda::staging::{SETS, Staging, StagingPlan};
use crate::device::{Executor, Found, Limits, Step};
use crate::error::KernelError;
use crate::ops::{self, Epilogue, RopeStyle, Routing};
use crate::shapes::{CacheShape, ExpertsShape, MatrixShape, TensorShape};

/// Replays a program, two steps at a time.
pub struct CudaExecutor {
    driver: Arc<dyn Driver>,
    limits: Limits,
    // Before what its launches use.
    graphs: Graphs,
    commands: Vec<Command>,
    admission: Admission,
    staging: Staging,
    inputs: Inputs,
    copies: BlockCopies,
    sampler: Sampler,
    attention: Vec<AttentionLayers>,
    products: Products,
    routed: Routed,
    /// Oldest first.
    launched: VecDeque<Launched>,
}

/// A step in flight.
struct Launched {
    step: Step,
    /// Of staging, marks and results.
    set: usize,
}

/// Choices of experts, of the layer at hand.
struct Routed {
    experts: DeviceBuffer,
    weights: DeviceBuffer,
    products: ExpertProducts,
}

impl CudaExecutor {
    /// Allocates for steps within `limits`, whose kernels are chosen for `target`.
    pub(crate) fn start(
        driver: &Arc<dyn Driver>,
        program: CudaProgram,
        limits: Limits,
        target: Target,
    ) -> Result<Self, KernelError> {
        let Recorded { commands, bounds, groups, caches } = program.finish()?;
        let admission = Admission::new(limits, bounds, &groups)?;
        let mut plan = StagingPlan::default();
        let inputs = Inputs::new(&mut plan, &limits, &groups);
        let sampler = Sampler::new(driver, &mut plan, &limits)?;
        let mut attention: Vec<AttentionLayers> = Vec::new();
        let (mut chosen_max, mut experts_max, mut byte_rows) = (0, 0, 0);
        let mut products = HashSet::new();
        for command in &commands {
            match command {
                Command::Linear(op, rows) | Command::NormedLinear(_, op, rows) => {
                    products.insert(ProductShape::of(&op.weight, rows.max(&limits)));
                }
                Command::Attention(op) if !attention.iter().any(|layers| layers.serves(op)) => {
                    attention.push(AttentionLayers::new(driver, op, &limits, target, &mut plan)?);
                }
                Command::Moe(op) => {
                    chosen_max = op.num_chosen.max(chosen_max);
                    experts_max = op.gate_up.num_experts().max(experts_max);
                    products.insert(ProductShape::of(&op.router, limits.max_tokens));
                    byte_rows = byte_rows.max(expert_byte_rows(op, limits.max_tokens));
                }
                _ => {}
            }
        }
        let pairs = limits.max_tokens * chosen_max;
        let routed = || DeviceBuffer::new(driver, pairs * 4, "routing");
        Ok(CudaExecutor {
            driver: Arc::clone(driver),
            limits,
            graphs: Graphs::new(driver),
            commands,
            admission,
            staging: Staging::new(driver, &plan)?,
            inputs,
            copies: BlockCopies(caches),
            sampler,
            attention,
            products: Products::new(driver, target, &products)?,
            routed: Routed {
                experts: routed()?,
                weights: routed()?,
                products: ExpertProducts::new(driver, target, (pairs, experts_max), byte_rows)?,
            },
            launched: VecDeque::with_capacity(SETS),
        })
    }

    /// Finds out which products go to the library of the device's maker. Before the graphs, which record
    /// what was found.
    pub(crate) fn find_ways(&mut self) -> Result<(), KernelError> {
        let products = self.commands.iter().filter_map(|command| command.product(&self.limits));
        let products: Vec<Linear> = products.collect();
        let captured = buckets(&self.limits).into_iter().map(|rows| rows as u32);
        let captured: Vec<u32> = captured.collect();
        // SAFETY: shapes were checked when ops were recorded, and buffers hold the most rows; nothing
        // runs, and nobody has put anything into activations yet.
        unsafe { self.products.find_ways(&products, &captured) }
    }

    /// Records the graphs of all buckets, the largest first. Before the first step.
    pub(crate) fn capture(&mut self) -> Result<(), KernelError> {
        for bucket in buckets(&self.limits).into_iter().rev() {
            for layers in &mut self.attention {
                layers.plan.clear();
                layers.plan.pad(bucket);
            }
            self.driver.begin_capture()?;
            // SAFETY: nothing runs; a replay comes behind a step's own arrays.
            let recorded = unsafe { self.run_all(StepShape::padded(bucket)) };
            let graph = self.driver.end_capture();
            recorded?;
            self.graphs.insert(bucket, graph?);
        }
        Ok(())
    }

    /// Writes and sends all that the host tells the device for this step.
    fn prepare(&mut self, batch: &Batch, shape: StepShape) -> Result<(), KernelError> {
        self.inputs.write(&mut self.staging, batch, shape)?;
        for layers in &mut self.attention {
            layers.plan.make(batch, &batch.groups[layers.group]);
            if shape.is_padded {
                layers.plan.pad(shape.tokens);
            }
            self.staging.write(&layers.pieces, layers.plan.pieces())?;
        }
        let next = self.sampler.write(&mut self.staging, batch, shape)?;
        self.staging.send()?;
        self.sampler.take_slots(&mut self.staging, &batch.slot_inits, next)
    }

    /// # Safety
    /// When this runs, the arrays of a step of this shape have arrived.
    unsafe fn run_all(&self, shape: StepShape) -> Result<(), KernelError> {
        // SAFETY: the caller's promise.
        self.commands.iter().try_for_each(|command| unsafe { self.run(command, shape) })
    }

    /// Log-probabilities, for the few steps that want any.
    ///
    /// # Safety
    /// As [`Self::run_all`], behind it.
    unsafe fn describe(&self) -> Result<(), KernelError> {
        for command in &self.commands {
            if let Command::Sample(op) = command {
                let logits = (op.logits.pointer(), op.logits.cols() as u32);
                // SAFETY: the caller's promise.
                unsafe { self.sampler.describe(&self.staging, logits) }?;
            }
        }
        Ok(())
    }

    /// # Safety
    /// As [`Self::run_all`].
    unsafe fn run(&self, command: &Command, shape: StepShape) -> Result<(), KernelError> {
        let driver = &*self.driver;
        let tokens = shape.tokens as u32;
        // SAFETY: shapes were checked when the op was recorded, its buffers hold the rows of any
        // batch that is admitted, and numbers of the batch are in range.
        unsafe {
            match command {
                Command::Embed(op) => self.embed(op, tokens),
                Command::Norm(op, rows) => {
                    norm(&op.x, &op.norm, &op.out).launch(driver, Put::Store, shape.rows(*rows))
                }
                Command::AddNormed(op) => {
                    norm(&op.projected, &op.norm, &op.x).launch(driver, Put::Add, tokens)
                }
                Command::Linear(op, rows) => {
                    self.multiply(&Linear::recorded(op, shape.rows(*rows)), &op.weight, None)
                }
                Command::NormedLinear(op, product, rows) => {
                    let linear = Linear::recorded(product, shape.rows(*rows));
                    let norm = norm(&op.x, &op.norm, &op.out);
                    self.products.launch_normed(&norm, &linear, product.weight.format())
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
                    gather.launch(driver, shape.logits as u32)
                }
                Command::Moe(op) => self.mix(op, tokens),
                Command::Sample(op) => {
                    let logits = (op.logits.pointer(), op.logits.cols() as u32);
                    self.sampler.launch(&self.staging, logits, shape)
                }
            }
        }
    }

    /// A product with one matrix, or in these ways with those of experts.
    ///
    /// # Safety
    /// As [`Self::run`]; the linear names this weight.
    unsafe fn multiply(
        &self,
        linear: &Linear,
        weight: &CudaWeight,
        ways: Option<&Ways>,
    ) -> Result<(), KernelError> {
        // SAFETY: the caller's promise.
        unsafe {
            match ways {
                None => self.products.launch(linear, weight.format()),
                Some(ways) => self.routed.products.launch(linear, ways, weight.format()),
            }
        }
    }

    /// # Safety
    /// As [`Self::run`].
    unsafe fn embed(&self, op: &ops::Embed<CudaProgram>, rows: u32) -> Result<(), KernelError> {
        let inputs = self.inputs.rows(&self.staging);
        let embed = Embed {
            table: op.table.pointer(),
            scales: op.table.scales(),
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
            q_table: rope.map_or(DevicePointer::NULL, |rope| rope.queries.pointer()),
            k_table: rope.map_or(DevicePointer::NULL, |rope| rope.keys.pointer()),
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
        unsafe { store.launch(&*self.driver, op.kv.spec().format, rows) }
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
            arrivals: layers.arrivals.pointer(),
            num_q: op.heads.num_q as u32,
            num_kv: op.heads.num_kv as u32,
            group: layers.kernels.group(),
            head_dim: op.heads.head_dim as u32,
            block_bits: op.kv.block_size().ilog2(),
            window: op.window.unwrap_or(u32::MAX),
            scale: op.scale,
            soft_cap: op.soft_cap.unwrap_or(0.0),
        };
        // SAFETY: the caller's promise; the plan is this step's.
        unsafe {
            attention.launch(&*self.driver, &layers.kernels, &layers.plan, op.kv.plane_rows())
        }
    }

    /// Behind the norm, which was recorded by itself.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn mix(&self, op: &ops::Moe<CudaProgram>, rows: u32) -> Result<(), KernelError> {
        let driver = &*self.driver;
        let (experts, weights) = (self.routed.experts.pointer(), self.routed.weights.pointer());
        let num_chosen = op.num_chosen as u32;
        let num_experts = op.gate_up.num_experts() as u32;
        let route = Route {
            scores: op.scores.pointer(),
            experts,
            weights,
            num_experts,
            num_chosen,
            routing: u32::from(op.routing == Routing::Sigmoid),
            renormalize: u32::from(op.renormalize),
        };
        let pairs = rows * num_chosen;
        let gate_up = Linear {
            experts,
            rows_per_x: num_chosen,
            ..Linear::with([&op.normed, &op.inner], &op.gate_up, pairs)
        };
        let down = Linear { experts, ..Linear::with([&op.inner, &op.outer], &op.down, pairs) };
        let combine = Combine {
            outer: op.outer.pointer(),
            weights,
            x: op.x.pointer(),
            cols: op.x.cols() as u32,
            num_chosen,
        };
        let products = &self.routed.products;
        // SAFETY: the caller's promise; choices were planned for all rows.
        unsafe {
            let scores = Linear::with([&op.normed, &op.scores], &op.router, rows);
            self.multiply(&scores, &op.router, None)?;
            route.launch(driver, rows)?;
            let k = op.gate_up.cols().max(op.down.cols()) as u32;
            let weights = (op.gate_up.format(), k);
            let ways = products.prepare(experts, pairs, num_experts, weights)?;
            let glu = Epilogue::Glu(op.activation);
            self.multiply(&gate_up.with_epilogue(glu), &op.gate_up, Some(&ways))?;
            self.multiply(&down, &op.down, Some(&ways))?;
            combine.launch(driver, rows)
        }
    }
}

impl Executor for CudaExecutor {
    fn depth(&self) -> usize {
        SETS
    }

    /// Products and attention of few rows and of many may be different kernels, unless asked to be one.
    /// Attention then is one arithmetic for both: it cuts keys at multiples of its unit.
    fn decode_equals_prefill(&self) -> bool {
        self.products.are_deterministic()
    }

    fn found(&self) -> Found {
        self.products.found()
    }

    fn launch(&mut self, step: Step) -> Result<(), KernelError> {
        if self.launched.len() == SETS {
            return Err(KernelError::Fault(format!("{SETS} steps are in flight already")));
        }
        self.admission.check(&step.batch)?;
        let graph = self.graphs.fitting(&step.batch);
        let shape = match graph {
            Some((bucket, _)) => StepShape::padded(bucket),
            None => StepShape::of(&step.batch),
        };
        let set = self.staging.begin()?;
        self.prepare(&step.batch, shape)?;
        // SAFETY: the batch was admitted, and its arrays are on their way; buffers that the graph was
        // recorded with are those of `self`; the set's last step was finished, so nobody reads it.
        unsafe {
            self.copies.launch(&*self.driver, &self.inputs, &self.staging, &step.batch)?;
            match graph {
                Some((_, graph)) => self.driver.replay(graph),
                None => self.run_all(shape),
            }?;
            self.describe()?;
            self.sampler.fetch(set, step.batch.logits.len())?;
        }
        self.driver.mark(self.staging.mark(set))?;
        self.launched.push_back(Launched { step, set });
        Ok(())
    }

    fn finish(&mut self) -> Result<Step, KernelError> {
        let Some(Launched { mut step, set }) = self.launched.pop_front() else {
            return Err(KernelError::Fault("no step was launched".into()));
        };
        self.driver.wait(self.staging.mark(set))?;
        self.staging.free(set);
        // SAFETY: the mark behind the step was waited for.
        unsafe { self.sampler.collect(set, step.batch.logits.len(), &mut step.output) };
        Ok(step)
    }
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

/// Bytes that rows take where experts' weights are in blocks: of x, or of what is between both products.
fn expert_byte_rows(op: &ops::Moe<CudaProgram>, rows: usize) -> usize {
    let taken = |weight: &CudaWeight, rows| {
        if is_in_bytes(weight.format()) { byte_rows_bytes(rows, weight.cols()) } else { 0 }
    };
    taken(&op.gate_up, rows).max(taken(&op.down, rows * op.num_chosen))
}
