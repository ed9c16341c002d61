#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "parallel/tensor.h"
#include "pipeline/kernels/cuda/grouped_matmul.h"
#include "pipeline/kernels/gated_ffn.h"

namespace switchyard::gpu {

/// What experts make of rows before their last product: activation(gate * x) . (up * x). Gate and up stay f32 until
/// they are activated. A row's bits depend on that row and its expert alone.
class GatedProduct {
 public:
  virtual ~GatedProduct() = default;
  /// rows [n, d] and counts as GroupedMatmul::run -> [n, d_ff] of the rows' type. In the compute stream.
  virtual Tensor run(TensorView rows, std::span<const std::int32_t> rows_per_expert) = 0;
};

/// By a product [n, 2 d_ff] -> f32, gate's columns and then up's, and a kernel that reads it.
std::unique_ptr<GatedProduct> make_gated_product(std::unique_ptr<GroupedMatmul> gate_up, Activation activation);

/// By one kernel of CUTLASS in bf16, where gate's and up's sums meet: a fifth of the bytes between the experts' two
/// products. gate_up: each expert's [2 d_ff, d], kGatedBlock rows of gate and of up in turns; as
/// make_cutlass_grouped_matmul.
std::unique_ptr<GatedProduct> make_cutlass_gated_product(StackedWeights gate_up, Activation activation);

}  // namespace switchyard::gpu
