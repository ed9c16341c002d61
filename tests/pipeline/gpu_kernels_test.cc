/// The kernels of a GPU against those of the CPU, on a GPU; skipped, with exit code 77, where there is none.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "parallel/device/device_array.h"
#include "parallel/device/gpu.h"
#include "pipeline/kernels/attention.h"
#include "pipeline/kernels/cuda/activation.h"
#include "pipeline/kernels/cuda/attention.h"
#include "pipeline/kernels/cuda/gated_experts.h"
#include "pipeline/kernels/cuda/grouped_matmul.h"
#include "pipeline/kernels/cuda/matmul.h"
#include "pipeline/kernels/cuda/router.h"
#include "pipeline/kernels/cuda/rows.h"
#include "pipeline/kernels/cuda/slot_order.h"
#include "pipeline/kernels/cuda/token_loss.h"
#include "pipeline/kernels/leaf_loops.h"
#include "pipeline/kernels/matmul.h"
#include "pipeline/kernels/router.h"
#include "pipeline/kernels/rows.h"
#include "pipeline/kernels/token_loss.h"
#include "tests/support/error_text.h"

namespace switchyard {
namespace {

Tensor random_tensor(std::int64_t rows, std::int64_t cols, unsigned seed, DType type = DType::f32) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Tensor tensor(type, rows, cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    const float value = normal(generator);
    if (type == DType::f32) {
      tensor.data<float>()[i] = value;
    } else {
      tensor.data<Bf16>()[i] = Bf16(value);
    }
  }
  return tensor;
}

Tensor on_gpu(const Tensor& tensor) { return copy_to(Device::gpu, tensor); }

float element(const Tensor& tensor, std::int64_t i) {
  return tensor.dtype() == DType::f32 ? tensor.data<float>()[i] : static_cast<float>(tensor.data<Bf16>()[i]);
}

void expect_close(const Tensor& on_device, const Tensor& expected, float bound) {
  const Tensor found = copy_to(Device::cpu, on_device);
  ASSERT_EQ(found.rows(), expected.rows());
  ASSERT_EQ(found.cols(), expected.cols());
  ASSERT_EQ(found.dtype(), expected.dtype());
  ASSERT_GT(found.rows() * found.cols(), 0);
  float worst = 0;
  for (std::int64_t i = 0; i < found.rows() * found.cols(); ++i) {
    const float error =
        std::fabs(element(found, i) - element(expected, i)) / std::max(1.0F, std::fabs(element(expected, i)));
    worst = error <= worst ? worst : error;  // NaN too
  }
  EXPECT_LE(worst, bound);
}

constexpr float kExact = 0;
constexpr float kF32 = 5e-6F;
constexpr float kBf16 = 8e-3F;

std::vector<std::int32_t> shuffled(int n, unsigned seed) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(seed));
  return order;
}

template <typename T>
DeviceArray<T> array_of(const std::vector<T>& values) {
  return DeviceArray<T>(std::span<const T>(values));
}

