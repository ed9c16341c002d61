/// The kernels of a GPU against those of the CPU, on a GPU; skipped, with exit code 77, where there is none.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "parallel/device/device_array.h"
#include "parallel/device/gpu.h"
#include "pipeline/kernels/attention.h"
#include "pipeline/kernels/cuda/activation.h"
#include "pipeline/kernels/cuda/attention.h"
#include "pipeline/kernels/cuda/cutlass_product.h"
#include "pipeline/kernels/cuda/fused_attention.h"
#include "pipeline/kernels/cuda/gated_experts.h"
#include "pipeline/kernels/cuda/matmul.h"
#include "pipeline/kernels/cuda/router.h"
#include "pipeline/kernels/cuda/router_logits.h"
#include "pipeline/kernels/cuda/rows.h"
#include "pipeline/kernels/cuda/token_loss.h"
#include "pipeline/kernels/leaf_loops.h"
#include "pipeline/kernels/matmul.h"
#include "pipeline/kernels/router.h"
#include "pipeline/kernels/rows.h"
#include "pipeline/kernels/token_loss.h"
#include "pipeline/model/attention_kernel.h"
#include "pipeline/model/cuda/make_gated_experts.h"

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

Tensor on_gpu(TensorView tensor) { return copy_to(Device::gpu, tensor); }

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

/// Where each of the numbers from `first` on stands.
std::vector<std::int32_t> inverse(const std::vector<std::int32_t>& order, std::int32_t first = 0) {
  std::vector<std::int32_t> at(order.size());
  for (std::size_t i = 0; i < order.size(); ++i)
    at[static_cast<std::size_t>(order[i] - first)] = static_cast<std::int32_t>(i);
  return at;
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
      const DeviceArray<std::int32_t> row_of_slot = array_of(inverse(slots));
      expect_close(gpu::gather_slots(on_gpu(x), 0, row_of_slot, 2, type), gather_slots(x, slots, 2, type), kExact);

      const Tensor rows = random_tensor(74, d, 5, type);
      Tensor copy = copy_to(Device::cpu, on_gpu(rows));
      expect_close(gpu::gather(on_gpu(rows), array_of(slots)), gather(std::move(copy), slots), kExact);
      copy = copy_to(Device::cpu, on_gpu(rows));
      expect_close(gpu::scatter(on_gpu(rows), array_of(slots)), scatter(std::move(copy), slots), kExact);

      const Tensor weights = random_tensor(37, 2, 6);
      Tensor sum = on_gpu(x);
      gpu::add_weighted(sum, 0, on_gpu(rows), on_gpu(weights), row_of_slot);
      Tensor expected = copy_to(Device::cpu, on_gpu(x));
      add_weighted(expected, 0, rows, {weights.data<float>(), 74}, 2, slots);
      const std::vector<std::int32_t> last = {73, 71, 72, 70};  // of the last two tokens
      const DeviceArray<std::int32_t> row_of_last = array_of(inverse(last, 70));
      expect_close(gpu::gather_slots(on_gpu(x), 35, row_of_last, 2, type), gather_slots(x, last, 2, type), kExact);
      gpu::add_weighted(sum, 35, on_gpu(rows.rows(0, 4)), on_gpu(weights.rows(35, 37)), row_of_last);
      add_weighted(expected, 35, rows.rows(0, 4), {weights.data<float>(), 74}, 2, last);
      expect_close(sum, expected, kF32);
      gpu::add_rows(sum, on_gpu(x));
      add_rows(expected, x);
      expect_close(sum, expected, kF32);
    }
  }
}

