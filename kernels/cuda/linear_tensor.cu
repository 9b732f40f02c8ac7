// Products of many rows with a bf16 weight: out = epilogue(x * weight^T + bias), on matrix units.
//
// x counts tiles (see Tile), y chunks of k if each has a block.
#include "linear_tilings.cuh"

LINEAR_TENSOR_KERNELS(bf16, Bf16)
