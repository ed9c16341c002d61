/// The arithmetic of the GPU's kernels, run on the host over HostWarp, against the kernels of the CPU.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <type_traits>
#include <vector>

#include "pipeline/kernels/attention.h"
#include "pipeline/kernels/cuda/activation_core.h"
#include "pipeline/kernels/cuda/attention_core.h"
#include "pipeline/kernels/cuda/gated_core.h"
#include "pipeline/kernels/cuda/router_core.h"
#include "pipeline/kernels/cuda/rows_core.h"
#include "pipeline/kernels/cuda/token_loss_core.h"
#include "pipeline/kernels/leaf_loops.h"
#include "pipeline/kernels/matmul.h"
#include "pipeline/kernels/router.h"
#include "pipeline/kernels/rows.h"
#include "pipeline/kernels/token_loss.h"

namespace switchyard {
namespace {

using cores::HostWarp;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Calls work with each width of packs that rows of so many columns can be made of.
template <typename Work>
void for_widths(int columns, Work work) {
  work(std::integral_constant<int, 1>());
  if (columns % cores::kPackWidth == 0) work(std::integral_constant<int, cores::kPackWidth>());
}

Tensor random_tensor(std::int64_t rows, std::int64_t cols, unsigned seed, float step = 0) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Tensor tensor(DType::f32, rows, cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    const float value = normal(generator);
    tensor.data<float>()[i] = step > 0 ? std::round(value / step) * step : value;  // a step makes ties
  }
  return tensor;
}

TEST(WarpTest, RoundsAsTheCpuDoes) {
  std::mt19937 generator(1);
  for (int i = 0; i < 100000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(generator()));
    Bf16 found;
    cores::store(&found, value);
    ASSERT_EQ(found.bits, Bf16(value).bits) << value;
    const float widened = cores::widen(found);
    ASSERT_EQ(std::bit_cast<std::uint32_t>(widened), std::bit_cast<std::uint32_t>(static_cast<float>(found)));
  }
}

TEST(WarpTest, RankingKeysOrderByValueThenIndex) {
  const std::vector<float> ascending = {-kInfinity, -2.5F, -1e-40F, 0.0F, 1e-40F, 3.0F, kInfinity};
  for (std::size_t i = 0; i + 1 < ascending.size(); ++i)
    EXPECT_LT(cores::ranking_key(ascending[i], 0), cores::ranking_key(ascending[i + 1], 9)) << i;
  EXPECT_GT(cores::ranking_key(1.0F, 4), cores::ranking_key(1.0F, 5));
  EXPECT_EQ(cores::ranking_key(-0.0F, 4), cores::ranking_key(0.0F, 4));
  EXPECT_LT(cores::ranking_key(kNaN, 0), cores::ranking_key(-kInfinity, 1000));
  EXPECT_LT(cores::ranking_key(-kNaN, 0), cores::ranking_key(-kInfinity, 1000));
  EXPECT_EQ(cores::index_of_key(cores::ranking_key(-7.0F, 123)), 123U);
}

/// A router's results, of the core.
struct CoreRouting {
  std::vector<float> probabilities, weights, figures;
  std::vector<std::int32_t> ids;
  bool finite = false;
};

CoreRouting core_route(std::span<const float> logits, int top_k, bool renormalise, int without) {
  CoreRouting out;
  out.probabilities.resize(logits.size());
  out.weights.resize(static_cast<std::size_t>(top_k));
  out.ids.resize(static_cast<std::size_t>(top_k));
  out.figures.resize(4);
  out.finite = cores::route_row<16>(HostWarp{}, {.logits = logits.data(),
                                                 .n_experts = static_cast<int>(logits.size()),
                                                 .top_k = top_k,
                                                 .renormalise = renormalise,
                                                 .without = without,
                                                 .probabilities = out.probabilities.data(),
                                                 .ids = out.ids.data(),
                                                 .weights = out.weights.data(),
                                                 .entropy = &out.figures[0],
                                                 .margin = &out.figures[1],
                                                 .top_probability = &out.figures[2],
                                                 .log_sum_exp = &out.figures[3]});
  return out;
}

