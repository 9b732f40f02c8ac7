//! Tensor maps by the driver: how a tensor is told to the copy engine of compute capability 9.0.

use std::ffi::c_int;

use super::api::{Api, tensor};
use crate::cuda::tensor_map::{TensorMap, TensorMapSpec};
use crate::dtype::DType;
use crate::error::KernelError;

/// Axes at most.
const RANK_MAX: usize = 3;

/// The driver's encoding of `spec`. Needs no context.
pub(crate) fn encode(api: &Api, spec: &TensorMapSpec<'_>) -> Result<TensorMap, KernelError> {
    spec.check()?;
    let (mut sizes, mut strides) = ([0u64; RANK_MAX], [0u64; RANK_MAX]);
    let (mut taken, apart) = ([0u32; RANK_MAX], [1u32; RANK_MAX]);
    for (i, axis) in spec.axes.iter().take(RANK_MAX).enumerate() {
        sizes[i] = axis.size as u64;
        strides[i] = axis.stride as u64;
        taken[i] = axis.taken as u32;
    }
    let format = match spec.format {
        DType::F32 => tensor::F32,
        DType::F16 => tensor::F16,
        DType::Bf16 => tensor::BF16,
    };
    let mut map = TensorMap([0; 128]);
    // SAFETY: writes a map, aligned as its type is; reads as many numbers of each list as there are
    // axes, which the check bounds, of strides one less: the first is that of an element.
    let code: c_int = unsafe {
        (api.tensor_map)(
            (&raw mut map).cast(),
            format,
            spec.axes.len() as u32,
            spec.address.0,
            sizes.as_ptr(),
            strides.as_ptr().add(1),
            taken.as_ptr(),
            apart.as_ptr(),
            tensor::NO_INTERLEAVE,
            if spec.swizzled { tensor::SWIZZLE_128 } else { tensor::NO_SWIZZLE },
            tensor::PROMOTE_256,
            tensor::FILL_ZEROS,
        )
    };
    api.check("cuTensorMapEncodeTiled", code)?;
    Ok(map)
}
