//! Tensor maps by the driver: how a tensor is told to the copy engine of compute capability 9.0.

use super::api::{check, sys};
use crate::cuda::tensor_map::{TensorMap, TensorMapSpec};
use crate::dtype::DType;
use crate::error::KernelError;

/// Axes at most.
const RANK_MAX: usize = 3;

const _: () = assert!(size_of::<TensorMap>() == size_of::<sys::CUtensorMap>());
const _: () = assert!(align_of::<TensorMap>() >= align_of::<sys::CUtensorMap>());

/// The driver's encoding of `spec`. The driver may ask for a context that is current.
pub(crate) fn encode(spec: &TensorMapSpec<'_>) -> Result<TensorMap, KernelError> {
    spec.check()?;
    let (mut sizes, mut strides) = ([0u64; RANK_MAX], [0u64; RANK_MAX]);
    let (mut taken, apart) = ([0u32; RANK_MAX], [1u32; RANK_MAX]);
    for (i, axis) in spec.axes.iter().take(RANK_MAX).enumerate() {
        sizes[i] = axis.size as u64;
        strides[i] = axis.stride as u64;
        taken[i] = axis.taken as u32;
    }
    let format = match spec.format {
        DType::F32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    };
    let swizzle = if spec.swizzled {
        sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B
    } else {
        sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE
    };
    let mut map = TensorMap([0; 128]);
    // SAFETY: writes a map, as large and aligned as ours; reads as many numbers of each list as there
    // are axes, which the check bounds, of strides one less: the first is that of an element.
    let code = unsafe {
        sys::cuTensorMapEncodeTiled(
            (&raw mut map).cast(),
            format,
            spec.axes.len() as u32,
            std::ptr::without_provenance_mut(spec.address.0 as usize),
            sizes.as_ptr(),
            strides.as_ptr().add(1),
            taken.as_ptr(),
            apart.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            // What lies outside the tensor: zeros.
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    check("cuTensorMapEncodeTiled", code)?;
    Ok(map)
}