void expect_near(std::span<const float> found, std::span<const float> expected, float bound) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], bound) << i;
}

class RouterCoreTest : public testing::TestWithParam<int> {};

TEST_P(RouterCoreTest, DecidesAsTheCpuDoes) {
  const int n_experts = GetParam();
  constexpr std::int64_t kTokens = 60;
  std::int64_t compared = 0;
  for (const int top_k : {1, 2, 6, 8}) {
    for (const bool renormalise : {true, false}) {
      for (const bool leave_out : {false, true}) {
        if (top_k + (leave_out ? 1 : 0) > n_experts) continue;
        // Steps of a quarter: most tokens have ties, and equal logits have equal probabilities on both sides.
        const Tensor logits = random_tensor(kTokens, n_experts, static_cast<unsigned>(n_experts + top_k), 0.25F);
        std::vector<std::int32_t> without;
        if (leave_out)
          for (std::int64_t t = 0; t < kTokens; ++t) without.push_back(static_cast<std::int32_t>(t) % n_experts);
        Tensor copy(DType::f32, kTokens, n_experts);
        std::copy_n(logits.data<float>(), kTokens * n_experts, copy.data<float>());
        const Routing expected = choose_experts(std::move(copy), {top_k, renormalise}, "test", without);
        for (std::int64_t t = 0; t < kTokens; ++t, ++compared) {
          const auto i = static_cast<std::size_t>(t);
          const auto k = static_cast<std::size_t>(top_k);
          const CoreRouting found = core_route(logits.row<float>(t), top_k, renormalise, leave_out ? without[i] : -1);
          ASSERT_TRUE(found.finite);
          for (std::size_t j = 0; j < k; ++j) EXPECT_EQ(found.ids[j], expected.ids[i * k + j]) << t << " " << j;
          expect_near(found.weights, std::span(expected.weights).subspan(i * k, k), 2e-6F);
          expect_near(found.probabilities, expected.probabilities.view().row<float>(t), 1e-6F);
          const float figures[] = {
              expected.figure(RoutingFigure::entropy)[i], expected.figure(RoutingFigure::margin)[i],
              expected.figure(RoutingFigure::top_probability)[i], expected.figure(RoutingFigure::log_sum_exp)[i]};
          expect_near(found.figures, figures, 1e-5F);
        }
      }
    }
  }
  EXPECT_GT(compared, 2 * kTokens);
}

INSTANTIATE_TEST_SUITE_P(Experts, RouterCoreTest, testing::Values(2, 8, 33, 60, 64, 128, 512));

TEST(RouterCoreTest, AllEqualLogitsChooseTheLowestIds) {
  for (const float logit : {0.0F, -0.0F, 5.0F}) {
    std::vector<float> logits(40, logit);
    logits[7] = -logit * 0.0F;  // a zero of either sign beside zeros
    if (logit == 5.0F) logits[7] = 5.0F;
    EXPECT_EQ(core_route(logits, 3, true, -1).ids, (std::vector<std::int32_t>{0, 1, 2}));
  }
}

TEST(RouterCoreTest, AllExpertsMayBeChosen) {
  const std::vector<float> logits = {1, 3, 2};
  const CoreRouting found = core_route(logits, 3, true, -1);
  EXPECT_EQ(found.ids, (std::vector<std::int32_t>{1, 2, 0}));
  EXPECT_EQ(found.figures[1], 0.0F);
  EXPECT_NEAR(found.weights[0] + found.weights[1] + found.weights[2], 1.0F, 1e-6F);
}

TEST(RouterCoreTest, LogitsThatAreNoNumbersAreSeen) {
  for (const float bad : {kNaN, -kNaN, kInfinity, -kInfinity}) {
    for (const std::size_t at : {std::size_t{0}, std::size_t{31}, std::size_t{32}, std::size_t{69}}) {
      std::vector<float> logits(70, 1.0F);
      logits[at] = bad;
      EXPECT_FALSE(core_route(logits, 2, true, -1).finite) << bad << " at " << at;
    }
  }
}

