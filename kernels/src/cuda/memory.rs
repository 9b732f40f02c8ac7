//! Handles of what lies in device memory: activations, parameters, weights, caches.
//!
//! Made while a model loads; cheap to clone; given back with the last clone.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use crate::cuda::driver::{DeviceBuffer, DevicePointer, Driver, UPLOAD_MAX};
use crate::cuda::linear::stride_of;
use crate::cuda::quantized::{code_bytes, place_row, scale_bytes};
use crate::device::KvSpec;
use crate::dtype::{DType, HostTensor};
use crate::error::KernelError;
use crate::ops::Stacking;
use crate::quantize::quantize_row;
use crate::shapes::{CacheShape, ExpertsShape, MatrixShape, TensorShape, VectorShape};
use crate::stacking::{refused, source_row, stacked_shape};
use crate::weight_format::{Quantization, WeightFormat};

/// f32 activations `[rows, cols]`, row-major.
#[derive(Clone, Debug)]
pub struct CudaTensor(Arc<Tensor>);

#[derive(Debug)]
struct Tensor {
    buffer: DeviceBuffer,
    rows: usize,
    cols: usize,
}

impl CudaTensor {
    /// Zeros.
    pub(crate) fn new(
        driver: &Arc<dyn Driver>,
        rows: usize,
        cols: usize,
    ) -> Result<Self, KernelError> {
        let what = || format!("activations [{rows}, {cols}]");
        let bytes = product(&[rows, cols, 4], what)?;
        let buffer = DeviceBuffer::new(driver, bytes, &what())?;
        Ok(CudaTensor(Arc::new(Tensor { buffer, rows, cols })))
    }

    pub(crate) fn pointer(&self) -> DevicePointer {
        self.0.buffer.pointer()
    }
}

impl TensorShape for CudaTensor {
    fn rows(&self) -> usize {
        self.0.rows
    }

