//! Tensor maps of the host's emulation: plain numbers, where a GPU's are its driver's secret.

use crate::cuda::tensor_map::{Axis, TensorMap, TensorMapSpec};

/// Mirrors `TileMap` of emulation/hopper.h.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct TileMap {
    kind: u64,
    address: u64,
    sizes: [u64; 3],
    strides: [u64; 3],
    taken: [u32; 3],
    rank: u32,
    is_swizzled: u32,
    /// No padding: every byte is somebody's.
    unused: u32,
}

const KIND: u64 = 0x0070_616d_656c_6974;

/// The map of a spec that was checked.
pub(crate) fn encode(spec: &TensorMapSpec<'_>) -> TensorMap {
    // An axis that is not there has one element.
    let one = Axis { size: 1, stride: 0, taken: 1 };
    let axes: [Axis; 3] = std::array::from_fn(|i| spec.axes.get(i).copied().unwrap_or(one));
    let map = TileMap {
        kind: KIND,
        address: spec.address.0,
        sizes: axes.map(|axis| axis.size as u64),
        strides: axes.map(|axis| axis.stride as u64),
        taken: axes.map(|axis| axis.taken as u32),
        rank: spec.axes.len() as u32,
        is_swizzled: u32::from(spec.swizzled),
        unused: 0,
    };
    let mut opaque = [0; 128];
    // SAFETY: a struct of numbers without padding, shorter than a map.
    let bytes =
        unsafe { std::slice::from_raw_parts((&raw const map).cast::<u8>(), size_of::<TileMap>()) };
    opaque[..bytes.len()].copy_from_slice(bytes);
    TensorMap(opaque)
}