TEST(GpuKernelsTest, RowsAreThoseOfTheCpu) {
  for (const std::int64_t d : {1, 33, 256, 4096}) {
    for (const DType type : {DType::f32, DType::bf16}) {
      const float bound = type == DType::f32 ? kF32 : kBf16;
      const Tensor table = random_tensor(50, d, 1, type);
      const std::vector<std::uint32_t> tokens = {7, 0, 49, 7};
      expect_close(gpu::embed(on_gpu(table), array_of(tokens), 1.5F), embed(table, tokens, 1.5F), kF32);

      const Tensor x = random_tensor(37, d, 2);
      const Tensor weight = random_tensor(1, d, 3);
      expect_close(gpu::rms_norm(on_gpu(x), on_gpu(weight), 1e-5F, type),
                   rms_norm(x, weight.view().row<float>(0), 1e-5F, type), bound);

      const std::vector<std::int32_t> slots = shuffled(37 * 2, 4);
      expect_close(gpu::gather_slots(on_gpu(x), array_of(slots), 2, type), gather_slots(x, slots, 2, type), kExact);

      const Tensor rows = random_tensor(74, d, 5, type);
      Tensor copy = copy_to(Device::cpu, on_gpu(rows));
      expect_close(gpu::gather(on_gpu(rows), array_of(slots)), gather(std::move(copy), slots), kExact);
      copy = copy_to(Device::cpu, on_gpu(rows));
      expect_close(gpu::scatter(on_gpu(rows), array_of(slots)), scatter(std::move(copy), slots), kExact);

      const Tensor weights = random_tensor(37, 2, 6);
      Tensor sum = on_gpu(x);
      gpu::add_weighted(sum, on_gpu(rows), on_gpu(weights), array_of(slots));
      Tensor expected = copy_to(Device::cpu, on_gpu(x));
      add_weighted(expected, rows, {weights.data<float>(), 74}, slots);
      expect_close(sum, expected, kF32);
      gpu::add_rows(sum, on_gpu(x));
      add_rows(expected, x);
      expect_close(sum, expected, kF32);
    }
  }
}

TEST(GpuKernelsTest, SlotsAreOrderedStably) {
  for (const int n_experts : {1, 8, 60, 512}) {
    std::mt19937 generator(7);
    std::vector<std::int32_t> experts(10000);
    for (auto& expert : experts) expert = static_cast<std::int32_t>(generator() % static_cast<unsigned>(n_experts));
    std::vector<std::int32_t> expected(experts.size());
    std::iota(expected.begin(), expected.end(), 0);
    std::ranges::stable_sort(expected, {}, [&](std::int32_t slot) { return experts[static_cast<std::size_t>(slot)]; });
    const gpu::SlotOrder order = gpu::order_slots(array_of(experts), n_experts);
    EXPECT_EQ(order.slots.to_host(), expected);
    const std::vector<std::int32_t> begins = order.begins.to_host();
    ASSERT_EQ(begins.size(), static_cast<std::size_t>(n_experts) + 1);
    for (int e = 0; e <= n_experts; ++e)
      EXPECT_EQ(begins[static_cast<std::size_t>(e)], std::ranges::count_if(experts, [&](int x) { return x < e; }));
  }
  EXPECT_EQ(gpu::order_slots(DeviceArray<std::int32_t>(), 3).begins.to_host(), std::vector<std::int32_t>(4));
}

TEST(GpuKernelsTest, RoutersDecideAsTheCpuDoes) {
  for (const std::int64_t n_experts : {8, 60, 128, 200, 512}) {
    const Tensor logits = random_tensor(301, n_experts, static_cast<unsigned>(n_experts));
    const Routing found = gpu::to_host(gpu::choose_experts(on_gpu(logits), {6, true}), "test");
    const Routing expected = choose_experts(copy_to(Device::cpu, on_gpu(logits)), {6, true}, "test");
    EXPECT_EQ(found.ids, expected.ids);
    for (const auto& [left, right] :
         {std::pair(&found.weights, &expected.weights), std::pair(&found.entropy, &expected.entropy),
          std::pair(&found.margin, &expected.margin), std::pair(&found.top_probability, &expected.top_probability),
          std::pair(&found.log_sum_exp, &expected.log_sum_exp)}) {
      ASSERT_EQ(left->size(), right->size());
      for (std::size_t i = 0; i < left->size(); ++i) EXPECT_NEAR((*left)[i], (*right)[i], 2e-5F);
    }
  }
  Tensor bad = random_tensor(9, 8, 1);
  bad.data<float>()[5 * 8 + 3] = NAN;
  bad.data<float>()[7 * 8] = INFINITY;
  EXPECT_EQ(
      testing::error_text([&] {
        static_cast<void>(gpu::to_host(gpu::choose_experts(on_gpu(bad), {2, true}), "layer 4"));
      }),
      "layer 4, token 5 of the batch: a router logit is not a finite number; check the checkpoint's tensors for NaN, "
      "or run with --precision f32");
}

