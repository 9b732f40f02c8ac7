// Paged attention of decode, prefill and mixed steps, for heads of any size.
//
// attention_units_*: x is the group of heads, y the piece, see attention_units.cuh. Kernels for heads of
// known sizes are in attention_sized.cu.
#include "attention_units.cuh"

KERNEL_OF_BLOCKS(attention_units_bf16, 4 * WARP, 2, Attention, (attention_units<Narrow<Bf16, 0, 2>>))
KERNEL_OF_BLOCKS(attention_units_f16, 4 * WARP, 2, Attention, (attention_units<Narrow<F16, 0, 2>>))
KERNEL_OF_BLOCKS(attention_units_f32, PlainMath::THREADS, 1, Attention, (attention_units<PlainMath>))
