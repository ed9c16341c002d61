#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "parallel/device/device_array.h"
#include "parallel/tensor.h"
#include "pipeline/kernels/cuda/cutlass_product.h"
#include "pipeline/kernels/cuda/grouped_matmul.h"

namespace switchyard::gpu {

/// A value for each expert that has rows.
struct GroupArguments {
  std::vector<GroupShape> shapes;
  std::vector<const void*> rows, weights;
  std::vector<void*> products;
};

/// Of the counts, which the host has at hand, so that nothing waits for a GPU. rows [n, n_in] grouped by expert; out: a
/// row for each.
GroupArguments group_arguments(TensorView rows, const StackedWeights& weights,
                               std::span<const std::int32_t> rows_per_expert, Tensor& out);

/// From one row to the next, of so many groups at most.
struct GroupStrides {
  GroupStrides(std::int64_t n_groups, std::int64_t in, std::int64_t out);
  DeviceArray<std::int64_t> of_in, of_out;
};

/// Arguments in GPU memory, brought there by one copy.
class UploadedGroups {
 public:
  /// Of one group or more. The strides outlive it.
  UploadedGroups(const GroupArguments& groups, const GroupStrides& strides);
  const GroupedProduct& product() const { return product_; }

 private:
  DeviceArray<std::byte> memory_;
  GroupedProduct product_;
};

}  // namespace switchyard::gpu
