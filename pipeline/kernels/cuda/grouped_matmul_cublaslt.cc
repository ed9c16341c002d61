#include <cassert>
#include <utility>

#include "pipeline/kernels/cuda/grouped_matmul.h"
#include "pipeline/kernels/cuda/pinned_product.h"

namespace switchyard::gpu {
namespace {

class LoopOfProducts : public GroupedMatmul {
 public:
  LoopOfProducts(StackedWeights weights, DType out)
      : weights_(weights),
        out_(out),
        product_(PinnedProduct::get({weights_.n_out(), weights_.n_in(), weights_.weights.dtype(), out, false})) {}

  Tensor run(TensorView rows, std::span<const std::int32_t> rows_per_expert) override {
    assert(static_cast<std::int64_t>(rows_per_expert.size()) == weights_.n_experts);
    assert(rows.cols() == weights_.n_in() && rows.dtype() == weights_.weights.dtype());
    Tensor out(out_, rows.rows(), weights_.n_out(), Device::gpu);
    std::int64_t begin = 0;
    std::int64_t weight_row = 0;
    for (const std::int32_t n : rows_per_expert) {
      product_.run(rows.bytes() + begin * rows.row_bytes(),
                   weights_.weights.bytes() + weight_row * weights_.weights.row_bytes(),
                   out.bytes() + begin * out.row_bytes(), n);
      begin += n;
      weight_row += weights_.n_out();
    }
    return out;
  }

 private:
  StackedWeights weights_;
  DType out_;
  const PinnedProduct& product_;
};

}  // namespace

std::unique_ptr<GroupedMatmul> make_cublaslt_grouped_matmul(StackedWeights weights, DType out) {
  return std::make_unique<LoopOfProducts>(weights, out);
}

}  // namespace switchyard::gpu
