// Products of many rows with an fp8 weight: codes become f16 in registers, x keeps its precision, in halves.
#include "linear_tilings.cuh"

LINEAR_TENSOR_KERNELS(fp8, E4m3)
