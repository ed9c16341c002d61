#pragma once

#include "pipeline/kernels/cuda/warp.h"

namespace switchyard::cores {

/// x / (1 + e^-x)
SWITCHYARD_CORE float silu(float x) { return x / (1.0F + expf(-x)); }

/// x Phi(x), Phi the normal distribution
SWITCHYARD_CORE float gelu(float x) { return 0.5F * x * (1.0F + erff(x * 0.70710678F)); }

}  // namespace switchyard::cores
