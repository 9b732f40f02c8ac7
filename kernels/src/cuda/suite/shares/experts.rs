//! Shares of a layer with experts: routing, the order by expert, its two products, their sum.
//!
//! Experts are drawn evenly, so that a step meets as many as it would; read are those that it meets.

use std::collections::HashSet;

use super::super::finding::Figure;
use super::super::pool::Pool;
use super::super::shapes::{ExpertShape, expert_rows, experts};
use super::super::{Finding, Run};
use super::{Meter, Work, both_activations, words};
use crate::cuda::driver::DeviceBuffer;
use crate::cuda::expert_products::{ExpertProducts, Ways};
use crate::cuda::linear::{Linear, stride_of};
use crate::cuda::moe::{Combine, Route};
use crate::cuda::tests::dice::Dice;
use crate::dtype::DType;
use crate::error::KernelError;
use crate::ops::{Activation, Epilogue};

pub(in crate::cuda::suite) fn run(run: &mut Run<'_>) -> Result<bool, KernelError> {
    let layer = Layer::new(run)?;
    for &rows in expert_rows(run.size) {
        if !(run.keeps_going)() {
            return Ok(false);
        }
        for figure in layer.figures(run, rows)? {
            (run.put)(Finding::Figure(figure));
        }
    }
    Ok(true)
}

/// A layer and what runs it.
struct Layer {
    meter: Meter,
    shape: ExpertShape,
    products: ExpertProducts,
    x: Pool,
    out: DeviceBuffer,
    /// What routing gives, which no product reads: those have the drawn experts.
    routed: DeviceBuffer,
    weights: DeviceBuffer,
}

/// The experts that rows of a step chose.
struct Chosen {
    on_device: DeviceBuffer,
    rows: usize,
    /// How many different ones.
    met: usize,
}

impl Layer {
    fn new(run: &mut Run<'_>) -> Result<Self, KernelError> {
        let shape = experts(run.size);
        let meter = Meter::new(run)?;
        let rows = expert_rows(run.size).iter().max().copied().unwrap_or(0);
        let pairs = rows * shape.num_chosen;
        let widest = shape.hidden.max(shape.intermediate).max(shape.num_experts);
        let (x, out) = both_activations(run, pairs * widest)?;
        let room = || DeviceBuffer::new(run.driver, pairs * 4, "routing");
        Ok(Layer {
            products: ExpertProducts::new(run.driver, run.target, (pairs, shape.num_experts), 0)?,
            routed: room()?,
            weights: room()?,
            meter,
            shape,
            x,
            out,
        })
    }

    fn figures(&self, run: &Run<'_>, rows: usize) -> Result<Vec<Figure>, KernelError> {
        let ExpertShape { hidden, intermediate, .. } = self.shape;
        let chosen = self.choose(run, rows)?;
        let glu = Epilogue::Glu(Activation::Silu);
        let mut figures = vec![self.route(run, rows)?];
        figures.extend(self.order(&chosen)?);
        figures.extend(self.product("gate and up", (2 * intermediate, hidden), glu, &chosen)?);
        figures.extend(self.product("down", (hidden, intermediate), Epilogue::Store, &chosen)?);
        figures.push(self.combine(run, rows)?);
        Ok(figures)
    }

    /// Different experts for each row.
    fn choose(&self, run: &Run<'_>, rows: usize) -> Result<Chosen, KernelError> {
        let ExpertShape { num_experts, num_chosen, .. } = self.shape;
        let mut dice = Dice(run.seed);
        let mut all = Vec::new();
        for _ in 0..rows {
            let mut left: Vec<u32> = (0..num_experts as u32).collect();
            let mut own: Vec<u32> =
                (0..num_chosen).map(|_| left.swap_remove(dice.below(left.len()))).collect();
            own.sort_unstable();
            all.extend(own);
        }
        let met = all.iter().collect::<HashSet<_>>().len();
        Ok(Chosen { on_device: words(run, all)?, rows, met })
    }

    fn what(&self, name: &str, rows: usize) -> String {
        format!("{} {name}, {rows} rows", self.shape.name)
    }

