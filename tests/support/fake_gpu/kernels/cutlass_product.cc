#include "pipeline/kernels/cuda/cutlass_product.h"

#include "parallel/bf16.h"
#include "tests/support/fake_gpu/fake_gpu.h"

/// The kernel of cutlass_product.cu: what its arguments ask for.
namespace switchyard::gpu {
namespace {

template <typename Out>
void multiply(const GroupedProduct& product) {
  fake_gpu::launch(
      {product.shapes, product.rows, product.weights, product.products, product.in_strides, product.out_strides},
      [product] {
        for (std::int32_t g = 0; g < product.n_groups; ++g) {
          const GroupShape& shape = product.shapes[g];
          const auto* const rows = static_cast<const Bf16*>(product.rows[g]);
          const auto* const weights = static_cast<const Bf16*>(product.weights[g]);
          auto* const products = static_cast<Out*>(product.products[g]);
          for (std::int32_t i = 0; i < shape.m; ++i) {
            for (std::int32_t j = 0; j < shape.n; ++j) {
              float sum = 0;
              for (std::int32_t k = 0; k < shape.k; ++k)
                sum += static_cast<float>(rows[i * product.in_strides[g] + k]) *
                       static_cast<float>(weights[j * product.in_strides[g] + k]);
              products[i * product.out_strides[g] + j] = Out(sum);
            }
          }
        }
      });
}

}  // namespace

std::optional<std::string> why_no_cutlass() { return std::nullopt; }

void run_cutlass(const GroupedProduct& product, DType out) {
  out == DType::f32 ? multiply<float>(product) : multiply<Bf16>(product);
}

}  // namespace switchyard::gpu