TEST(GpuKernelsTest, ActivationsAreThoseOfTheCpu) {
  const Tensor both = random_tensor(11, 2 * 333, 8);
  for (const Activation activation : {Activation::silu, Activation::gelu}) {
    Tensor expected(DType::f32, 11, 333);
    for (std::int64_t r = 0; r < 11; ++r) {
      const float* gate = both.view().row<float>(r).data();
      const auto loop = activation == Activation::silu ? leaf().f32.silu_gate : leaf().f32.gelu_gate;
      loop(gate, gate + 333, expected.row<float>(r).data(), 333);
    }
    expect_close(gpu::activate(on_gpu(both), activation, DType::f32), expected, kF32);
  }
}

TEST(GpuKernelsTest, AttentionIsThatOfTheCpu) {
  const std::vector<std::int32_t> offsets = {0, 1, 17, 82, 146, 400};
  for (const int head_dim : {32, 64, 80, 128, 256}) {
    for (const int sliding_window : {0, 50}) {
      for (const float softcap : {0.0F, 20.0F}) {
        const AttentionShape shape = {.n_heads = 4,
                                      .n_kv_heads = 2,
                                      .head_dim = head_dim,
                                      .sliding_window = sliding_window,
                                      .scale = 0,
                                      .softcap = softcap};
        RopeTable rope(10000, head_dim);
        const Tensor qkv = random_tensor(offsets.back(), shape.qkv_columns(), 9);
        const Tensor expected = attention(split_heads(qkv, offsets, shape, rope, DType::f32), offsets, shape);
        const gpu::DeviceWindows windows(offsets);
        const gpu::DeviceRope angles = gpu::copy_rope(rope, windows.positions, head_dim);
        for (const DType type : {DType::f32, DType::bf16}) {
          Tensor k(type, qkv.rows(), std::int64_t{2} * head_dim, Device::gpu);
          Tensor v(type, qkv.rows(), std::int64_t{2} * head_dim, Device::gpu);
          const Tensor q = gpu::split_heads(on_gpu(qkv), windows, shape, angles, k, v);
          const Tensor found = copy_to(Device::cpu, gpu::attention(q, k, v, windows, shape));
          float worst = 0;
          for (std::int64_t i = 0; i < expected.rows() * expected.cols(); ++i) {
            const float error = std::fabs(element(found, i) - element(expected, i));
            worst = error <= worst ? worst : error;
          }
          EXPECT_LE(worst, type == DType::f32 ? 2e-5F : 0.04F) << head_dim << " " << sliding_window << " " << softcap;
        }
      }
    }
  }
}

TEST(GpuKernelsTest, LossesAreThoseOfTheCpu) {
  const Tensor h = random_tensor(100, 32, 10);
  const PackedWeights head(random_tensor(1000, 32, 11));
  std::vector<std::int64_t> targets(100);
  for (std::int64_t t = 0; t < 100; ++t) targets[static_cast<std::size_t>(t)] = t == 5 ? kPredictedTarget : t * 7;
  const TokenLosses expected = token_loss(h, head, targets);
  const Tensor logits = matmul(h, head);
  gpu::LossOfChunks losses(array_of(targets));
  for (std::int64_t begin = 0; begin < 1000; begin += 300) {
    const std::int64_t columns = std::min<std::int64_t>(300, 1000 - begin);
    Tensor chunk(DType::f32, 100, columns);
    for (std::int64_t t = 0; t < 100; ++t)
      std::ranges::copy(
          logits.view().row<float>(t).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(columns)),
          chunk.row<float>(t).begin());
    losses.take(on_gpu(chunk), begin);
  }
  const TokenLosses found = losses.finish();
  EXPECT_EQ(found.predicted, expected.predicted);
  ASSERT_EQ(found.loss.size(), 100U);
  for (std::size_t t = 0; t < 100; ++t) EXPECT_NEAR(found.loss[t], expected.loss[t], 1e-4F);
}

