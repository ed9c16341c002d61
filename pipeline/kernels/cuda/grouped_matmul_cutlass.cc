#include <cassert>
#include <utility>

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
    const auto shapes = on_gpu(groups.shapes);
    const auto from = on_gpu(groups.rows);
    const auto with = on_gpu(groups.weights);
    const auto to = on_gpu(groups.products);
    run_cutlass({.n_groups = static_cast<std::int32_t>(groups.shapes.size()),
                 .shapes = shapes.data(),
                 .rows = from.data(),
                 .weights = with.data(),
                 .products = to.data(),
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
