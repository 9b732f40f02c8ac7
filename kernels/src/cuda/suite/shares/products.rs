//! Products with the weights of layers and heads, in any format: of bytes, or of operations.

use std::collections::HashSet;

use super::super::finding::Figure;
use super::super::shapes::{Product, Shape};
use super::super::{Finding, Run};
use super::{Bench, Packed, Work};
use crate::cuda::linear::Linear;
use crate::cuda::linear_choice::{ProductShape, Target};
use crate::cuda::products::Products;
use crate::dtype::DType;
use crate::error::KernelError;
use crate::ops::{Activation, Epilogue};
use crate::weight_format::WeightFormat;

/// Products over all shapes.
pub(super) struct Multiplied<'a> {
    /// What figures' names begin with.
    pub(super) prefix: &'a str,
    pub(super) format: WeightFormat,
    pub(super) rows: &'a [usize],
    /// What kernels are chosen for.
    pub(super) target: Target,
}

impl Bench {
    /// Says a figure for each product of each shape. Returns whether there was time for all.
    pub(super) fn products(
        &self,
        run: &mut Run<'_>,
        asked: &Multiplied<'_>,
    ) -> Result<bool, KernelError> {
        let products = Products::new(run.driver, asked.target, &asked.shapes(run))?;
        for shape in Shape::all(run.size) {
            for &rows in asked.rows {
                for product in shape.products() {
                    if !(run.keeps_going)() {
                        return Ok(false);
                    }
                    let what = format!("{}{}", asked.prefix, product.what(shape, rows));
                    let figure = self.product(&products, asked.format, &product, (rows, what))?;
                    if let Some(figure) = figure {
                        (run.put)(Finding::Figure(figure));
                    }
                }
            }
        }
        Ok(true)
    }

    /// A product; `None` where the pool has no room for its weight.
    fn product(
        &self,
        products: &Products,
        format: WeightFormat,
        product: &Product,
        (rows, what): (usize, String),
    ) -> Result<Option<Figure>, KernelError> {
        let &Product { n, k, joins, .. } = product;
        let packed = Packed::new(format, n, k);
        if !self.meter.pool.has(packed.bytes) {
            return Ok(None);
        }
        let epilogue = if joins { Epilogue::Glu(Activation::Silu) } else { Epilogue::Store };
        let seconds = self.meter.watch.time(&mut |call| {
            let weight = self.meter.pool.window(packed.bytes, call);
            let pointers = [self.x.pointer(), weight, self.out.pointer()];
            let plain = Linear::plain(pointers, rows, (n, k), DType::F32);
            let (scales, stride) = (packed.scales(weight), packed.stride as u32);
            let linear = Linear { scales, stride, ..plain }.with_epilogue(epilogue);
            // SAFETY: the pool holds codes and scales, activations the rows of any product; the shape
            // is one of those that there is room for.
            unsafe { products.launch(&linear, format) }
        })?;
        let out_cols = if joins { n / 2 } else { n };
        let bytes = packed.bytes + rows * (k + out_cols) * 4;
        let is_f32 = format == WeightFormat::Plain(DType::F32);
        let work = Work::of(bytes, 2.0 * (rows * n * k) as f64, is_f32);
        Ok(Some(self.meter.figure(what, seconds, &work)))
    }
}

impl Multiplied<'_> {
    /// Products of all shapes, with the most rows of each.
    fn shapes(&self, run: &Run<'_>) -> HashSet<ProductShape> {
        let rows = self.rows.iter().max().copied().unwrap_or(0) as u32;
        let products = Shape::all(run.size).iter().flat_map(Shape::products);
        let shape = |product: Product| ProductShape {
            rows,
            n: product.n as u32,
            k: product.k as u32,
            format: self.format,
        };
        products.map(shape).collect()
    }
}
