#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "parallel/tensor.h"

namespace switchyard::gpu {

/// Products of rows, grouped by expert, with their experts' weights. A row's bits depend on that row and its expert
/// alone.
class GroupedMatmul {
 public:
  virtual ~GroupedMatmul() = default;
  /// rows [n, n_in] of the weights' type, the first rows_per_expert[0] of them the first expert's, and so on -> [n,
  /// n_out] of the type that it was made for. In the compute stream.
  virtual Tensor run(TensorView rows, std::span<const std::int32_t> rows_per_expert) = 0;
};

/// Weights of experts of one shape, in GPU memory, one after another: [n_experts * n_out, n_in]. They outlive what is
/// made of them.
struct StackedWeights {
  TensorView weights;
  std::int64_t n_experts = 0;

  std::int64_t n_out() const { return weights.rows() / n_experts; }
  std::int64_t n_in() const { return weights.cols(); }
};

/// A product of cublasLt for each expert that has rows: pinned_product.h. Results of type `out`.
std::unique_ptr<GroupedMatmul> make_cublaslt_grouped_matmul(StackedWeights weights, DType out);

/// One product of cuDNN for all experts, of bf16 weights, by a plan chosen once: it sums each row in steps of one size,
/// whatever other rows there are, so that a row's bits should be its own; tests on a GPU look whether that is so.
/// Throws Error with the reason when cuDNN cannot be used, or has no plan for such weights.
std::unique_ptr<GroupedMatmul> make_cudnn_grouped_matmul(StackedWeights weights, DType out);
/// Throws as it would, for weights of that shape.
void check_cudnn_grouped_matmul(std::int64_t n_experts, std::int64_t n_out, std::int64_t n_in, DType out);

/// One kernel of CUTLASS for all experts, from bf16 to bf16, whose n_out and n_in are multiples of kCutlassMultiple:
/// cutlass_product.h.
std::unique_ptr<GroupedMatmul> make_cutlass_grouped_matmul(StackedWeights weights);

}  // namespace switchyard::gpu
