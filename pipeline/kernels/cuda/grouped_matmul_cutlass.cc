#include <cassert>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "parallel/device/device_array.h"
#include "pipeline/kernels/cuda/cutlass_product.h"
#include "pipeline/kernels/cuda/group_arguments.h"
#include "pipeline/kernels/cuda/grouped_matmul.h"

namespace switchyard::gpu {
namespace {

template <typename T>
DeviceArray<T> on_gpu(const std::vector<T>& values) {
  return DeviceArray<T>(std::span<const T>(values));
}

class CutlassGroupedMatmul : public GroupedMatmul {
 public:
  CutlassGroupedMatmul(StackedWeights weights, DType out)
      : weights_(std::move(weights)),
        out_(out),
        in_strides_(same_for_all(weights_.n_in())),
        out_strides_(same_for_all(weights_.n_out())) {
    assert(weights_.n_in() % kCutlassMultiple == 0 && weights_.n_out() % kCutlassMultiple == 0);
  }

  Tensor run(TensorView rows, std::span<const std::int32_t> rows_per_expert) override {
    assert(static_cast<std::int64_t>(rows_per_expert.size()) == weights_.n_experts);
    assert(rows.cols() == weights_.n_in() && rows.dtype() == DType::bf16);
    Tensor out(out_, rows.rows(), weights_.n_out(), Device::gpu);
    const GroupArguments groups = group_arguments(rows, weights_.weights, rows_per_expert, out);
    if (groups.shapes.empty()) return out;
    const std::size_t n = groups.shapes.size();
    std::vector<std::byte> all;  // so that one copy brings them
    const auto append = [&](std::span<const std::byte> bytes) { all.insert(all.end(), bytes.begin(), bytes.end()); };
    append(std::as_bytes(std::span(groups.rows)));
    append(std::as_bytes(std::span(groups.weights)));
    append(std::as_bytes(std::span(groups.products)));
    append(std::as_bytes(std::span(groups.shapes)));
    const DeviceArray<std::byte> arguments = on_gpu(all);
    const auto* const pointers = reinterpret_cast<const void* const*>(arguments.data());
    run_cutlass({.n_groups = static_cast<std::int32_t>(n),
                 .shapes = reinterpret_cast<const GroupShape*>(pointers + 3 * n),
                 .rows = pointers,
                 .weights = pointers + n,
                 .products = reinterpret_cast<void* const*>(arguments.data()) + 2 * n,
                 .in_strides = in_strides_.data(),
                 .out_strides = out_strides_.data()},
                out_);
    return out;
  }

 private:
  DeviceArray<std::int64_t> same_for_all(std::int64_t stride) const {
    return on_gpu(std::vector<std::int64_t>(static_cast<std::size_t>(weights_.n_experts), stride));
  }

  StackedWeights weights_;
  DType out_;
  DeviceArray<std::int64_t> in_strides_, out_strides_;
};

}  // namespace

std::unique_ptr<GroupedMatmul> make_cutlass_grouped_matmul(StackedWeights weights, DType out) {
  return std::make_unique<CutlassGroupedMatmul>(std::move(weights), out);
}

}  // namespace switchyard::gpu