TEST(RowsCoreTest, RmsNormIsThatOfTheCpu) {
  for (const int d : {1, 31, 32, 100, 2048}) {
    const Tensor x = random_tensor(3, d, 5);
    const Tensor weight = random_tensor(1, d, 6);
    for (const DType type : {DType::f32, DType::bf16}) {
      const Tensor expected = rms_norm(x, weight.view().row<float>(0), 1e-5F, type);
      for (std::int64_t t = 0; t < 3; ++t) {
        std::vector<float> f32(static_cast<std::size_t>(d));
        std::vector<Bf16> bf16(static_cast<std::size_t>(d));
        const float* row = x.data<float>() + t * d;
        for_widths(d, [&]<int kWidth>(std::integral_constant<int, kWidth>) {
          if (type == DType::f32) {
            cores::rms_norm_row<kWidth>(HostWarp{}, row, weight.data<float>(), 1e-5F, d, f32.data());
          } else {
            cores::rms_norm_row<kWidth>(HostWarp{}, row, weight.data<float>(), 1e-5F, d, bf16.data());
          }
          for (std::int64_t i = 0; i < d; ++i) {
            const auto c = static_cast<std::size_t>(i);
            const float found = type == DType::f32 ? f32[c] : static_cast<float>(bf16[c]);
            const float wanted = type == DType::f32 ? expected.data<float>()[t * d + i]
                                                    : static_cast<float>(expected.data<Bf16>()[t * d + i]);
            EXPECT_NEAR(found, wanted, (type == DType::f32 ? 3e-6F : 8e-3F) * std::max(1.0F, std::fabs(wanted)));
          }
        });
      }
    }
  }
}

TEST(RowsCoreTest, WeightedSumsAreThoseOfTheCpu) {
  constexpr int kTokens = 5;
  constexpr int kTopK = 3;
  constexpr int kColumns = 20;
  const Tensor rows = random_tensor(kTokens * kTopK, kColumns, 7);
  const Tensor weights = random_tensor(kTokens, kTopK, 8);
  std::vector<std::int32_t> slots(kTokens * kTopK);  // row i belongs to slots[i]
  std::iota(slots.begin(), slots.end(), 0);
  std::shuffle(slots.begin(), slots.end(), std::mt19937(9));
  std::vector<std::int32_t> row_of_slot(slots.size());
  for (std::size_t i = 0; i < slots.size(); ++i)
    row_of_slot[static_cast<std::size_t>(slots[i])] = static_cast<std::int32_t>(i);
  Tensor expected(DType::f32, kTokens, kColumns);
  std::fill_n(expected.data<float>(), kTokens * kColumns, 0.0F);
  add_weighted(expected, 0, rows, {weights.data<float>(), kTokens * kTopK}, kTopK, slots);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for_widths(kColumns, [&]<int kWidth>(std::integral_constant<int, kWidth>) {
      for (int c = 0; c < kColumns; c += kWidth) {
        const auto found = cores::weighted_sum<kWidth>(rows.data<float>(), kColumns, row_of_slot.data() + t * kTopK,
                                                       weights.data<float>() + t * kTopK, kTopK, c);
        for (int j = 0; j < kWidth; ++j)
          EXPECT_NEAR(found.at[j], expected.row<float>(t)[static_cast<std::size_t>(c + j)], 1e-6F);
      }
    });
  }
}

TEST(ActivationCoreTest, ActivationsAreThoseOfTheCpu) {
  std::vector<float> gate;
  for (float x = -30; x <= 30; x += 0.01F) gate.push_back(x);
  const std::vector<float> up(gate.size(), 1.0F);
  std::vector<float> silu(gate.size());
  std::vector<float> gelu(gate.size());
  leaf().f32.silu_gate(gate.data(), up.data(), silu.data(), static_cast<std::int64_t>(gate.size()));
  leaf().f32.gelu_gate(gate.data(), up.data(), gelu.data(), static_cast<std::int64_t>(gate.size()));
  for (std::size_t i = 0; i < gate.size(); ++i) {
    EXPECT_NEAR(cores::silu(gate[i]), silu[i], 1e-6F * std::max(1.0F, std::fabs(gate[i])));
    EXPECT_NEAR(cores::gelu(gate[i]), gelu[i], 1e-6F * std::max(1.0F, std::fabs(gate[i])));
  }
}

