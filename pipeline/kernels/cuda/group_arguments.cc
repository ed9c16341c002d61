#include "pipeline/kernels/cuda/group_arguments.h"

namespace switchyard::gpu {

namespace {

/// All of them, one behind the other.
std::vector<std::byte> bytes_of(const GroupArguments& groups) {
  std::vector<std::byte> all;
  const auto append = [&](std::span<const std::byte> bytes) { all.insert(all.end(), bytes.begin(), bytes.end()); };
  append(std::as_bytes(std::span(groups.rows)));
  append(std::as_bytes(std::span(groups.weights)));
  append(std::as_bytes(std::span(groups.products)));
  append(std::as_bytes(std::span(groups.shapes)));
  return all;
}

}  // namespace

GroupArguments group_arguments(TensorView rows, const StackedWeights& weights,
                               std::span<const std::int32_t> rows_per_expert, Tensor& out) {
  GroupArguments groups;
  std::int64_t begin = 0;
  std::int64_t expert = 0;
  for (const std::int32_t n : rows_per_expert) {
    if (n > 0) {
      groups.shapes.push_back(
          {.m = n, .n = static_cast<std::int32_t>(weights.n_out()), .k = static_cast<std::int32_t>(weights.n_in())});
      groups.rows.push_back(rows.bytes() + begin * rows.row_bytes());
      groups.weights.push_back(weights.weights.bytes() + expert * weights.n_out() * weights.weights.row_bytes());
      groups.products.push_back(out.bytes() + begin * out.row_bytes());
    }
    begin += n;
    ++expert;
  }
  return groups;
}

GroupStrides::GroupStrides(std::int64_t n_groups, std::int64_t in, std::int64_t out) {
  const auto same_for_all = [&](std::int64_t stride) {
    const std::vector<std::int64_t> strides(static_cast<std::size_t>(n_groups), stride);
    return DeviceArray<std::int64_t>(std::span(strides));
  };
  of_in = same_for_all(in);
  of_out = same_for_all(out);
}

UploadedGroups::UploadedGroups(const GroupArguments& groups, const GroupStrides& strides)
    : memory_(std::span<const std::byte>(bytes_of(groups))) {
  const std::size_t n = groups.shapes.size();
  const auto* const pointers = reinterpret_cast<const void* const*>(memory_.data());
  product_ = {.n_groups = static_cast<std::int32_t>(n),
              .shapes = reinterpret_cast<const GroupShape*>(pointers + 3 * n),
              .rows = pointers,
              .weights = pointers + n,
              .products = reinterpret_cast<void* const*>(memory_.data()) + 2 * n,
              .in_strides = strides.of_in.data(),
              .out_strides = strides.of_out.data()};
}

}  // namespace switchyard::gpu