TEST(GpuKernelsTest, ProductsAreThoseOfTheCpu) {
  const Tensor rows = random_tensor(130, 256, 12);
  const Tensor weights = random_tensor(384, 256, 13);
  Tensor expected = matmul(rows, PackedWeights(weights));
  Tensor found = gpu::matmul(on_gpu(rows), on_gpu(weights));
  expect_close(found, expected, 5e-5F);
  gpu::add_matmul(found, on_gpu(rows), on_gpu(weights));
  for (std::int64_t i = 0; i < 130 * 384; ++i) expected.data<float>()[i] *= 2;
  expect_close(found, expected, 5e-5F);
}

/// Random numbers divided by the root of the width, so that products are about as large.
Tensor random_weights(std::int64_t rows, std::int64_t cols, unsigned seed, DType type) {
  Tensor tensor = random_tensor(rows, cols, seed, type);
  const float factor = 1.0F / std::sqrt(static_cast<float>(cols));
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    if (type == DType::f32) {
      tensor.data<float>()[i] *= factor;
    } else {
      tensor.data<Bf16>()[i] = Bf16(element(tensor, i) * factor);
    }
  }
  return tensor;
}

TEST(GpuKernelsTest, ExpertsAreThoseOfTheCpuAndARowsBitsItsOwn) {
  constexpr std::int64_t kExperts = 4;
  constexpr std::int64_t kWidth = 256;
  constexpr std::int64_t kInner = 192;
  const Tensor rows = random_tensor(700, kWidth, 14, DType::bf16);
  const Tensor gate_up = random_weights(kExperts * 2 * kInner, kWidth, 15, DType::bf16);
  const Tensor down = random_weights(kExperts * kWidth, kInner, 16, DType::bf16);
  const gpu::GatedExperts experts{gpu::make_cublaslt_grouped_matmul({on_gpu(gate_up), kExperts}, DType::f32),
                                  gpu::make_cublaslt_grouped_matmul({on_gpu(down), kExperts}, DType::bf16),
                                  Activation::gelu};
  const std::vector<std::int32_t> rows_per_expert = {1, 0, 642, 57};
  const Tensor found = copy_to(Device::cpu, gpu::run_experts(on_gpu(rows), rows_per_expert, experts));
  std::int64_t row = 0;
  for (std::int64_t e = 0; e < kExperts; ++e) {
    for (std::int32_t i = 0; i < rows_per_expert[static_cast<std::size_t>(e)]; ++i, ++row) {
      for (std::int64_t c = 0; c < kWidth; c += 37) {
        double expected = 0;
        for (std::int64_t f = 0; f < kInner; ++f) {
          double gate = 0;
          double up = 0;
          for (std::int64_t k = 0; k < kWidth; ++k) {
            const double x = element(rows, row * kWidth + k);
            gate += x * element(gate_up, (e * 2 * kInner + f) * kWidth + k);
            up += x * element(gate_up, (e * 2 * kInner + kInner + f) * kWidth + k);
          }
          const double activated = 0.5 * gate * (1 + std::erf(gate / std::sqrt(2.0))) * up;
          expected += activated * element(down, (e * kWidth + c) * kInner + f);
        }
        ASSERT_NEAR(element(found, row * kWidth + c), expected, 0.03 * std::max(1.0, std::fabs(expected))) << row;
      }
    }
  }
  // The same rows, fewer at a time: the same bits.
  for (const std::int64_t at : {1, 300, 642}) {
    const std::vector<std::int32_t> one = {0, 0, 1, 0};
    const Tensor alone = copy_to(Device::cpu, gpu::run_experts(on_gpu(rows).rows(at, at + 1), one, experts));
    for (std::int64_t c = 0; c < kWidth; ++c)
      EXPECT_EQ(alone.data<Bf16>()[c].bits, found.data<Bf16>()[at * kWidth + c].bits) << at << " " << c;
  }
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (switchyard::count_gpus() == 0) {
    std::puts("skipped: no GPU");
    return 77;
  }
  std::puts(switchyard::describe(switchyard::use_gpu(0)).c_str());
  return RUN_ALL_TESTS();
}
