// Products of many rows with a weight in blocks: out = epilogue(x * weight^T + bias), on matrix units for bytes.
//
// x counts tiles (see Tile), y chunks of k if each has a block.
#include "linear_bytes.cuh"
#include "linear_result.cuh"

template <class M>
__device__ void linear_bytes(const ByteLinear& q) {
    Tile<M> tile(q.tensor);
    if (tile.num_rows == 0) return;
    ByteProduct<M> product(q, tile);
    compute_tile(q.tensor, tile, product);
}

// Two warps a scheduler, so that one scales sums while the other's are made.
template <class F>
using ByteRows16 = ByteTiling<F, 8, 1, 1, 2>;
template <class F>
using ByteRows32 = ByteTiling<F, 4, 2, 2, 2>;
template <class F>
using ByteRows64 = ByteTiling<F, 4, 2, 2, 4>;
template <class F>
using ByteRows128 = ByteTiling<F, 4, 2, 2, 8>;

#define LINEAR_BYTES_KERNEL(name, tiling) KERNEL(name, tiling::THREADS, ByteLinear, (linear_bytes<tiling>))

#define LINEAR_BYTES_KERNELS(name, F)                         \
    LINEAR_BYTES_KERNEL(linear_bytes_##name##_16, ByteRows16<F>) \
    LINEAR_BYTES_KERNEL(linear_bytes_##name##_32, ByteRows32<F>) \
    LINEAR_BYTES_KERNEL(linear_bytes_##name##_64, ByteRows64<F>) \
    LINEAR_BYTES_KERNEL(linear_bytes_##name##_128, ByteRows128<F>)

LINEAR_BYTES_KERNELS(q8_0, Bytes8)
LINEAR_BYTES_KERNELS(q4_0, Bytes4)
