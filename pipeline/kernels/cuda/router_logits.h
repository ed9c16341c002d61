#pragma once

#include "parallel/tensor.h"

namespace switchyard::gpu {

/// h [n, d] f32 * weights^T, weights [n_experts, d] f32 -> [n, n_experts] f32, in f32: choices depend on the last bits.
/// Such products have few columns, for which libraries' kernels of f32 are not made. A row's bits depend on that row
/// and the weights alone. In the compute stream.
Tensor router_logits(TensorView h, TensorView weights);

}  // namespace switchyard::gpu
