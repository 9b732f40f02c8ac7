//! Shares of products with quantized weights: of packed bytes, codes and scales together.

use super::super::finding::Figure;
use super::super::shapes::{Product, Shape, quantized_rows};
use super::super::{Finding, Run};
use super::{Meter, Work, both_activations};
use crate::cuda::driver::DeviceBuffer;
use crate::cuda::linear::Linear;
use crate::cuda::linear_choice::ProductShape;
use crate::cuda::products::Products;
use crate::cuda::quantized::{code_bytes, scale_bytes};
use crate::dtype::DType;
use crate::error::KernelError;
use crate::ops::{Activation, Epilogue};
use crate::weight_format::Quantization;

const QUANTIZATIONS: [(Quantization, &str); 3] =
    [(Quantization::Q8_0, "q8_0"), (Quantization::Q4_0, "q4_0"), (Quantization::Fp8, "fp8")];

/// Planes are aligned as allocations are.
const ALIGNMENT: usize = 256;

pub(in crate::cuda::suite) fn run(run: &mut Run<'_>) -> Result<bool, KernelError> {
    let bench = Bench::new(run)?;
    for (quantization, name) in QUANTIZATIONS {
        for shape in Shape::all(run.size) {
            for &rows in quantized_rows(run.size) {
                for product in shape.products() {
                    if !(run.keeps_going)() {
                        return Ok(false);
                    }
                    let what = format!("{name} {}", product.what(shape, rows));
                    if let Some(figure) = bench.product(quantization, &product, (rows, what))? {
                        (run.put)(Finding::Figure(figure));
                    }
                }
            }
        }
    }
    Ok(true)
}

struct Bench {
    meter: Meter,
    products: Products,
    x: DeviceBuffer,
    out: DeviceBuffer,
}

impl Bench {
    fn new(run: &mut Run<'_>) -> Result<Self, KernelError> {
        let meter = Meter::new(run)?;
        let products: Vec<_> = Shape::all(run.size).iter().flat_map(Shape::products).collect();
        let widest = products.iter().map(|product| product.n.max(product.k)).max().unwrap_or(0);
        let rows = quantized_rows(run.size).iter().max().copied().unwrap_or(0);
        let shape = |product: &Product, quantization: Quantization| ProductShape {
            rows: rows as u32,
            n: product.n as u32,
            k: product.k as u32,
            format: quantization.into(),
        };
        let shapes = QUANTIZATIONS
            .iter()
            .flat_map(|(quantization, _)| products.iter().map(|it| shape(it, *quantization)))
            .collect();
        let products = Products::new(run.driver, run.target, &shapes)?;
        let (x, out) = both_activations(run, rows * widest)?;
        Ok(Bench { meter, products, x, out })
    }

    /// A product; `None` where the pool has no room for its weight.
    fn product(
        &self,
        quantization: Quantization,
        product: &Product,
        (rows, what): (usize, String),
    ) -> Result<Option<Figure>, KernelError> {
        let &Product { n, k, joins, .. } = product;
        let stride = code_bytes(quantization, k);
        let codes = (n * stride).next_multiple_of(ALIGNMENT);
        let weight_bytes = codes + n * scale_bytes(quantization, k);
        if !self.meter.pool.has(weight_bytes) {
            return Ok(None);
        }
        let epilogue = if joins { Epilogue::Glu(Activation::Silu) } else { Epilogue::Store };
        let seconds = self.meter.watch.time(&mut |call| {
            let weight = self.meter.pool.window(weight_bytes, call);
            let pointers = [self.x.pointer(), weight, self.out.pointer()];
            let plain = Linear::plain(pointers, rows, (n, k), DType::F32);
            let scales = weight.offset(codes);
            let linear = Linear { scales, stride: stride as u32, ..plain }.with_epilogue(epilogue);
            // SAFETY: the pool holds codes and scales, activations the rows; the shape is one of those.
            unsafe { self.products.launch(&linear, quantization) }
        })?;
        let out_cols = if joins { n / 2 } else { n };
        let bytes = weight_bytes + rows * (k + out_cols) * 4;
        let work = Work { bytes, flops: 2.0 * (rows * n * k) as f64 };
        Ok(Some(self.meter.figure(what, seconds, &work)))
    }
}
