//! Handles of what lies in device memory: activations, parameters, weights, caches.
//!
//! Made while a model loads; cheap to clone; given back with the last clone.

use std::sync::Arc;

use half::{bf16, f16};

use crate::cuda::driver::{DeviceBuffer, DevicePointer, Driver};
use crate::cuda::linear::stride_of;
use crate::device::KvSpec;
use crate::dtype::{DType, HostTensor};
use crate::error::KernelError;
use crate::ops::Stacking;
use crate::shapes::{CacheShape, ExpertsShape, MatrixShape, TensorShape, VectorShape};
use crate::stacking::{refused, source_row, stacked_shape};
use crate::weight_format::WeightFormat;

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
/// bytes. One for each expert, or one alone.
#[derive(Clone, Debug)]
pub struct CudaWeight(Arc<Weight>);

#[derive(Debug)]
struct Weight {
    buffer: DeviceBuffer,
    experts: usize,
    n: usize,
    k: usize,
    format: DType,
}

/// Bytes of a weight that are converted on the host at a time.
const CHUNK_BYTES: usize = 16 << 20;

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
        let WeightFormat::Plain(format) = format else {
            let reason = format!("weights in {} on a GPU", format.name());
            return Err(KernelError::Unsupported(reason));
        };
        let what = || format!("a weight [{experts}, {n}, {k}]");
        let bytes = product(&[experts, n, stride_of(k, format), format.bytes()], what)?;
        if bytes == 0 {
            return Err(refused("no experts, or empty ones".to_owned()));
        }
        let buffer = DeviceBuffer::new(driver, bytes, &what())?;
        Ok(CudaWeight(Arc::new(Weight { buffer, experts, n, k, format })))
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
        let row_bytes = weight.row_bytes();
        let rows_at_once = (CHUNK_BYTES / row_bytes).max(1);
        let mut chunk = Vec::new();
        for first in (0..n).step_by(rows_at_once) {
            chunk.clear();
            for row in first..(first + rows_at_once).min(n) {
                let (part, part_row) = source_row(parts, stacking, row);
                append_row(parts[part], part_row, weight.format, &mut chunk);
                chunk.resize((row - first + 1) * row_bytes, 0);
            }
            weight.buffer.upload((expert * n + first) * row_bytes, &chunk)?;
        }
        Ok(())
    }

    pub(crate) fn pointer(&self) -> DevicePointer {
        self.0.buffer.pointer()
    }

    /// Type of the elements.
    pub(crate) fn format(&self) -> DType {
        self.0.format
    }

    /// Elements from a row to the next.
    pub(crate) fn stride(&self) -> usize {
        stride_of(self.0.k, self.0.format)
    }
}

impl Weight {
    fn row_bytes(&self) -> usize {
        stride_of(self.k, self.format) * self.format.bytes()
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
/// `[num_blocks][num_kv_heads][block_size][head_dim]`.
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
            block_size,
            spec.head_dim,
            spec.dtype.bytes(),
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

/// A row in `format`: its bytes where the type stays, rounded values otherwise.
fn append_row(part: HostTensor<'_>, row: usize, format: DType, to: &mut Vec<u8>) {
    if part.dtype == format {
        let bytes = part.cols * format.bytes();
        to.extend_from_slice(&part.bytes[row * bytes..(row + 1) * bytes]);
        return;
    }
    for col in 0..part.cols {
        let value = part.at(row, col);
        match format {
            DType::F32 => to.extend_from_slice(&value.to_le_bytes()),
            DType::Bf16 => to.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
            DType::F16 => to.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
        }
    }
}

fn product(sizes: &[usize], what: impl Fn() -> String) -> Result<usize, KernelError> {
    let bytes = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    bytes.ok_or_else(|| KernelError::OutOfMemory { what: what(), bytes: usize::MAX })
}
