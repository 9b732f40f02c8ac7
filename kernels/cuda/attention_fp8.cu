// Paged attention of fp8 caches, see attention_units.cuh: any head size that is a multiple of 16, and
// kernels for known ones.
//
// x is the KV head, y the piece. Which kernel computes a piece changes no bit.
#include "attention_units.cuh"

#define NARROW(name, dim, slots) \
    KERNEL_OF_BLOCKS(attention_units_##name, 4 * WARP, 2, Attention, (attention_units<Coded<Narrow<Bf16, dim, slots>>>))
// Widening codes takes the registers that queries would.
#define WIDE(name, dim, slots, blocks)                                 \
    KERNEL_OF_BLOCKS(attention_units_wide_##name, 8 * WARP, blocks, Attention,   \
           (attention_units<Coded<TensorMath<Bf16, dim, 8, 4, slots, false>>>))

NARROW(fp8, 0, 2)
NARROW(fp8_64, 64, 4)
NARROW(fp8_80, 80, 4)
NARROW(fp8_96, 96, 4)
NARROW(fp8_128, 128, 4)
NARROW(fp8_256, 256, 2)

WIDE(fp8_64, 64, 3, 2)
WIDE(fp8_80, 80, 3, 2)
WIDE(fp8_96, 96, 3, 1)
WIDE(fp8_128, 128, 3, 1)
WIDE(fp8_256, 256, 2, 1)
