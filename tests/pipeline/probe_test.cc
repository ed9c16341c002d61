// Run on 1 to 4 ranks: what experts give for a row does not depend on who holds them, nor sums on who made them.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "pipeline/experiments/exact_sum.h"
#include "pipeline/experiments/forced_experts.h"
#include "pipeline/experiments/probe_sums.h"
#include "pipeline/kernels/rows.h"
#include "tests/support/golden_model.h"

namespace switchyard {
namespace {

using testing_support::GoldenModel;

Tensor random_rows(std::int64_t n, std::int64_t width, unsigned seed, float deviation = 1) {
  Tensor rows(DType::f32, n, width);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  for (std::int64_t i = 0; i < n * width; ++i) rows.data<float>()[i] = normal(random);
  return rows;
}

Tensor as_type(TensorView rows, DType type) {
  std::vector<std::int32_t> in_order;
  for (std::int32_t i = 0; i < rows.rows(); ++i) in_order.push_back(i);
  return gather_slots(rows, in_order, 1, type);
}

TEST(ExactSum, IsTheSameInAnyOrder) {
  std::vector<double> values;
  std::mt19937 random(1);
  for (int i = 0; i < 1000; ++i) values.push_back(std::ldexp(static_cast<double>(random()) - 0x1p31, i % 40 - 32));
  ExactSum forward;
  ExactSum backward;
  ExactSum halves;
  double plain = 0;
  for (const double v : values) {
    forward.add(v);
    plain += v;
  }
  for (std::size_t i = values.size(); i-- > 0;) (i % 2 == 0 ? backward : halves).add(values[i]);
  backward.add(halves);
  EXPECT_EQ(forward.value(), backward.value());
  EXPECT_NEAR(forward.value(), plain, 1e-9 * std::abs(plain));
}

TEST(DescendingRanks, TiesGoToTheFirst) {
  EXPECT_EQ(descending_ranks(std::vector<double>{1, 3, 0, 3, 1}), (std::vector<std::size_t>{2, 0, 4, 1, 3}));
}

class GateActivation : public ::testing::TestWithParam<std::pair<DType, Activation>> {};

TEST_P(GateActivation, IsThatOfGateAlone) {
  const auto [type, activation] = GetParam();
  if (type == DType::bf16 && best_precision() != Precision::bf16) GTEST_SKIP() << "no bf16";
  constexpr std::int64_t kRows = 131;
  constexpr std::int64_t kWidth = 96;
  constexpr std::int64_t kStates = 333;
  const Tensor gate = as_type(random_rows(kStates, kWidth, 1, 0.1F), type);
  const Tensor up = as_type(random_rows(kStates, kWidth, 2), type);
  const GatedFfn expert(gate, up, as_type(random_rows(kWidth, kStates, 3), type), activation);
  const Tensor rows = as_type(random_rows(kRows, kWidth, 4), type);
  const Tensor states = gate_activation(rows, expert);
  ASSERT_EQ(states.rows(), kRows);
  ASSERT_EQ(states.cols(), kStates);
  const auto at = [](const Tensor& t, std::int64_t r, std::int64_t c) {
    return t.dtype() == DType::f32 ? t.row<float>(r)[static_cast<std::size_t>(c)]
                                   : static_cast<float>(t.row<Bf16>(r)[static_cast<std::size_t>(c)]);
  };
  for (std::int64_t r = 0; r < kRows; ++r)
    for (std::int64_t c = 0; c < kStates; ++c) {
      double g = 0;
      for (std::int64_t i = 0; i < kWidth; ++i) g += static_cast<double>(at(rows, r, i)) * at(gate, c, i);
      const double expected =
          activation == Activation::silu ? g / (1 + std::exp(-g)) : g * std::erfc(-g / std::sqrt(2.0)) / 2;
      ASSERT_NEAR(at(states, r, c), expected, 1e-5) << r << " " << c;
    }
  const Tensor alone = gate_activation(rows.rows(100, 101), expert);
  EXPECT_EQ(std::memcmp(alone.bytes(), states.rows(100, 101).bytes(), static_cast<std::size_t>(alone.row_bytes())), 0);
  EXPECT_EQ(gate_activation(rows.rows(0, 0), expert).rows(), 0);
}

INSTANTIATE_TEST_SUITE_P(Types, GateActivation,
                         ::testing::Values(std::pair{DType::f32, Activation::silu},
                                           std::pair{DType::bf16, Activation::silu},
                                           std::pair{DType::f32, Activation::gelu}));

struct Case {
  Precision precision;
  std::int64_t chunk_bytes;
  bool round_robin;
};

class ForcedExperts : public ::testing::TestWithParam<Case> {};

TEST_P(ForcedExperts, AreThoseOfOneRank) {
  const Case test = GetParam();
  if (test.precision == Precision::bf16 && best_precision() != Precision::bf16) GTEST_SKIP() << "no bf16";
  const Communicator comm = Communicator::world();
  const GoldenModel golden("golden/mixtral");
  const Checkpoint checkpoint(golden.folder());
  const ModelConfig config = ModelConfig::parse(checkpoint.config_text(), golden.folder().string());
  const Communicator self = Communicator::self();
  const auto alone = make_transport("local", self);
  const auto whole_placement = ExpertPlacement::contiguous(config.n_layers, config.n_experts, 1);
  Model whole(checkpoint, config, whole_placement, self, *alone, {test.precision});
  const auto placement = test.round_robin ? ExpertPlacement::round_robin(config.n_layers, config.n_experts, comm.size())
                                          : ExpertPlacement::contiguous(config.n_layers, config.n_experts, comm.size());
  const auto transport = make_transport("mpi", comm);
  Model model(checkpoint, config, placement, comm, *transport, {test.precision});

  const DType type = test.precision == Precision::f32 ? DType::f32 : DType::bf16;
  const std::int64_t n = comm.rank() == 1 ? 0 : 9 + 3 * comm.rank();  // a rank without rows among them
  const Tensor rows = as_type(random_rows(n, config.d_model, static_cast<unsigned>(comm.rank()) + 7), type);
  constexpr int kLayer = 1;
  const std::int64_t width = config.d_model;
  std::int64_t tokens = 0;
  std::int64_t states_seen = 0;
  int chunks = 0;
  const ForcedExpertsSink sink = {
      .states = [&](int, TensorView states) { states_seen += states.rows(); },
      .outputs =
          [&](std::int64_t first, const ExpertOutputs& outputs) {
            EXPECT_EQ(first, tokens);
            ++chunks;
            std::vector<float> token(static_cast<std::size_t>(config.n_experts * width));
            for (std::int64_t t = 0; t < outputs.n_tokens(); ++t, ++tokens) {
              outputs.copy_token(t, token.data());
              whole.force_experts(kLayer, rows.rows(tokens, tokens + 1), [&](int e, TensorView, TensorView expected) {
                for (std::int64_t i = 0; i < width; ++i) {
                  const auto at = static_cast<std::size_t>(i);
                  const float value =
                      type == DType::f32 ? expected.row<float>(0)[at] : static_cast<float>(expected.row<Bf16>(0)[at]);
                  ASSERT_EQ(token[static_cast<std::size_t>(e * width + i)], value) << tokens << " " << e << " " << i;
                }
              });
            }
          },
  };
  run_forced_experts(model, placement.layer(kLayer), kLayer, rows, sink, comm, test.chunk_bytes);
  EXPECT_EQ(tokens, n);
  EXPECT_EQ(states_seen,
            comm.sum(n) * static_cast<std::int64_t>(placement.layer(kLayer).experts_of(comm.rank()).size()));
  EXPECT_EQ(chunks, n == 0 ? 0 : test.chunk_bytes == 1 ? n : 1);
}

INSTANTIATE_TEST_SUITE_P(All, ForcedExperts,
                         ::testing::Values(Case{Precision::f32, 64 << 20, false}, Case{Precision::f32, 1, true},
                                           Case{Precision::bf16, 1, false}));

}  // namespace
}  // namespace switchyard
