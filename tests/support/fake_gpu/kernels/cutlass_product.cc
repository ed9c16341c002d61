#include "pipeline/kernels/cuda/cutlass_product.h"

#include "parallel/bf16.h"
#include "pipeline/kernels/cuda/activation_core.h"
#include "tests/support/fake_gpu/fake_gpu.h"

/// The kernel of cutlass_product.cu: what its arguments ask for.
namespace switchyard::gpu {
namespace {

/// finish: of a sum and, where the product is gated, its gate.
template <typename Out, typename Finish>
void multiply(const GroupedProduct& product, Finish finish) {
  fake_gpu::launch({product.shapes, product.rows, product.weights, product.products, product.in_strides,
                    product.out_strides, product.gates},
                   [product, finish] {
                     for (std::int32_t g = 0; g < product.n_groups; ++g) {
                       const GroupShape& shape = product.shapes[g];
                       const auto* const rows = static_cast<const Bf16*>(product.rows[g]);
                       const auto* const weights = static_cast<const Bf16*>(product.weights[g]);
                       auto* const products = static_cast<Out*>(product.products[g]);
                       const auto* const gates =
                           product.gates == nullptr ? nullptr : static_cast<const float*>(product.gates[g]);
                       for (std::int32_t i = 0; i < shape.m; ++i) {
                         for (std::int32_t j = 0; j < shape.n; ++j) {
                           float sum = 0;
                           for (std::int32_t k = 0; k < shape.k; ++k)
                             sum += static_cast<float>(rows[i * product.in_strides[g] + k]) *
                                    static_cast<float>(weights[j * product.in_strides[g] + k]);
                           const std::int64_t at = i * product.out_strides[g] + j;
                           products[at] = Out(finish(sum, gates == nullptr ? 0.0F : gates[at]));
                         }
                       }
                     }
                   });
}

}  // namespace

std::optional<std::string> why_no_cutlass() { return std::nullopt; }

void run_cutlass(const GroupedProduct& product, DType out) {
  const auto as_it_is = [](float sum, float /*gate*/) { return sum; };
  out == DType::f32 ? multiply<float>(product, as_it_is) : multiply<Bf16>(product, as_it_is);
}

void run_cutlass_gated(const GroupedProduct& product, Activation activation) {
  multiply<Bf16>(product, [activation](float sum, float gate) {
    return (activation == Activation::silu ? cores::silu(gate) : cores::gelu(gate)) * sum;
  });
}

}  // namespace switchyard::gpu
