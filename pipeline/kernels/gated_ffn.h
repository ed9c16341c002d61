#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/tensor.h"
#include "pipeline/kernels/matmul.h"

namespace switchyard {

/// silu(x) = x / (1 + e^-x); gelu(x) = x Phi(x), Phi the normal distribution (Hendrycks and Gimpel 2016,
/// https://arxiv.org/abs/1606.08415), not its approximation by a tanh.
enum class Activation : std::uint8_t { silu, gelu };

/// down * (activation(gate * x) . (up * x)): one expert, or a dense layer's only one.
class GatedFfn {
 public:
  /// gate, up: [d_ff, d]; down: [d, d_ff]; one type.
  GatedFfn(TensorView gate, TensorView up, TensorView down, Activation activation = Activation::silu);

  /// Room for an expert of that shape, which parts() fills.
  GatedFfn(std::int64_t d, std::int64_t d_ff, DType type, Activation activation);

  std::int64_t d_ff() const { return down.n_in(); }
  /// The memory of its weights, which a rank on a CPU of the same kind can use as it is.
  std::vector<std::span<std::byte>> parts();

  PackedWeights gate_up;  // [2 d_ff, d], gate's columns and up's in turns
  PackedWeights down;     // [d, d_ff]
  Activation activation;
};

/// rows [n, d] of the experts' type -> [n, d] of the same type, in the same order. counts: [runs, experts], the rows in
/// order are so many of each expert, and again for each further run: one where they are grouped by expert. Runs of less
/// than some tiles are a waste. Experts have equal shapes and activations. A row's result depends on that row and its
/// expert alone.
Tensor run_experts(TensorView rows, std::span<const std::int32_t> counts, std::span<const GatedFfn> experts);

/// The intermediate state activation(gate * x), before up multiplies it: rows [n, d] of the expert's type -> [n, d_ff]
/// f32. A row's result depends on that row alone.
Tensor gate_activation(TensorView rows, const GatedFfn& expert);

/// x [n, d] f32 += ffn(h), h: [n, d] of the weights' type.
void add_gated_ffn(Tensor& x, TensorView h, const GatedFfn& ffn);

}  // namespace switchyard