    fn cols(&self) -> usize {
        self.0.cols
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// f32 parameters of one dimension.
#[derive(Clone, Debug)]
pub struct CudaVector(Arc<(DeviceBuffer, usize)>);

impl CudaVector {
    /// A copy of `values`.
    pub(crate) fn new(driver: &Arc<dyn Driver>, values: &[f32]) -> Result<Self, KernelError> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let buffer = DeviceBuffer::new(driver, bytes.len(), "parameters")?;
        buffer.upload(0, &bytes)?;
        Ok(CudaVector(Arc::new((buffer, values.len()))))
    }

    pub(crate) fn pointer(&self) -> DevicePointer {
        self.0.0.pointer()
    }
}

impl VectorShape for CudaVector {
    fn len(&self) -> usize {
        self.0.1
    }
}

/// Matrices of one shape, `[E, N, K]`, row-major; a row is padded with zeros to whole pieces of 16
/// bytes, and a quantized row's scales lie apart ([`crate::cuda::quantized`]). One for each expert, or
/// one alone.
#[derive(Clone, Debug)]
pub struct CudaWeight(Arc<Weight>);

#[derive(Debug)]
struct Weight {
    buffer: DeviceBuffer,
    scales: Option<DeviceBuffer>,
    experts: usize,
    n: usize,
    k: usize,
    format: WeightFormat,
}

impl CudaWeight {
    /// Packs `parts` as one matrix.
    pub(crate) fn pack(
        driver: &Arc<dyn Driver>,
        parts: &[HostTensor<'_>],
        stacking: Stacking,
        format: WeightFormat,
    ) -> Result<Self, KernelError> {
        let mut weight = Self::zeroed(driver, 1, stacked_shape(parts, stacking)?, format)?;
        weight.pack_expert(0, parts, stacking)?;
        Ok(weight)
    }

    /// Zeros.
    pub(crate) fn zeroed(
        driver: &Arc<dyn Driver>,
        experts: usize,
        (n, k): (usize, usize),
        format: WeightFormat,
    ) -> Result<Self, KernelError> {
        let what = || format!("a weight [{experts}, {n}, {k}]");
        let bytes = product(&[experts, n, row_bytes(format, k)], what)?;
        if bytes == 0 {
            return Err(refused("no experts, or empty ones".to_owned()));
        }
        if row_bytes(format, k) > UPLOAD_MAX {
            return Err(refused(format!("rows of {k} columns; {UPLOAD_MAX} bytes are the most")));
        }
        let buffer = DeviceBuffer::new(driver, bytes, &what())?;
        let scales = match format {
            WeightFormat::Plain(_) => None,
            WeightFormat::Quantized(quantization) => {
                let bytes = product(&[experts, n, scale_bytes(quantization, k)], what)?;
                Some(DeviceBuffer::new(driver, bytes, &what())?)
            }
        };
        Ok(CudaWeight(Arc::new(Weight { buffer, scales, experts, n, k, format })))
    }

    /// Packs `parts` as the matrix of `expert`, before anybody else has the weight.
    pub(crate) fn pack_expert(
        &mut self,
        expert: usize,
        parts: &[HostTensor<'_>],
        stacking: Stacking,
    ) -> Result<(), KernelError> {
        let Some(weight) = Arc::get_mut(&mut self.0) else {
            return Err(refused("a weight that is in use already".to_owned()));
        };
        let (n, k) = stacked_shape(parts, stacking)?;
        if (n, k) != (weight.n, weight.k) || expert >= weight.experts {
            return Err(refused(format!("[{n}, {k}] as expert {expert} of {weight:?}")));
        }
        let rows_at_once = UPLOAD_MAX / row_bytes(weight.format, k);
        for first in (0..n).step_by(rows_at_once) {
            let rows = first..(first + rows_at_once).min(n);
            match weight.format {
                WeightFormat::Plain(dtype) => {
                    weight.pack_plain(dtype, (parts, stacking), rows, expert)?;
                }
                WeightFormat::Quantized(quantization) => {
                    weight.pack_quantized(quantization, (parts, stacking), rows, expert)?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn pointer(&self) -> DevicePointer {
        self.0.buffer.pointer()
    }

    /// Of a quantized weight, null otherwise.
    pub(crate) fn scales(&self) -> DevicePointer {
        self.0.scales.as_ref().map_or(DevicePointer::NULL, DeviceBuffer::pointer)
    }

    /// How the elements are stored.
    pub(crate) fn format(&self) -> WeightFormat {
        self.0.format
    }

    /// From a row to the next: in elements, in bytes of a quantized weight's codes.
    pub(crate) fn stride(&self) -> usize {
        match self.0.format {
            WeightFormat::Plain(dtype) => stride_of(self.0.k, dtype),
            WeightFormat::Quantized(quantization) => code_bytes(quantization, self.0.k),
        }
    }
}

impl Weight {
    /// Rows of an expert's stacked parts, put in place on all cores.
    fn pack_plain(
        &self,
        dtype: DType,
        (parts, stacking): (&[HostTensor<'_>], Stacking),
        rows: Range<usize>,
        expert: usize,
    ) -> Result<(), KernelError> {
        use rayon::prelude::*;
        let row_bytes = row_bytes(self.format, self.k);
        let first = (expert * self.n + rows.start) * row_bytes;
        self.buffer.upload_with(first, rows.len() * row_bytes, &mut |place| {
            place.par_chunks_exact_mut(row_bytes).enumerate().for_each(|(index, to)| {
                let (part, row) = source_row(parts, stacking, rows.start + index);
                write_row(parts[part], row, dtype, to);
            });
            Ok(())
        })
    }

    /// Rows of an expert's stacked parts, quantized on all cores.
    fn pack_quantized(
        &self,
        quantization: Quantization,
        (parts, stacking): (&[HostTensor<'_>], Stacking),
        rows: Range<usize>,
        expert: usize,
    ) -> Result<(), KernelError> {
        use rayon::prelude::*;
        let [code_bytes, scale_bytes] =
            [code_bytes(quantization, self.k), scale_bytes(quantization, self.k)];
        let mut scales = vec![0; rows.len() * scale_bytes];
        let first = expert * self.n + rows.start;
        self.buffer.upload_with(first * code_bytes, rows.len() * code_bytes, &mut |codes| {
            let places = codes
                .par_chunks_exact_mut(code_bytes)
                .zip(scales.par_chunks_exact_mut(scale_bytes));
            places.enumerate().try_for_each_init(
                || (vec![0.0; self.k], vec![0; quantization.row_bytes(self.k)]),
                |(values, bytes), (index, (codes, scales))| {
                    let (part, row) = source_row(parts, stacking, rows.start + index);
                    parts[part].read_row(row, values);
                    quantize_row(quantization, values, bytes)
                        .map_err(|refused| refused.in_row(part, row))?;
                    // What pads a row is zeros.
                    codes.fill(0);
                    place_row(quantization, bytes, codes, scales);
                    Ok::<(), KernelError>(())
                },
            )
        })?;
        let Some(to) = &self.scales else {
            return Err(refused("a quantized weight without scales".to_owned()));
        };
        to.upload(first * scale_bytes, &scales)
    }
}

/// Bytes from a row of codes or elements to the next.
fn row_bytes(format: WeightFormat, k: usize) -> usize {
    match format {
        WeightFormat::Plain(dtype) => stride_of(k, dtype) * dtype.bytes(),
        WeightFormat::Quantized(quantization) => code_bytes(quantization, k),
    }
}

impl MatrixShape for CudaWeight {
    fn rows(&self) -> usize {
        self.0.n
    }

    fn cols(&self) -> usize {
        self.0.k
    }
}

impl ExpertsShape for CudaWeight {
    fn num_experts(&self) -> usize {
        self.0.experts
    }
}

/// The cache of one KV group: for each layer a plane of keys, then one of values, each
/// `[num_blocks][num_kv_heads][block_size][head_dim]`. In fp8 a (block, KV head) has its tokens' scales
/// behind its codes ([`crate::kv_format`]).
#[derive(Clone, Debug)]
pub struct CudaKv(Arc<Cache>);

#[derive(Debug)]
struct Cache {
    buffer: DeviceBuffer,
    spec: KvSpec,
    block_size: usize,
}

impl CudaKv {
    /// Zeros.
    pub(crate) fn new(
        driver: &Arc<dyn Driver>,
        spec: KvSpec,
        block_size: usize,
    ) -> Result<Self, KernelError> {
        let what = || format!("a KV cache of {} blocks", spec.num_blocks);
        let sizes = [
            2,
            spec.num_layers,
            spec.num_blocks,
            spec.num_kv_heads,
            spec.format.head_bytes(block_size, spec.head_dim),
        ];
        let buffer = DeviceBuffer::new(driver, product(&sizes, what)?, &what())?;
        Ok(CudaKv(Arc::new(Cache { buffer, spec, block_size })))
    }

    /// The planes of keys and of values of a layer.
    pub(crate) fn planes(&self, layer: usize) -> [DevicePointer; 2] {
        let Cache { buffer, spec, block_size } = &*self.0;
        let plane = spec.bytes_per_block(*block_size) / (2 * spec.num_layers) * spec.num_blocks;
        [2 * layer, 2 * layer + 1].map(|index| buffer.pointer().offset(index * plane))
    }

    /// Tokens that a plane has room for, over all blocks and KV heads.
    pub(crate) fn plane_rows(&self) -> usize {
        let Cache { spec, block_size, .. } = &*self.0;
        spec.num_blocks * spec.num_kv_heads * block_size
    }
}

impl CacheShape for CudaKv {
    fn spec(&self) -> KvSpec {
        self.0.spec
    }

    fn block_size(&self) -> usize {
        self.0.block_size
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Writes a row in `format`: its bytes where the type stays, rounded values otherwise; then zeros.
fn write_row(part: HostTensor<'_>, row: usize, format: DType, to: &mut [u8]) {
    let element = format.bytes();
    let (values, padding) = to.split_at_mut(part.cols * element);
    padding.fill(0);
    if part.dtype == format {
        let bytes = part.cols * element;
        values.copy_from_slice(&part.bytes[row * bytes..(row + 1) * bytes]);
        return;
    }
    for (col, to) in values.chunks_exact_mut(element).enumerate() {
        let value = part.at(row, col);
        match format {
            DType::F32 => to.copy_from_slice(&value.to_le_bytes()),
            DType::Bf16 => to.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            DType::F16 => to.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        }
    }
}

fn product(sizes: &[usize], what: impl Fn() -> String) -> Result<usize, KernelError> {
    let bytes = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    bytes.ok_or_else(|| KernelError::OutOfMemory { what: what(), bytes: usize::MAX })
}
