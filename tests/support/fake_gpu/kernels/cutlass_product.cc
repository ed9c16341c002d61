#include "pipeline/kernels/cuda/cutlass_product.h"

#include "parallel/bf16.h"
#include "pipeline/kernels/cuda/activation_core.h"
#include "tests/support/fake_gpu/fake_gpu.h"

/// The kernel of cutlass_product.cu: what its arguments ask for.
namespace switchyard::gpu {
namespace {

/// Of a row and a row of weights.
float dot(const Bf16* row, const Bf16* weights, std::int32_t k) {
  float sum = 0;
  for (std::int32_t i = 0; i < k; ++i) sum += static_cast<float>(row[i]) * static_cast<float>(weights[i]);
  return sum;
}

/// value: of the sums of a row with any row of its weights, and of a column.
template <typename Value>
void fill(const GroupedProduct& product, std::int32_t weights_of_a_column, Value value) {
  fake_gpu::launch(
      {product.shapes, product.rows, product.weights, product.products, product.in_strides, product.out_strides},
      [product, weights_of_a_column, value] {
        for (std::int32_t g = 0; g < product.n_groups; ++g) {
          const GroupShape& shape = product.shapes[g];
          const auto* const rows = static_cast<const Bf16*>(product.rows[g]);
          const auto* const weights = static_cast<const Bf16*>(product.weights[g]);
          auto* const products = static_cast<Bf16*>(product.products[g]);
          const std::int64_t stride = product.in_strides[g];
          for (std::int32_t i = 0; i < shape.m; ++i) {
            const auto sum_of = [&](std::int64_t n) { return dot(rows + i * stride, weights + n * stride, shape.k); };
            for (std::int32_t j = 0; j < shape.n / weights_of_a_column; ++j)
              products[i * product.out_strides[g] + j] = Bf16(value(sum_of, j));
          }
        }
      });
}

}  // namespace

std::optional<std::string> why_no_cutlass() { return std::nullopt; }

void run_cutlass(const GroupedProduct& product) {
  fill(product, 1, [](const auto& sum_of, std::int64_t column) { return sum_of(column); });
}

void run_cutlass_gated(const GroupedProduct& product, Activation activation) {
  fill(product, 2, [activation](const auto& sum_of, std::int64_t column) {
    const std::int64_t gate_row = column / kGatedBlock * 2 * kGatedBlock + column % kGatedBlock;
    const float gate = sum_of(gate_row);
    return (activation == Activation::silu ? cores::silu(gate) : cores::gelu(gate)) * sum_of(gate_row + kGatedBlock);
  });
}

}  // namespace switchyard::gpu
