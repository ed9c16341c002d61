/// Products on a GPU, on the stand-in: which way round matrices lie, which rows meet which weights, and that one
/// algorithm serves all. What real algorithms compute is the business of gpu_kernels_test.

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "parallel/device/device_memory.h"
#include "pipeline/kernels/cuda/gated_product.h"
#include "pipeline/kernels/cuda/group_arguments.h"
#include "pipeline/kernels/cuda/grouped_matmul.h"
#include "pipeline/kernels/cuda/matmul.h"
#include "tests/support/fake_gpu/fake_gpu.h"

namespace switchyard {
namespace {

Tensor random_tensor(DType type, std::int64_t rows, std::int64_t cols, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_int_distribution<int> small(-4, 4);  // sums are exact in f32, results of few terms in bf16
  Tensor tensor(type, rows, cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    const auto value = static_cast<float>(small(generator));
    if (type == DType::f32) {
      tensor.data<float>()[i] = value;
    } else {
      tensor.data<Bf16>()[i] = Bf16(value);
    }
  }
  return tensor;
}

float element(const Tensor& tensor, std::int64_t row, std::int64_t column) {
  const std::int64_t at = row * tensor.cols() + column;
  return tensor.dtype() == DType::f32 ? tensor.data<float>()[at] : static_cast<float>(tensor.data<Bf16>()[at]);
}

/// rows' row `row` times the weights' row `column`.
float product(const Tensor& rows, std::int64_t row, const Tensor& weights, std::int64_t column) {
  float sum = 0;
  for (std::int64_t k = 0; k < rows.cols(); ++k) sum += element(rows, row, k) * element(weights, column, k);
  return sum;
}

class GpuMatmulTest : public testing::TestWithParam<DType> {
 protected:
  void TearDown() override { EXPECT_EQ(fake_gpu::take_complaints(), ""); }
};

TEST_P(GpuMatmulTest, MultipliesRowsByRowsOfWeights) {
  const Tensor weights = random_tensor(GetParam(), 7, 13, 1);
  const Tensor on_gpu = copy_to(Device::gpu, weights);
  for (const std::int64_t n : {0, 1, 5, 70}) {
    const Tensor rows = random_tensor(GetParam(), n, 13, 2);
    Tensor sum = gpu::matmul(copy_to(Device::gpu, rows), on_gpu);
    const Tensor once = copy_to(Device::cpu, sum);
    gpu::add_matmul(sum, copy_to(Device::gpu, rows), on_gpu);
    const Tensor twice = copy_to(Device::cpu, sum);
    ASSERT_EQ(once.rows(), n);
    ASSERT_EQ(once.cols(), 7);
    for (std::int64_t t = 0; t < n; ++t) {
      for (std::int64_t c = 0; c < 7; ++c) {
        EXPECT_EQ(element(once, t, c), product(rows, t, weights, c));
        EXPECT_EQ(element(twice, t, c), 2 * product(rows, t, weights, c));
      }
    }
  }
}

using MakeGroupedMatmul = std::unique_ptr<gpu::GroupedMatmul> (*)(gpu::StackedWeights weights, DType out);

void expect_rows_to_meet_the_weights_of_their_expert(MakeGroupedMatmul make, DType in, DType out, std::int64_t n_out,
                                                     std::int64_t n_in) {
  constexpr std::int64_t kExperts = 5;
  const Tensor weights = random_tensor(in, kExperts * n_out, n_in, 3);
  const Tensor on_gpu = copy_to(Device::gpu, weights);
  const auto experts = make({on_gpu, kExperts}, out);
  const std::vector<std::int32_t> rows_per_expert = {3, 0, 1, 70, 0};
  const Tensor rows = random_tensor(in, 74, n_in, 4);
  const Tensor found = copy_to(Device::cpu, experts->run(copy_to(Device::gpu, rows), rows_per_expert));
  ASSERT_EQ(found.dtype(), out);
  std::int64_t row = 0;
  for (std::size_t e = 0; e < rows_per_expert.size(); ++e) {
    for (std::int32_t i = 0; i < rows_per_expert[e]; ++i, ++row) {
      for (std::int64_t c = 0; c < n_out; ++c) {
        const float expected = product(rows, row, weights, static_cast<std::int64_t>(e) * n_out + c);
        EXPECT_EQ(element(found, row, c), out == DType::f32 ? expected : static_cast<float>(Bf16(expected)));
      }
    }
  }
  EXPECT_EQ(row, 74);
  const std::vector<std::int32_t> none(kExperts);
  EXPECT_EQ(experts->run(Tensor(in, 0, n_in, Device::gpu), none).rows(), 0);
}

TEST_P(GpuMatmulTest, RowsMeetTheWeightsOfTheirExpert) {
  // Rows begin at any multiple of 18 or 36 bytes.
  expect_rows_to_meet_the_weights_of_their_expert(gpu::make_cublaslt_grouped_matmul, GetParam(), GetParam(), 6, 9);
}

TEST(GroupedMatmulTest, RowsMeetTheWeightsOfTheirExpertByCutlass) {
  const auto make = [](gpu::StackedWeights weights, DType /*out*/) {
    return gpu::make_cutlass_grouped_matmul(weights);
  };
  expect_rows_to_meet_the_weights_of_their_expert(make, DType::bf16, DType::bf16, 24, 16);
}

TEST(GroupedMatmulTest, GroupsOfAKernelAreTheExpertsThatHaveRows) {
  const Tensor rows(DType::bf16, 74, 16);
  const Tensor weights(DType::bf16, std::int64_t{5} * 24, 16);
  Tensor out(DType::bf16, 74, 12);  // of two rows of weights each
  const gpu::GroupArguments groups =
      gpu::group_arguments(rows, {weights, 5}, std::vector<std::int32_t>{3, 0, 1, 70, 0}, out);
  constexpr std::array kExperts = {0, 2, 3};
  constexpr std::array kRows = {3, 1, 70};
  constexpr std::array kBegins = {0, 3, 4};
  ASSERT_EQ(groups.shapes.size(), kExperts.size());
  for (std::size_t g = 0; g < kExperts.size(); ++g) {
    EXPECT_EQ(groups.shapes[g].m, kRows[g]);
    EXPECT_EQ(groups.shapes[g].n, 24);
    EXPECT_EQ(groups.shapes[g].k, 16);
    EXPECT_EQ(groups.rows[g], rows.data<Bf16>() + kBegins[g] * 16);
    EXPECT_EQ(groups.weights[g], weights.data<Bf16>() + kExperts[g] * 24 * 16);
    EXPECT_EQ(groups.products[g], out.data<Bf16>() + kBegins[g] * 12);
  }
}

TEST(GroupedMatmulTest, GatedProductsAreThoseOfTheirExpert) {
  constexpr std::int64_t kExperts = 4;
  constexpr std::int64_t kInner = 24;
  const std::vector<std::int32_t> rows_per_expert = {3, 0, 60, 1};
  const Tensor weights = random_tensor(DType::bf16, kExperts * 2 * kInner, 16, 5);
  const Tensor rows = random_tensor(DType::bf16, 64, 16, 6);
  const Tensor on_gpu = copy_to(Device::gpu, weights);
  const gpu::StackedWeights stacked = {on_gpu, kExperts};
  for (const Activation activation : {Activation::silu, Activation::gelu}) {
    const auto by_cutlass = gpu::make_cutlass_gated_product(stacked, activation);
    const auto by_steps = gpu::make_gated_product(gpu::make_cublaslt_grouped_matmul(stacked, DType::f32), activation);
    const auto expect = [&](const Tensor& found, std::int64_t turn) {
      ASSERT_EQ(found.dtype(), DType::bf16);
      ASSERT_EQ(found.cols(), kInner);
      std::int64_t row = 0;
      for (std::size_t e = 0; e < kExperts; ++e) {
        for (std::int32_t i = 0; i < rows_per_expert[e]; ++i, ++row) {
          for (std::int64_t c = 0; c < kInner; ++c) {
            const std::int64_t at = static_cast<std::int64_t>(e) * 2 * kInner + c / turn * 2 * turn + c % turn;
            const double gate = static_cast<double>(product(rows, row, weights, at));
            const double up = static_cast<double>(product(rows, row, weights, at + turn));
            const double expected =
                up * (activation == Activation::silu ? gate / (1 + std::exp(-gate))
                                                     : gate * 0.5 * (1 + std::erf(gate / std::sqrt(2.0))));
            const double bound = 1e-2 * std::fabs(expected) + 1e-6 * std::fabs(gate * up);
            EXPECT_NEAR(element(found, row, c), expected, bound);
          }
        }
      }
      EXPECT_EQ(row, 64);
    };
    const Tensor rows_there = copy_to(Device::gpu, rows);
    expect(copy_to(Device::cpu, by_cutlass->run(rows_there, rows_per_expert)), gpu::kGatedBlock);
    expect(copy_to(Device::cpu, by_steps->run(rows_there, rows_per_expert)), kInner);
    const std::vector<std::int32_t> none(kExperts);
    EXPECT_EQ(by_cutlass->run(Tensor(DType::bf16, 0, 16, Device::gpu), none).rows(), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, GpuMatmulTest, testing::Values(DType::f32, DType::bf16));

}  // namespace
}  // namespace switchyard