/// 8 rows of blocks of 8 gates and of 8 ups in turns -> [8, 32], as lanes write it.
template <Activation kActivation>
std::vector<Bf16> gate_by_lanes(const Tensor& sums) {
  HostWarp::Lanes<cores::GatedSums> own;
  for (int lane = 0; lane < cores::kLanes; ++lane) {
    for (int block = 0; block < 4; ++block) {
      for (int i = 0; i < 2; ++i) {
        const float* const gate = sums.data<float>() + lane / 4 * 64 + block * 16 + lane % 4 * 2 + i;
        own[lane].gates[block][i] = gate[0];
        own[lane].ups[block][i] = gate[8];
      }
    }
  }
  const auto gated = cores::gate_blocks<kActivation>(HostWarp{}, own);
  std::vector<Bf16> out(8 * 32);
  for (int lane = 0; lane < cores::kLanes; ++lane)
    std::memcpy(&out[static_cast<std::size_t>(lane / 4 * 32 + lane % 4 * 8)], gated[lane].at, sizeof(cores::Quad));
  return out;
}

TEST(GatedCoreTest, LanesHoldWhatFollowsOneAnotherInARow) {
  const Tensor sums = random_tensor(8, 64, 21);
  const std::vector<Bf16> by_silu = gate_by_lanes<Activation::silu>(sums);
  const std::vector<Bf16> by_gelu = gate_by_lanes<Activation::gelu>(sums);
  for (int row = 0; row < 8; ++row) {
    for (int column = 0; column < 32; ++column) {
      const float* const gate = sums.data<float>() + row * 64 + column / 8 * 16 + column % 8;
      const auto at = static_cast<std::size_t>(row * 32 + column);
      EXPECT_EQ(by_silu[at].bits, Bf16(cores::silu(gate[0]) * gate[8]).bits) << row << " " << column;
      EXPECT_EQ(by_gelu[at].bits, Bf16(cores::gelu(gate[0]) * gate[8]).bits) << row << " " << column;
    }
  }
}

TEST(TokenLossCoreTest, ChunksGiveTheLossAndPredictionOfTheCpu) {
  constexpr std::int64_t kTokens = 40;
  constexpr std::int64_t kWidth = 16;
  constexpr std::int64_t kVocabulary = 203;
  const Tensor h = random_tensor(kTokens, kWidth, 10, 0.5F);  // products then have ties
  const Tensor weights = random_tensor(kVocabulary, kWidth, 11, 0.5F);
  const PackedWeights head(weights);
  std::vector<std::int64_t> targets(kTokens);
  for (std::int64_t t = 0; t < kTokens; ++t)
    targets[static_cast<std::size_t>(t)] = t == 3 ? -1 : t == 4 ? kPredictedTarget : t * 5 % kVocabulary;
  const TokenLosses expected = token_loss(h, head, targets);
  const Tensor logits = matmul(h, head);
  for (const int chunk : {1, 7, 64, 203}) {  // of the width of packs, or not
    for (std::int64_t t = 0; t < kTokens; ++t) {
      const auto i = static_cast<std::size_t>(t);
      cores::RunningLoss running = cores::begin_loss();
      for (std::int64_t begin = 0; begin < kVocabulary; begin += chunk) {
        const auto n = static_cast<int>(std::min<std::int64_t>(chunk, kVocabulary - begin));
        const float* from = logits.data<float>() + t * kVocabulary + begin;
        const std::vector<float> own(from, from + n);  // aligned
        const cores::RunningLoss before = running;
        for_widths(n, [&]<int kWidth>(std::integral_constant<int, kWidth>) {
          running = before;
          cores::take_logits<kWidth>(HostWarp{}, own.data(), n, begin, targets[i], &running);
        });
      }
      EXPECT_EQ(running.predicted, expected.predicted[i]) << t << " in chunks of " << chunk;
      const float loss = cores::loss_of(running, targets[i] == kPredictedTarget);
      if (targets[i] == -1) {
        EXPECT_TRUE(std::isnan(loss));
      } else {
        EXPECT_NEAR(loss, expected.loss[i], 1e-4F);
      }
    }
  }
}

