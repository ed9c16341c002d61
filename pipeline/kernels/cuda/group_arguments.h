#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/tensor.h"
#include "pipeline/kernels/cuda/cutlass_product.h"

namespace switchyard::gpu {

/// A value for each expert that has rows.
struct GroupArguments {
  std::vector<GroupShape> shapes;
  std::vector<const void*> rows, weights;
  std::vector<void*> products;
};

/// Of the counts, which the host has at hand, so that nothing waits for a GPU. rows [n, n_in] grouped by expert,
/// weights [n_experts * n_out, n_in], out [n, n_out].
GroupArguments group_arguments(TensorView rows, TensorView weights, std::span<const std::int32_t> rows_per_expert,
                               Tensor& out);

}  // namespace switchyard::gpu
