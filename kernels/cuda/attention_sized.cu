// Paged attention of 16-bit caches for heads of known sizes, see attention_units.cuh.
//
// x is the group of heads, y the piece. Whether a narrow or a wide kernel computes a piece changes no bit.
#include "attention_units.cuh"

#define NARROW(name, T, dim, slots) \
    KERNEL_OF_BLOCKS(attention_units_##name, 4 * WARP, 2, Attention, (attention_units<Narrow<T, dim, slots>>))
#define WIDE(name, T, dim, slots, blocks) \
    KERNEL_OF_BLOCKS(attention_units_wide_##name, 8 * WARP, blocks, Attention, (attention_units<Wide<T, dim, slots>>))

NARROW(bf16_64, Bf16, 64, 4)
NARROW(bf16_80, Bf16, 80, 4)
NARROW(bf16_96, Bf16, 96, 4)
NARROW(bf16_128, Bf16, 128, 4)
NARROW(bf16_256, Bf16, 256, 2)
NARROW(f16_64, F16, 64, 4)
NARROW(f16_80, F16, 80, 4)
NARROW(f16_96, F16, 96, 4)
NARROW(f16_128, F16, 128, 4)
NARROW(f16_256, F16, 256, 2)

WIDE(bf16_64, Bf16, 64, 3, 2)
WIDE(bf16_80, Bf16, 80, 3, 1)
WIDE(bf16_96, Bf16, 96, 3, 1)
WIDE(bf16_128, Bf16, 128, 3, 1)
WIDE(bf16_256, Bf16, 256, 2, 1)

// With less shared memory: what a block of Ada or of a small Ampere may ask for.
WIDE(bf16_96_small, Bf16, 96, 2, 1)
WIDE(bf16_128_small, Bf16, 128, 2, 1)