TEST(TokenLossCoreTest, ALogitOfMinusInfinityCountsNothing) {
  std::vector<float> logits(256, 0.5F);
  std::fill_n(logits.begin(), 128, -kInfinity);
  for_widths(256, [&]<int kWidth>(std::integral_constant<int, kWidth>) {
    cores::RunningLoss running = cores::begin_loss();
    cores::take_logits<kWidth>(HostWarp{}, logits.data(), 256, 0, 200, &running);
    EXPECT_EQ(running.predicted, 128U);
    EXPECT_NEAR(cores::loss_of(running, false), std::log(128.0F), 1e-5F);
  });
}

struct AttentionCase {
  int head_dim, sliding_window;
  float softcap;
};

/// One window through both kernels and the CPU's.
class AttentionCoreTest : public testing::TestWithParam<AttentionCase> {
 protected:
  static constexpr int kHeads = 4;
  static constexpr int kKeyHeads = 2;

  AttentionShape shape() const {
    return {.n_heads = kHeads,
            .n_kv_heads = kKeyHeads,
            .head_dim = GetParam().head_dim,
            .sliding_window = GetParam().sliding_window,
            .scale = 0.11F,
            .softcap = GetParam().softcap};
  }
  cores::AttentionRule rule() const { return {GetParam().sliding_window, 0.11F, GetParam().softcap}; }

  /// Queries, keys and values by token: [n, heads * head_dim]; `spare` rows of keys and values follow.
  template <typename T>
  struct Split {
    std::vector<T> q, k, v;
  };
  template <typename T>
  Split<T> split(const Tensor& qkv, RopeTable& rope, int spare) const {
    const cores::HeadCounts heads = {kHeads, kKeyHeads, GetParam().head_dim};
    const std::int64_t n = qkv.rows();
    rope.grow(n);
    Split<T> out;
    out.q.resize(static_cast<std::size_t>(n * kHeads * heads.head_dim));
    // What follows the last key must not matter: keys NaN, values any number.
    T nan;
    cores::store(&nan, kNaN);
    T number;
    cores::store(&number, 77.0F);
    out.k.assign(static_cast<std::size_t>((n + spare) * kKeyHeads * heads.head_dim), nan);
    out.v.assign(out.k.size(), number);
    for (std::int64_t t = 0; t < n; ++t) {
      for (int pair = 0; pair < heads.pairs(); ++pair) {
        cores::split_pair(qkv.view().row<float>(t).data(), heads, pair, rope.cosines(t).data(), rope.sines(t).data(),
                          out.q.data() + t * kHeads * heads.head_dim, out.k.data() + t * kKeyHeads * heads.head_dim,
                          out.v.data() + t * kKeyHeads * heads.head_dim);
      }
    }
    return out;
  }

  template <typename T>
  Tensor plain(const Tensor& qkv, RopeTable& rope) const {
    const int d = GetParam().head_dim;
    const Split<T> heads = split<T>(qkv, rope, 0);
    Tensor out(dtype_of<T>(), qkv.rows(), kHeads * d);
    for (std::int64_t t = 0; t < qkv.rows(); ++t) {
      for (int head = 0; head < kHeads; ++head) {
        const int key_head = head / (kHeads / kKeyHeads);
        cores::attend_query<8>(HostWarp{}, heads.q.data() + (t * kHeads + head) * d, heads.k.data() + key_head * d,
                               heads.v.data() + key_head * d, kKeyHeads * d, static_cast<int>(t), d, rule(),
                               out.data<T>() + (t * kHeads + head) * d);
      }
    }
    return out;
  }

