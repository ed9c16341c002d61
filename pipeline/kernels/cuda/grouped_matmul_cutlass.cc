#include <cassert>
#include <utility>

#include "pipeline/kernels/cuda/cutlass_product.h"
#include "pipeline/kernels/cuda/group_arguments.h"
#include "pipeline/kernels/cuda/grouped_matmul.h"

namespace switchyard::gpu {
namespace {

class CutlassGroupedMatmul : public GroupedMatmul {
 public:
  explicit CutlassGroupedMatmul(StackedWeights weights)
      : weights_(weights), strides_(weights_.n_experts, weights_.n_in(), weights_.n_out()) {
    assert(weights_.n_in() % kCutlassMultiple == 0 && weights_.n_out() % kCutlassMultiple == 0);
  }

  Tensor run(TensorView rows, std::span<const std::int32_t> rows_per_expert) override {
    assert(static_cast<std::int64_t>(rows_per_expert.size()) == weights_.n_experts);
    assert(rows.cols() == weights_.n_in() && rows.dtype() == DType::bf16);
    Tensor out(DType::bf16, rows.rows(), weights_.n_out(), Device::gpu);
    if (rows.rows() == 0) return out;
    const UploadedGroups groups(group_arguments(rows, weights_, rows_per_expert, out), strides_);
    run_cutlass(groups.product());
    return out;
  }

 private:
  StackedWeights weights_;
  GroupStrides strides_;
};

}  // namespace

std::unique_ptr<GroupedMatmul> make_cutlass_grouped_matmul(StackedWeights weights) {
  return std::make_unique<CutlassGroupedMatmul>(weights);
}

}  // namespace switchyard::gpu
