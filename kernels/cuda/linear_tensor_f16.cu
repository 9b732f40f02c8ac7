// Products of many rows with an f16 weight: as linear_tensor.cu, but x keeps its precision, in halves.
#include "linear_tilings.cuh"

LINEAR_TENSOR_KERNELS(f16, F16)