    fn route(&self, run: &Run<'_>, rows: usize) -> Result<Figure, KernelError> {
        let ExpertShape { num_experts, num_chosen, .. } = self.shape;
        let seconds = self.meter.watch.time(&mut |_| {
            let route = Route {
                scores: self.x.pointer(),
                experts: self.routed.pointer(),
                weights: self.weights.pointer(),
                num_experts: num_experts as u32,
                num_chosen: num_chosen as u32,
                routing: 0,
                renormalize: 1,
            };
            // SAFETY: activations hold the scores, and there is room for each row's choices.
            unsafe { route.launch(&**run.driver, rows as u32) }
        })?;
        let work = Work::moving(rows * (num_experts + 2 * num_chosen) * 4);
        Ok(self.meter.figure(self.what("routing", rows), seconds, &work))
    }

    /// Puts rows in the order of their experts; nothing where that is not done.
    fn order(&self, chosen: &Chosen) -> Result<Option<Figure>, KernelError> {
        if self.prepare(chosen)?.is_none() {
            return Ok(None);
        }
        let seconds = self.meter.watch.time(&mut |_| self.prepare(chosen).map(drop))?;
        let work = Work::moving(2 * chosen.rows * self.shape.num_chosen * 4);
        let what = self.what("order by expert", chosen.rows);
        Ok(Some(self.meter.figure(what, seconds, &work)))
    }

    fn prepare(&self, chosen: &Chosen) -> Result<Ways, KernelError> {
        let ExpertShape { num_experts, num_chosen, hidden, intermediate, .. } = self.shape;
        let pairs = (chosen.rows * num_chosen) as u32;
        let experts = chosen.on_device.pointer();
        let weights = (DType::Bf16.into(), hidden.max(intermediate) as u32);
        // SAFETY: experts are below their number, and there is room for all pairs.
        unsafe { self.products.prepare(experts, pairs, num_experts as u32, weights) }
    }

    /// A product of each row with its experts, in bf16; nothing where the pool has no room for the
    /// weights of all.
    fn product(
        &self,
        name: &str,
        (n, k): (usize, usize),
        epilogue: Epilogue,
        chosen: &Chosen,
    ) -> Result<Option<Figure>, KernelError> {
        let ExpertShape { num_experts, num_chosen, .. } = self.shape;
        let expert_bytes = n * stride_of(k, DType::Bf16) * 2;
        if !self.meter.pool.has(num_experts * expert_bytes) {
            return Ok(None);
        }
        let pairs = chosen.rows * num_chosen;
        let ways = self.prepare(chosen)?;
        // Rows are one for all their experts, but behind the first product, which gave each its own.
        let joins = matches!(epilogue, Epilogue::Glu(_));
        let rows_per_x = if joins { num_chosen as u32 } else { 1 };
        let seconds = self.meter.watch.time(&mut |call| {
            let weight = self.meter.pool.window(num_experts * expert_bytes, call);
            let pointers = [self.x.pointer(), weight, self.out.pointer()];
            let experts = chosen.on_device.pointer();
            let plain = Linear::plain(pointers, pairs, (n, k), DType::Bf16);
            let linear = Linear { experts, rows_per_x, ..plain }.with_epilogue(epilogue);
            // SAFETY: the pool holds all experts, activations the rows; the ways are for these.
            unsafe { self.products.launch(&linear, &ways, DType::Bf16.into()) }
        })?;
        let (rows_in, columns_out) = if joins { (chosen.rows, n / 2) } else { (pairs, n) };
        let bytes = chosen.met * expert_bytes + (rows_in * k + pairs * columns_out) * 4;
        let work = Work::of(bytes, 2.0 * (pairs * n * k) as f64, false);
        let name = format!("{name} of {} experts", chosen.met);
        Ok(Some(self.meter.figure(self.what(&name, chosen.rows), seconds, &work)))
    }

    fn combine(&self, run: &Run<'_>, rows: usize) -> Result<Figure, KernelError> {
        let ExpertShape { hidden, num_chosen, .. } = self.shape;
        let seconds = self.meter.watch.time(&mut |_| {
            let combine = Combine {
                outer: self.x.pointer(),
                weights: self.weights.pointer(),
                x: self.out.pointer(),
                cols: hidden as u32,
                num_chosen: num_chosen as u32,
            };
            // SAFETY: activations hold the rows of all pairs.
            unsafe { combine.launch(&**run.driver, rows as u32) }
        })?;
        let work = Work::moving(rows * (num_chosen + 2) * hidden * 4);
        Ok(self.meter.figure(self.what("sum of experts", rows), seconds, &work))
    }
}