TEST(GpuKernelsTest, RouterLogitsAreThoseOfTheCpuAndARowsBitsItsOwn) {
  for (const std::int64_t d : {4, 70, 100, 2048}) {
    for (const std::int64_t n_experts : {1, 8, 13, 16, 31, 60, 64, 130}) {
      const Tensor h = random_tensor(77, d, 3);
      const Tensor weights = random_tensor(n_experts, d, 4);
      const Tensor found = gpu::router_logits(on_gpu(h), on_gpu(weights));
      const float scale = std::sqrt(static_cast<float>(d));
      Tensor expected = matmul(h, PackedWeights(weights));
      Tensor scaled = copy_to(Device::cpu, found);
      for (std::int64_t i = 0; i < 77 * n_experts; ++i) {
        expected.data<float>()[i] /= scale;
        scaled.data<float>()[i] /= scale;
      }
      expect_close(scaled, expected, kF32);
      const Tensor alone = copy_to(Device::cpu, gpu::router_logits(on_gpu(h.rows(40, 41)), on_gpu(weights)));
      EXPECT_EQ(std::memcmp(alone.bytes(), copy_to(Device::cpu, found).rows(40, 41).bytes(),
                            static_cast<std::size_t>(alone.row_bytes())),
                0)
          << d << " " << n_experts;
    }
  }
}

