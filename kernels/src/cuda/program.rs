//! A recorded program: the launches of a step in order, whose shapes were checked.
//!
//! Composites keep their default bodies but where a norm and the product behind it are one command.

use crate::cuda;
use crate::cuda::memory::{CudaKv, CudaTensor, CudaVector, CudaWeight};
use crate::device::Limits;
use crate::dtype::DType;
use crate::error::KernelError;
use crate::ops::{
    Attention, AttnInput, Embed, Epilogue, GatherRows, Head, Linear, Mlp, Moe, Norm, NormRows, Ops,
    QkRopeStore, Sample,
};
use crate::shapes::{Bounds, GroupShape, Rows, Shapes};
use crate::weight_format::WeightFormat;

/// A recorded op.
pub(crate) enum Command {
    Embed(Embed<CudaProgram>),
    Norm(NormRows<CudaProgram>, Rows),
    AddNormed(AddNormed),
    Linear(Linear<CudaProgram>, Rows),
    /// A product of rows that were normed, which nothing else takes.
    NormedLinear(NormRows<CudaProgram>, Linear<CudaProgram>, Rows),
    QkRopeStore(QkRopeStore<CudaProgram>),
    Attention(Attention<CudaProgram>),
    GatherRows(GatherRows<CudaProgram>),
    Moe(Moe<CudaProgram>),
    Sample(Sample<CudaProgram>),
}

impl Command {
    /// The product, of the most rows that steps within `limits` have, if it is one of a plain bf16 weight:
    /// what a library of products may serve.
    pub(crate) fn product(&self, limits: &Limits) -> Option<cuda::linear::Linear> {
        match self {
            Command::Linear(op, rows) | Command::NormedLinear(_, op, rows)
                if op.weight.format() == WeightFormat::Plain(DType::Bf16) =>
            {
                Some(cuda::linear::Linear::recorded(op, rows.max(limits) as u32))
            }
            _ => None,
        }
    }
}

/// `x[t] += norm(projected[t])`.
pub(crate) struct AddNormed {
    pub(crate) projected: CudaTensor,
    pub(crate) norm: Norm<CudaProgram>,
    pub(crate) x: CudaTensor,
}

/// Records ops for a GPU.
pub struct CudaProgram {
    commands: Vec<Command>,
    shapes: Shapes<CudaProgram>,
}

/// A finished program, taken apart for the executor.
pub(crate) struct Recorded {
    pub(crate) commands: Vec<Command>,
    pub(crate) bounds: Bounds,
    pub(crate) groups: Vec<GroupShape>,
    pub(crate) caches: Vec<(usize, CudaKv)>,
}

impl CudaProgram {
    pub(crate) fn new() -> Self {
        CudaProgram { commands: Vec::new(), shapes: Shapes::new() }
    }

    /// A norm whose results are for a product alone.
    fn normed_linear(&mut self, norm: NormRows<Self>, linear: Linear<Self>) {
        self.shapes.norm(&norm);
        let rows = self.shapes.linear(&linear);
        self.commands.push(Command::NormedLinear(norm, linear, rows));
    }

    /// The program, or the first op whose shapes did not fit.
    pub(crate) fn finish(self) -> Result<Recorded, KernelError> {
        let caches = self.shapes.caches().to_vec();
        let (bounds, groups) = self.shapes.finish()?;
        Ok(Recorded { commands: self.commands, bounds, groups, caches })
    }
}

impl Ops for CudaProgram {
    type Tensor = CudaTensor;
    type Vector = CudaVector;
    type Weight = CudaWeight;
    type Experts = CudaWeight;
    type Kv = CudaKv;

    fn embed(&mut self, op: Embed<Self>) {
        self.shapes.embed(&op);
        self.commands.push(Command::Embed(op));
    }

    fn attn_input(&mut self, op: AttnInput<Self>) {
        let norm = NormRows { x: op.x, norm: op.norm, out: op.normed.clone() };
        let AttnInput { normed: x, weight, bias, qkv: out, .. } = op;
        self.normed_linear(norm, Linear { x, weight, bias, out, epilogue: Epilogue::Store });
        self.qk_rope_store(op.store);
    }

    fn mlp(&mut self, op: Mlp<Self>) {
        let norm = NormRows { x: op.x.clone(), norm: op.norm, out: op.normed.clone() };
        let (x, weight, out) = (op.normed, op.gate_up, op.inner.clone());
        let epilogue = Epilogue::Glu(op.activation);
        self.normed_linear(norm, Linear { x, weight, bias: None, out, epilogue });
        self.project_back(op.inner, op.down, None, op.post_norm, op.x);
    }

    fn head(&mut self, op: Head<Self>) {
        self.gather_rows(GatherRows { x: op.x, out: op.gathered.clone() });
        let x = op.gathered;
        let norm = NormRows { x: x.clone(), norm: op.norm, out: x.clone() };
        let epilogue = Epilogue::Scale { scale: op.scale, soft_cap: op.soft_cap };
        let Head { weight, bias, logits: out, .. } = op;
        self.normed_linear(norm, Linear { x, weight, bias, out, epilogue });
    }

    fn attention(&mut self, op: Attention<Self>) {
        self.shapes.attention(&op);
        self.commands.push(Command::Attention(op));
    }

    fn moe(&mut self, op: Moe<Self>) {
        self.norm(NormRows {
            x: op.x.clone(),
            norm: Norm { weight: op.norm.weight.clone(), eps: op.norm.eps },
            out: op.normed.clone(),
        });
        self.shapes.moe(&op);
        self.commands.push(Command::Moe(op));
    }

    fn sample(&mut self, op: Sample<Self>) {
        self.shapes.sample(&op);
        self.commands.push(Command::Sample(op));
    }

    /// Nothing to do: sampling itself stores each slot's token on the device.
    fn advance(&mut self) {}

    fn norm(&mut self, op: NormRows<Self>) {
        let rows = self.shapes.norm(&op);
        self.commands.push(Command::Norm(op, rows));
    }

    fn linear(&mut self, op: Linear<Self>) {
        let rows = self.shapes.linear(&op);
        self.commands.push(Command::Linear(op, rows));
    }

    fn qk_rope_store(&mut self, op: QkRopeStore<Self>) {
        self.shapes.qk_rope_store(&op);
        self.commands.push(Command::QkRopeStore(op));
    }

    fn gather_rows(&mut self, op: GatherRows<Self>) {
        self.shapes.gather_rows(&op);
        self.commands.push(Command::GatherRows(op));
    }

    fn add_normed(&mut self, projected: CudaTensor, norm: Norm<Self>, x: CudaTensor) {
        self.shapes.add_normed(&projected, &norm, &x);
        self.commands.push(Command::AddNormed(AddNormed { projected, norm, x }));
    }
}
