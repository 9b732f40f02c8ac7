//! A recorded program: the launches of a step in order, whose shapes were checked.
//!
//! Composites keep their default bodies for now; a fused kernel replaces one by overriding it here.

use crate::cuda;
use crate::cuda::memory::{CudaKv, CudaTensor, CudaVector, CudaWeight};
use crate::device::Limits;
use crate::dtype::DType;
use crate::error::KernelError;
use crate::ops::{
    Attention, Embed, GatherRows, Linear, Moe, Norm, NormRows, Ops, QkRopeStore, Sample,
};
use crate::shapes::{Bounds, GroupShape, Rows, Shapes};
use crate::weight_format::WeightFormat;

/// A recorded op.
pub(crate) enum Command {
    Embed(Embed<CudaProgram>),
    Norm(NormRows<CudaProgram>, Rows),
    AddNormed(AddNormed),
    Linear(Linear<CudaProgram>, Rows),
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
            Command::Linear(op, rows) if op.weight.format() == WeightFormat::Plain(DType::Bf16) => {
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
}

impl CudaProgram {
    pub(crate) fn new() -> Self {
        CudaProgram { commands: Vec::new(), shapes: Shapes::new() }
    }

    /// The program, or the first op whose shapes did not fit.
    pub(crate) fn finish(self) -> Result<Recorded, KernelError> {
        let (bounds, groups) = self.shapes.finish()?;
        Ok(Recorded { commands: self.commands, bounds, groups })
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
