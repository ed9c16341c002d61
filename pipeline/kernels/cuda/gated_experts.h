#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "parallel/tensor.h"
#include "pipeline/kernels/cuda/grouped_matmul.h"
#include "pipeline/kernels/gated_ffn.h"

namespace switchyard::gpu {

/// Experts down * (activation(gate * x) . (up * x)) in GPU memory; a dense layer's are one.
struct GatedExperts {
  std::unique_ptr<GroupedMatmul> gate_up;  // each expert's [2 d_ff, d]: gate's rows, then up's -> f32
  std::unique_ptr<GroupedMatmul> down;     // each expert's [d, d_ff] -> the rows' type
  Activation activation = Activation::silu;
};

/// As run_experts of the CPU, by the same rounding: gate and up stay f32 until they are activated. In bf16 that writes
/// and reads twice the bytes between the two products; in return a GPU's record differs from a CPU's by the order of
/// sums alone. rows [n, d] grouped -> [n, d] of the same type. In the compute stream.
Tensor run_experts(TensorView rows, std::span<const std::int32_t> rows_per_expert, const GatedExperts& experts);

}  // namespace switchyard::gpu
