#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "parallel/tensor.h"
#include "pipeline/kernels/gated_ffn.h"

namespace switchyard::gpu {

/// Rows [m, k] of an expert, its weights [n, k], products [m, n].
struct GroupShape {
  std::int32_t m, n, k;
};

/// A product for each group; arrays of a value each, in GPU memory. All matrices are row-major, of bf16.
struct GroupedProduct {
  std::int32_t n_groups;
  const GroupShape* shapes;
  const void* const* rows;
  const void* const* weights;
  void* const* products;
  const std::int64_t* in_strides;   // of rows and weights, elements
  const std::int64_t* out_strides;  // of products, elements
};

/// Elements of which n and k are multiples, so that rows begin where the GPU's copies of tiles may.
inline constexpr std::int64_t kCutlassMultiple = 8;

/// Of the weights of gated products, so many rows of gate and as many of up take turns: a thread of the kernel then
/// holds the sums of both, whatever the size of its tiles.
inline constexpr std::int64_t kGatedBlock = 8;

/// Why this build and this process's GPU cannot multiply so; nothing where they can.
std::optional<std::string> why_no_cutlass();

/// All of them by one kernel of CUTLASS for sm_90a, in the compute stream: tiles of one size, each summed over k in one
/// order. Throws Error when it cannot be launched.
void run_cutlass(const GroupedProduct& product);
/// The same of gated products: [m, n / 2] of activation(gate) * up, of sums in f32.
void run_cutlass_gated(const GroupedProduct& product, Activation activation);

}  // namespace switchyard::gpu