TEST(GpuKernelsTest, RoutersDecideAsTheCpuDoes) {
  for (const std::int64_t n_experts : {8, 60, 128, 200, 512}) {
    const Tensor logits = random_tensor(301, n_experts, static_cast<unsigned>(n_experts));
    const Routing found = gpu::choose_experts(on_gpu(logits), {6, true});
    const Routing expected = choose_experts(copy_to(Device::cpu, on_gpu(logits)), {6, true}, "test");
    EXPECT_EQ(found.gpu_ids.to_host(), expected.ids);
    const Tensor weights = copy_to(Device::cpu, found.gpu_weights);
    ASSERT_EQ(weights.rows() * weights.cols(), std::ssize(expected.weights));
    for (std::size_t i = 0; i < expected.weights.size(); ++i)
      EXPECT_NEAR(weights.data<float>()[i], expected.weights[i], 2e-5F);
    expect_close(found.figures, expected.figures, 2e-5F);
    EXPECT_EQ(found.gpu_fault.to_host(), std::vector<std::int32_t>{301});
  }
  Tensor bad = random_tensor(9, 8, 1);
  bad.data<float>()[5 * 8 + 3] = NAN;
  bad.data<float>()[7 * 8] = INFINITY;
  EXPECT_EQ(gpu::choose_experts(on_gpu(bad), {2, true}).gpu_fault.to_host(), std::vector<std::int32_t>{5});
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

/// Windows of qkv, attended to by one of two kernels.
class AttentionCase {
 public:
  AttentionCase(const AttentionShape& shape, Tensor qkv, std::vector<std::int32_t> offsets)
      : shape_(shape), qkv_(std::move(qkv)), offsets_(std::move(offsets)), rope_(10000, shape.head_dim) {}

  Tensor on_cpu() { return attention(split_heads(qkv_, offsets_, shape_, rope_, DType::f32), offsets_, shape_); }

  Tensor by_own_kernel(DType type) {
    const gpu::DeviceWindows windows(offsets_);
    Tensor k = keys(type, 0);
    Tensor v = keys(type, 0);
    const Tensor q = gpu::split_heads(on_gpu(qkv_), windows, shape_, angles(windows), k, v);
    return copy_to(Device::cpu, gpu::attention(q, k, v, windows, shape_));
  }

  Tensor by(const gpu::FusedAttention& fused) {
    const gpu::DeviceWindows windows(offsets_);
    const gpu::PackedWindows packed(gpu::lay_out(offsets_, shape_));
    Tensor k = keys(DType::bf16, packed.spare_rows);
    Tensor v = keys(DType::bf16, packed.spare_rows);
    Tensor q = gpu::split_heads(on_gpu(qkv_), windows, shape_, angles(windows), k, v, packed.spare_rows);
    for (Tensor* rows : {&q, &k, &v}) clear(*rows, qkv_.rows());
    return copy_to(Device::cpu, fused.attend(q, k, v, packed));
  }

 private:
  gpu::DeviceRope angles(const gpu::DeviceWindows& windows) {
    return gpu::copy_rope(rope_, windows.positions, shape_.head_dim);
  }
  Tensor keys(DType type, std::int64_t spare_rows) const {
    return Tensor(type, qkv_.rows() + spare_rows, std::int64_t{shape_.n_kv_heads} * shape_.head_dim, Device::gpu);
  }

  AttentionShape shape_;
  Tensor qkv_;
  std::vector<std::int32_t> offsets_;
  RopeTable rope_;
};

float worst_error(const Tensor& found, const Tensor& expected) {
  EXPECT_EQ(found.rows(), expected.rows());
  EXPECT_EQ(found.cols(), expected.cols());
  float worst = 0;
  for (std::int64_t i = 0; i < expected.rows() * expected.cols(); ++i) {
    const float error = std::fabs(element(found, i) - element(expected, i));
    worst = error <= worst ? worst : error;  // NaN too
  }
  return worst;
}

constexpr float kBf16Attention = 0.04F;

/// Shapes of heads of those widths, with each mask and cap.
std::vector<AttentionShape> shapes_of_heads(std::span<const int> widths) {
  std::vector<AttentionShape> shapes;
  for (const int head_dim : widths)
    for (const int sliding_window : {0, 50})
      for (const float softcap : {0.0F, 20.0F})
        shapes.push_back({.n_heads = 4,
                          .n_kv_heads = 2,
                          .head_dim = head_dim,
                          .sliding_window = sliding_window,
                          .scale = 0,
                          .softcap = softcap});
  return shapes;
}

std::string text_of(const AttentionShape& shape) {
  return std::to_string(shape.head_dim) + " " + std::to_string(shape.sliding_window) + " " +
         std::to_string(shape.softcap);
}

const std::vector<std::int32_t> kWindows = {0, 1, 17, 82, 146, 400};

TEST(GpuKernelsTest, AttentionIsThatOfTheCpu) {
  for (const AttentionShape& shape : shapes_of_heads(std::array{32, 64, 80, 128, 256})) {
    AttentionCase windows(shape, random_tensor(kWindows.back(), shape.qkv_columns(), 9), kWindows);
    const Tensor expected = windows.on_cpu();
    EXPECT_LE(worst_error(windows.by_own_kernel(DType::f32), expected), 2e-5F) << text_of(shape);
    EXPECT_LE(worst_error(windows.by_own_kernel(DType::bf16), expected), kBf16Attention) << text_of(shape);
  }
}

/// Of heads of 128 columns, so that every test asks for the same graph.
std::optional<std::string> why_no_cudnn() {
  return why_not_cudnn({.n_heads = 4, .n_kv_heads = 2, .head_dim = 128}, kWindows.back());
}

TEST(GpuKernelsTest, AttentionOfCudnnIsThatOfTheCpuAndOfOurOwnKernel) {
  if (const auto reason = why_no_cudnn()) GTEST_SKIP() << *reason;
  for (const AttentionShape& shape : shapes_of_heads(std::array{64, 128})) {
    AttentionCase windows(shape, random_tensor(kWindows.back(), shape.qkv_columns(), 9), kWindows);
    const Tensor found = windows.by(gpu::FusedAttention(shape, kWindows.back()));
    EXPECT_LE(worst_error(found, windows.on_cpu()), kBf16Attention) << text_of(shape);
    EXPECT_LE(worst_error(found, windows.by_own_kernel(DType::bf16)), kBf16Attention) << text_of(shape);
  }
}

// Another number of windows, another longest one: other graphs.
TEST(GpuKernelsTest, ARowOfCudnnsAttentionHasBitsOfItsOwn) {
  if (const auto reason = why_no_cudnn()) GTEST_SKIP() << *reason;
  for (const AttentionShape& shape : shapes_of_heads(std::array{64, 128})) {
    const Tensor qkv = random_tensor(kWindows.back(), shape.qkv_columns(), 9);
    for (const std::int64_t context : {std::int64_t{1}, std::int64_t{4096}}) {
      const gpu::FusedAttention fused(shape, context);
      const Tensor together = AttentionCase(shape, copy_to(Device::cpu, on_gpu(qkv)), kWindows).by(fused);
      for (std::size_t w = 0; w + 1 < kWindows.size(); ++w) {
        const std::int32_t n = kWindows[w + 1] - kWindows[w];
        Tensor rows = copy_to(Device::cpu, on_gpu(qkv).rows(kWindows[w], kWindows[w + 1]));
        const Tensor alone = AttentionCase(shape, std::move(rows), {0, n}).by(fused);
        EXPECT_EQ(std::memcmp(alone.bytes(), together.rows(kWindows[w], kWindows[w + 1]).bytes(),
                              static_cast<std::size_t>(n * alone.row_bytes())),
                  0)
            << text_of(shape) << ", context " << context << ", window " << w;
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

/// The same rows, gate's and up's in the turns of that kind.
Tensor in_turns(const Tensor& gate_up, GroupedMatmulKind kind, std::int64_t n_experts) {
  const std::int64_t d_ff = gate_up.rows() / n_experts / 2;
  const std::int64_t turn = rows_of_a_turn(kind, d_ff);
  Tensor turned(gate_up.dtype(), gate_up.rows(), gate_up.cols());
  for (std::int64_t row = 0; row < gate_up.rows(); ++row) {
    const std::int64_t expert = row / (2 * d_ff);
    const std::int64_t own = row % d_ff;
    const bool is_up = row % (2 * d_ff) >= d_ff;
    const std::int64_t to = expert * 2 * d_ff + own / turn * 2 * turn + own % turn + (is_up ? turn : 0);
    std::ranges::copy(gate_up.view().row<Bf16>(row), turned.row<Bf16>(to).begin());
  }
  return turned;
}

void expect_experts_of_the_cpu_and_bits_of_a_row_its_own(GroupedMatmulKind kind, Activation activation) {
  constexpr std::int64_t kExperts = 4;
  constexpr std::int64_t kWidth = 256;
  constexpr std::int64_t kInner = 192;
  const Tensor rows = random_tensor(700, kWidth, 14, DType::bf16);
  const Tensor gate_up = random_weights(kExperts * 2 * kInner, kWidth, 15, DType::bf16);
  const Tensor down = random_weights(kExperts * kWidth, kInner, 16, DType::bf16);
  const Tensor gate_up_there = on_gpu(in_turns(gate_up, kind, kExperts));
  const Tensor down_there = on_gpu(down);
  const gpu::GatedExperts experts =
      make_gated_experts(kind, {gate_up_there, kExperts}, {down_there, kExperts}, activation);
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
          const double activated = activation == Activation::silu ? gate / (1 + std::exp(-gate))
                                                                  : 0.5 * gate * (1 + std::erf(gate / std::sqrt(2.0)));
          expected += activated * up * element(down, (e * kWidth + c) * kInner + f);
        }
        EXPECT_NEAR(element(found, row * kWidth + c), expected, 0.03 * std::max(1.0, std::fabs(expected))) << row;
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

TEST(GpuKernelsTest, ExpertsAreThoseOfTheCpuAndARowsBitsItsOwn) {
  for (const Activation activation : {Activation::silu, Activation::gelu})
    expect_experts_of_the_cpu_and_bits_of_a_row_its_own(GroupedMatmulKind::cublaslt, activation);
}

TEST(GpuKernelsTest, ExpertsOfCudnnAreThoseOfTheCpuAndARowsBitsItsOwn) {
  if (const auto reason = why_no_cudnn()) GTEST_SKIP() << *reason;
  for (const Activation activation : {Activation::silu, Activation::gelu})
    expect_experts_of_the_cpu_and_bits_of_a_row_its_own(GroupedMatmulKind::cudnn, activation);
}

TEST(GpuKernelsTest, ExpertsOfCutlassAreThoseOfTheCpuAndARowsBitsItsOwn) {
  if (const auto reason = gpu::why_no_cutlass()) GTEST_SKIP() << *reason;
  for (const Activation activation : {Activation::silu, Activation::gelu})
    expect_experts_of_the_cpu_and_bits_of_a_row_its_own(GroupedMatmulKind::cutlass, activation);
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
