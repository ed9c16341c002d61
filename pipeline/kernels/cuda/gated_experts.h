#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "parallel/tensor.h"
#include "pipeline/kernels/cuda/gated_product.h"
#include "pipeline/kernels/cuda/grouped_matmul.h"

namespace switchyard::gpu {

/// Experts down * (activation(gate * x) . (up * x)) in GPU memory.
struct GatedExperts {
  std::unique_ptr<GatedProduct> gated;
  std::unique_ptr<GroupedMatmul> down;  // -> the rows' type
};

/// As run_experts of the CPU, by the same rounding, so that a GPU's record differs from a CPU's by the order of sums
/// alone. rows [n, d] grouped -> [n, d] of the same type. In the compute stream.
Tensor run_experts(TensorView rows, std::span<const std::int32_t> rows_per_expert, const GatedExperts& experts);

}  // namespace switchyard::gpu
