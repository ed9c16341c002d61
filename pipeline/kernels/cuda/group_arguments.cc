#include "pipeline/kernels/cuda/group_arguments.h"

namespace switchyard::gpu {

GroupArguments group_arguments(TensorView rows, TensorView weights, std::span<const std::int32_t> rows_per_expert,
                               Tensor& out) {
  GroupArguments groups;
  std::int64_t begin = 0;
  std::int64_t expert = 0;
  for (const std::int32_t n : rows_per_expert) {
    if (n > 0) {
      groups.shapes.push_back(
          {.m = n, .n = static_cast<std::int32_t>(out.cols()), .k = static_cast<std::int32_t>(rows.cols())});
      groups.rows.push_back(rows.bytes() + begin * rows.row_bytes());
      groups.weights.push_back(weights.bytes() + expert * out.cols() * weights.row_bytes());
      groups.products.push_back(out.bytes() + begin * out.row_bytes());
    }
    begin += n;
    ++expert;
  }
  return groups;
}

}  // namespace switchyard::gpu
