// The kernels of a type of weight on matrix units: a way to multiply, a way out, and sizes of tiles.
#pragma once
#include "linear_result.cuh"
#include "linear_tensor.cuh"

template <class M>
__device__ void linear_tensor(const TensorLinear& p) {
    Tile<M> tile(p);
    if (tile.num_rows == 0) return;
    Product<M> product(p, tile);
    compute_tile(p, tile, product);
}

// Tilings for 16, 32 and 64 rows are bound by reading weights, those for 128 by products.
template <class T>
using Rows16 = Tiling<T, 4, 1, 2, 2, 64>;
template <class T>
using Rows32 = Tiling<T, 4, 1, 2, 4, 64>;
template <class T>
using Rows64 = Tiling<T, 4, 1, 2, 8, 64>;
template <class T>
using Rows128 = Tiling<T, 2, 2, 4, 8, 32>;
template <class T>
using Wide128 = Tiling<T, 4, 2, 4, 8, 32>;

#define LINEAR_TENSOR_KERNEL(name, tiling) KERNEL(name, tiling::THREADS, TensorLinear, (linear_tensor<tiling>))

#define LINEAR_TENSOR_KERNELS(name, T)                      \
    LINEAR_TENSOR_KERNEL(linear_tensor_##name##_16, Rows16<T>)   \
    LINEAR_TENSOR_KERNEL(linear_tensor_##name##_32, Rows32<T>)   \
    LINEAR_TENSOR_KERNEL(linear_tensor_##name##_64, Rows64<T>)   \
    LINEAR_TENSOR_KERNEL(linear_tensor_##name##_128, Rows128<T>) \
    LINEAR_TENSOR_KERNEL(linear_tensor_##name##_wide, Wide128<T>)