  template <int kHeadDim>
  Tensor on_matrix_units(const Tensor& qkv, RopeTable& rope) const {
    constexpr int kKeys = 64;
    const auto n = static_cast<int>(qkv.rows());
    const Split<Bf16> heads = split<Bf16>(qkv, rope, kKeys);
    Tensor out(DType::bf16, n, kHeads * kHeadDim);
    for (int head = 0; head < kHeads; ++head) {
      const int key_head = head / (kHeads / kKeyHeads);
      for (int query0 = 0; query0 < n; query0 += cores::kQueriesOfWarp) {
        cores::QueryTile<kHeadDim, HostWarp> tile;
        const std::int64_t at = (static_cast<std::int64_t>(query0) * kHeads + head) * kHeadDim;
        cores::begin_queries(HostWarp{}, tile, heads.q.data() + at, kHeads * kHeadDim, n - query0);
        const int key_begin = cores::first_key(query0, rule()) / kKeys * kKeys;
        for (int key0 = key_begin; key0 < std::min(n, query0 + cores::kQueriesOfWarp); key0 += kKeys) {
          const std::int64_t from = (static_cast<std::int64_t>(key0) * kKeyHeads + key_head) * kHeadDim;
          cores::attend_tile<kHeadDim, kKeys>(HostWarp{}, tile, heads.k.data() + from, heads.v.data() + from,
                                              kKeyHeads * kHeadDim, query0, key0, rule());
        }
        cores::end_queries(HostWarp{}, tile, out.data<Bf16>() + at, kHeads * kHeadDim, n - query0);
      }
    }
    return out;
  }

  static void expect_close(const Tensor& found, const Tensor& expected, float bound) {
    ASSERT_EQ(found.rows(), expected.rows());
    ASSERT_EQ(found.cols(), expected.cols());
    float worst = 0;
    for (std::int64_t i = 0; i < found.rows() * found.cols(); ++i) {
      const float value =
          found.dtype() == DType::f32 ? found.data<float>()[i] : static_cast<float>(found.data<Bf16>()[i]);
      const float error = std::fabs(value - expected.data<float>()[i]);
      worst = error <= worst ? worst : error;  // NaN too
    }
    EXPECT_LE(worst, bound) << found.rows() << " tokens";
  }
};

constexpr int kLengths[] = {1, 7, 16, 63, 64, 65, 130, 200};

TEST_P(AttentionCoreTest, PlainlyEqualsTheCpu) {
  for (const int n : kLengths) {
    const Tensor qkv = random_tensor(n, shape().qkv_columns(), static_cast<unsigned>(n));
    RopeTable rope(10000, GetParam().head_dim);
    const std::int32_t offsets[] = {0, n};
    const Tensor expected = attention(split_heads(qkv, offsets, shape(), rope, DType::f32), offsets, shape());
    expect_close(plain<float>(qkv, rope), expected, 2e-5F);
    expect_close(plain<Bf16>(qkv, rope), expected, 0.04F);
  }
}

class MatrixUnitAttentionTest : public AttentionCoreTest {};

TEST_P(MatrixUnitAttentionTest, EqualsTheCpuAtBf16) {
  const int d = GetParam().head_dim;
  for (const int n : kLengths) {
    const Tensor qkv = random_tensor(n, shape().qkv_columns(), static_cast<unsigned>(n));
    RopeTable rope(10000, d);
    const std::int32_t offsets[] = {0, n};
    const Tensor expected = attention(split_heads(qkv, offsets, shape(), rope, DType::f32), offsets, shape());
    expect_close(d == 64 ? on_matrix_units<64>(qkv, rope) : on_matrix_units<128>(qkv, rope), expected, 0.04F);
  }
}

constexpr AttentionCase kCases[] = {{64, 0, 0},    {64, 1, 0},   {64, 32, 30}, {128, 0, 0},
                                    {128, 128, 0}, {128, 0, 30}, {128, 50, 5}};
constexpr AttentionCase kOtherHeadSizes[] = {{6, 0, 0}, {80, 0, 0}, {80, 50, 5}, {256, 33, 0}};
INSTANTIATE_TEST_SUITE_P(Shapes, AttentionCoreTest, testing::ValuesIn(kCases));
INSTANTIATE_TEST_SUITE_P(OtherHeadSizes, AttentionCoreTest, testing::ValuesIn(kOtherHeadSizes));
INSTANTIATE_TEST_SUITE_P(Shapes, MatrixUnitAttentionTest, testing::ValuesIn(kCases));

}  // namespace
}  // namespace switchyard
