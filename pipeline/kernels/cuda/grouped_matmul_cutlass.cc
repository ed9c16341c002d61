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
    return multiply(rows, rows_per_expert, out_, 0, weights_.n_out(), out_strides_, nullptr);
  }

  // Gate's sums go through memory, up's are multiplied with them where they are made.
  Tensor run_gated(TensorView rows, std::span<const std::int32_t> rows_per_expert, Activation activation) override {
    if (activation != Activation::silu) return GroupedMatmul::run_gated(rows, rows_per_expert, activation);
    const std::int64_t d_ff = weights_.n_out() / 2;
    if (gated_strides_.size() == 0) gated_strides_ = same_for_all(d_ff);
    Tensor gates = multiply(rows, rows_per_expert, DType::f32, 0, d_ff, gated_strides_, nullptr);
    return multiply(rows, rows_per_expert, DType::bf16, d_ff, d_ff, gated_strides_, &gates);
  }

 private:
  /// Products with `count` of an expert's weights from `first` on, of stride `strides`; times silu of `gates` if any.
  Tensor multiply(TensorView rows, std::span<const std::int32_t> rows_per_expert, DType type, std::int64_t first,
                  std::int64_t count, const DeviceArray<std::int64_t>& strides, Tensor* gates) const {
    assert(static_cast<std::int64_t>(rows_per_expert.size()) == weights_.n_experts);
    assert(rows.cols() == weights_.n_in() && rows.dtype() == DType::bf16);
    Tensor out(type, rows.rows(), count, Device::gpu);
    const GroupArguments groups = group_arguments(rows, weights_.weights, rows_per_expert, out, first);
    if (groups.shapes.empty()) return out;
    const auto shapes = on_gpu(groups.shapes);
    const auto from = on_gpu(groups.rows);
    const auto with = on_gpu(groups.weights);
    const auto to = on_gpu(groups.products);
    const GroupedProduct product = {.n_groups = static_cast<std::int32_t>(groups.shapes.size()),
                                    .shapes = shapes.data(),
                                    .rows = from.data(),
                                    .weights = with.data(),
                                    .products = to.data(),
                                    .in_strides = in_strides_.data(),
                                    .out_strides = strides.data()};
    if (gates == nullptr) {
      run_cutlass(product, type);
    } else {
      const auto by = on_gpu(group_arguments(rows, weights_.weights, rows_per_expert, *gates, first).products);
      run_cutlass_silu_gated(product, reinterpret_cast<const void* const*>(by.data()));
    }
    return out;
  }

  DeviceArray<std::int64_t> same_for_all(std::int64_t stride) const {
    return on_gpu(std::vector<std::int64_t>(static_cast<std::size_t>(weights_.n_experts), stride));
  }

  StackedWeights weights_;
  DType out_;
  DeviceArray<std::int64_t> in_strides_, out_strides_;
  DeviceArray<std::int64_t> gated_strides_;  // once they were asked for
};

}  // namespace

std::unique_ptr<GroupedMatmul> make_cutlass_grouped_matmul(StackedWeights weights, DType out) {
  return std::make_unique<CutlassGroupedMatmul>(std::move(weights), out);
}

}  // namespace switchyard::gpu
