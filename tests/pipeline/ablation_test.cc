#include "pipeline/experiments/ablation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "parallel/error.h"
#include "tests/support/error_text.h"
#include "tests/support/golden_model.h"
#include "tests/support/one_rank.h"

namespace switchyard {
namespace {

using ::testing::HasSubstr;
using testing_support::GoldenModel;
using testing_support::KeepAll;
using testing_support::OneRank;

const std::function<bool()> kGoOn = [] { return true; };

std::vector<int> all_experts(const ModelConfig& config) {
  std::vector<int> experts(static_cast<std::size_t>(config.n_experts));
  std::iota(experts.begin(), experts.end(), 0);
  return experts;
}

class Parts : public ::testing::TestWithParam<const char*> {};

TEST_P(Parts, OfAForwardPassGiveItsBits) {
  const GoldenModel golden(GetParam());
  OneRank one(golden.folder(), Precision::f32);
  const Batch batch = golden.batch();
  KeepAll whole;
  const TokenLosses expected = one.forward(batch, whole);
  const int layers = one.model().config().n_layers;
  int compared = 0;
  for (int cut = 0; cut <= layers; ++cut) {
    KeepAll seen;
    Tensor x = one.model().embed(batch);
    one.model().run_layers(x, batch, 0, cut, seen);
    one.model().run_layers(x, batch, cut, layers, seen);
    const TokenLosses losses = one.model().head(x, batch);
    EXPECT_EQ(std::memcmp(losses.loss.data(), expected.loss.data(), expected.loss.size() * sizeof(float)), 0);
    EXPECT_EQ(losses.predicted, expected.predicted);
    EXPECT_EQ(seen.hiddens, whole.hiddens);
    ++compared;
  }
  EXPECT_EQ(compared, layers + 1);
  EXPECT_GT(expected.loss.size(), 0U);
}

INSTANTIATE_TEST_SUITE_P(All, Parts, ::testing::Values("golden/mixtral", "golden/mistral"));

/// Arg-max of each row of logits [n, V].
std::vector<std::int32_t> arg_max(const std::vector<float>& logits, std::size_t n) {
  const auto width = static_cast<std::ptrdiff_t>(logits.size() / n);
  std::vector<std::int32_t> best;
  for (auto row = logits.begin(); row != logits.end(); row += width)
    best.push_back(static_cast<std::int32_t>(std::max_element(row, row + width) - row));
  return best;
}

TEST(AblationSweep, AZeroedExpertGivesTheReferencesTokens) {
  const GoldenModel golden("golden/mixtral");
  OneRank one(golden.folder(), Precision::f32);
  const std::vector<int> experts = all_experts(one.model().config());
  AblationSweep sweep(one.model(), {.mode = AblationMode::zero, .layers = {1}, .experts = experts});
  const Batch whole = golden.batch();
  const std::size_t n = whole.tokens.size();
  const std::vector<float> losses = golden.floats("token_loss");
  const std::vector<std::int32_t> predicted = arg_max(golden.floats("logits"), n);
  std::vector<std::vector<float>> ablated_losses;
  std::vector<std::vector<std::int32_t>> ablated_predicted;
  for (const int e : experts) {
    const std::string name = "ablate.layer1.expert" + std::to_string(e);
    ablated_losses.push_back(golden.floats(name + ".token_loss"));
    ablated_predicted.push_back(golden.integers(name + ".argmax"));
  }
  std::size_t compared = 0;
  std::size_t changed = 0;
  for (std::size_t t = 0; t < n; ++t) {
    if (whole.targets[t] < 0) continue;
    Batch batch = whole;  // the token alone is scored, so that a window's sums are the token's
    std::ranges::fill(batch.targets, -1);
    batch.targets[t] = whole.targets[t];
    WindowSums sums;
    ASSERT_TRUE(sweep.step(batch, sums, kGoOn));
    const auto w = static_cast<std::size_t>(
        std::upper_bound(batch.window_offsets.begin(), batch.window_offsets.end(), static_cast<std::int32_t>(t)) -
        batch.window_offsets.begin() - 1);
    const bool right = predicted[t] == whole.targets[t];
    EXPECT_NEAR(sums.baseline[w].loss, losses[t], 1e-4);
    EXPECT_EQ(sums.baseline[w].right, right ? 1U : 0U);
    EXPECT_EQ(std::accumulate(sums.baseline.begin(), sums.baseline.end(), std::uint64_t{0},
                              [](std::uint64_t sum, const WindowScore& s) { return sum + s.tokens; }),
              1U);
    for (std::size_t e = 0; e < experts.size(); ++e) {
      const AblatedScore& score = sums.ablated[w * experts.size() + e];
      const bool right_now = ablated_predicted[e][t] == whole.targets[t];
      EXPECT_NEAR(score.loss, ablated_losses[e][t], 1e-4) << "token " << t << ", expert " << e;
      EXPECT_EQ(score.lost, right && !right_now ? 1U : 0U);
      EXPECT_EQ(score.gained, !right && right_now ? 1U : 0U);
      changed += std::abs(ablated_losses[e][t] - losses[t]) > 1e-3F ? 1 : 0;
      ++compared;
    }
  }
  EXPECT_EQ(compared, (n - whole.window_offsets.size() + 1) * experts.size());
  EXPECT_GT(changed, compared / 10);
}

/// Makes a change at one MoE layer from probabilities alone, by sorting them.
class ByTheBook : public RoutingObserver {
 public:
  ByTheBook(AblationMode mode, int layer, int expert) : mode_(mode), layer_(layer), expert_(expert) {}
  void decide(int layer, Routing& routing) override {
    if (layer != layer_) return;
    const auto k = static_cast<std::size_t>(routing.top_k);
    for (std::int64_t t = 0; t < routing.n_tokens(); ++t) {
      const std::span<const float> p = routing.probabilities.view().row<float>(t);
      std::vector<std::int32_t> order(p.size());
      std::iota(order.begin(), order.end(), 0);
      std::ranges::stable_sort(order, [&](std::int32_t a, std::int32_t b) {
        return p[static_cast<std::size_t>(a)] > p[static_cast<std::size_t>(b)];
      });
      const std::span<std::int32_t> ids(routing.ids.data() + static_cast<std::size_t>(t) * k, k);
      const std::span<float> weights(routing.weights.data() + static_cast<std::size_t>(t) * k, k);
      if (mode_ == AblationMode::zero) {
        for (std::size_t j = 0; j < k; ++j)
          if (ids[j] == expert_) weights[j] = 0;
        continue;
      }
      std::erase(order, mode_ == AblationMode::flip ? order[k - 1] : expert_);
      double sum = 0;
      for (std::size_t j = 0; j < k; ++j) sum += static_cast<double>(p[static_cast<std::size_t>(order[j])]);
      for (std::size_t j = 0; j < k; ++j) {
        changed += ids[j] != order[j] ? 1 : 0;
        ids[j] = order[j];
        weights[j] = static_cast<float>(static_cast<double>(p[static_cast<std::size_t>(order[j])]) / sum);
      }
    }
  }

  std::size_t changed = 0;  // slots

 private:
  AblationMode mode_;
  int layer_, expert_;
};

class Modes : public ::testing::TestWithParam<AblationMode> {};

TEST_P(Modes, GiveWhatWholeForwardPassesGive) {
  const GoldenModel golden("golden/mixtral");
  OneRank one(golden.folder(), Precision::f32);
  const bool flip = GetParam() == AblationMode::flip;
  const AblationPlan plan{
      .mode = GetParam(), .layers = {0, 2}, .experts = flip ? std::vector<int>() : std::vector<int>{1, 4, 6}};
  AblationSweep sweep(one.model(), plan);
  WindowSums sums;
  const Batch whole = golden.batch();
  const std::size_t windows = whole.window_offsets.size() - 1;
  std::size_t variants_seen = 0;
  const std::function<bool()> count = [&] {
    ++variants_seen;
    return true;
  };
  // In two batches, the second after an empty one, as ranks bring them.
  ASSERT_TRUE(sweep.step(golden.batch(0, 1), sums, count));
  ASSERT_TRUE(sweep.step(golden.batch(1, 1), sums, count));
  ASSERT_TRUE(sweep.step(golden.batch(1), sums, count));
  ASSERT_EQ(sums.baseline.size(), windows);
  EXPECT_EQ(variants_seen, 3 * 2 * plan.variants());

  KeepAll plain;
  const TokenLosses before = one.forward(whole, plain);
  std::size_t compared = 0;
  std::size_t changed = 0;
  for (std::size_t c = 0; c < 2 * plan.variants(); ++c) {
    ByTheBook change(plan.mode, plan.layers[c / plan.variants()], flip ? -1 : plan.experts[c % plan.variants()]);
    const TokenLosses after = one.forward(whole, change);
    changed += change.changed;
    for (std::size_t w = 0; w < windows; ++w) {
      AblatedScore expected;
      WindowScore baseline;
      for (auto t = static_cast<std::size_t>(whole.window_offsets[w]);
           t < static_cast<std::size_t>(whole.window_offsets[w + 1]); ++t) {
        if (whole.targets[t] < 0) continue;
        const bool right = before.predicted[t] == whole.targets[t];
        const bool right_now = after.predicted[t] == whole.targets[t];
        expected.loss += static_cast<double>(after.loss[t]);
        expected.lost += right && !right_now ? 1 : 0;
        expected.gained += right_now && !right ? 1 : 0;
        baseline.loss += static_cast<double>(before.loss[t]);
        ++baseline.tokens;
        baseline.right += right ? 1 : 0;
      }
      const AblatedScore& got = sums.ablated[w * 2 * plan.variants() + c];
      EXPECT_NEAR(got.loss, expected.loss, 1e-5 * expected.loss);
      EXPECT_EQ(got.lost, expected.lost);
      EXPECT_EQ(got.gained, expected.gained);
      EXPECT_EQ(sums.baseline[w].loss, baseline.loss);
      EXPECT_EQ(sums.baseline[w].tokens, baseline.tokens);
      EXPECT_EQ(sums.baseline[w].right, baseline.right);
      compared += baseline.tokens;
    }
  }
  EXPECT_EQ(compared, 2 * plan.variants() * (whole.tokens.size() - windows));
  EXPECT_EQ(changed > 0, GetParam() != AblationMode::zero);
}

INSTANTIATE_TEST_SUITE_P(All, Modes, ::testing::Values(AblationMode::zero, AblationMode::drop, AblationMode::flip),
                         [](const auto& test) { return std::string(to_string(test.param)); });

/// What enters the experts, and the routing, of one MoE layer.
class LayerInput : public RoutingObserver {
 public:
  explicit LayerInput(int layer) : layer_(layer) {}
  void ffn_input(int layer, TensorView h) override {
    if (layer == layer_) input.assign(h.data<float>(), h.data<float>() + h.rows() * h.cols());
  }
  void observe(int layer, Routing&& of_layer, std::span<const ExchangePlan> /*plans*/) override {
    if (layer == layer_) routing = std::move(of_layer);
  }
  std::vector<float> input;
  Routing routing;

 private:
  int layer_;
};

TEST(AblationSweep, ExpertsNormsAreThoseOfTheirFormula) {
  const GoldenModel golden("golden/mixtral");
  OneRank one(golden.folder(), Precision::f32);
  const ModelConfig& config = one.model().config();
  const auto experts = static_cast<std::size_t>(config.n_experts);
  AblationSweep sweep(one.model(), {.mode = AblationMode::zero, .layers = {0, 1}, .experts = {3}});
  const Batch batch = golden.batch();
  WindowSums sums;
  ASSERT_TRUE(sweep.step(batch, sums, kGoOn));
  LayerInput seen(1);
  one.forward(batch, seen);

  const Checkpoint checkpoint(golden.folder());
  const auto d = static_cast<std::size_t>(config.d_model);
  const auto width = static_cast<std::size_t>(config.d_ff);
  const auto k = static_cast<std::size_t>(config.top_k);
  std::vector<ExpertUse> expected((batch.window_offsets.size() - 1) * experts);
  for (std::size_t w = 0; w + 1 < batch.window_offsets.size(); ++w)
    for (auto t = static_cast<std::size_t>(batch.window_offsets[w]);
         t < static_cast<std::size_t>(batch.window_offsets[w + 1]); ++t)
      for (std::size_t j = 0; j < k; ++j) {
        const auto e = static_cast<std::size_t>(seen.routing.ids[t * k + j]);
        const auto matrix = [&](const char* name) {
          return to_tensor(checkpoint.tensor("model.layers.1.block_sparse_moe.experts." + std::to_string(e) + "." +
                                             name + ".weight"),
                           DType::f32);
        };
        const Tensor gate = matrix("w1");
        const Tensor up = matrix("w3");
        const Tensor down = matrix("w2");
        const float* h = seen.input.data() + t * d;
        std::vector<double> inner(width);
        for (std::size_t i = 0; i < width; ++i) {
          double g = 0;
          double u = 0;
          for (std::size_t c = 0; c < d; ++c) {
            g += static_cast<double>(gate.data<float>()[i * d + c]) * static_cast<double>(h[c]);
            u += static_cast<double>(up.data<float>()[i * d + c]) * static_cast<double>(h[c]);
          }
          inner[i] = g / (1 + std::exp(-g)) * u;
        }
        double squares = 0;
        for (std::size_t c = 0; c < d; ++c) {
          double out = 0;
          for (std::size_t i = 0; i < width; ++i)
            out += static_cast<double>(down.data<float>()[c * width + i]) * inner[i];
          squares += out * out;
        }
        ExpertUse& use = expected[w * experts + e];
        const auto weight = static_cast<double>(seen.routing.weights[t * k + j]);
        ++use.count;
        use.weight += weight;
        use.weighted_norm += weight * std::sqrt(squares);
        use.norm += std::sqrt(squares);
      }
  std::uint64_t slots = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const ExpertUse& got = sums.use[(i / experts * 2 + 1) * experts + i % experts];
    EXPECT_EQ(got.count, expected[i].count);
    EXPECT_DOUBLE_EQ(got.weight, expected[i].weight);
    EXPECT_NEAR(got.weighted_norm, expected[i].weighted_norm, 1e-5 * expected[i].weighted_norm);
    EXPECT_NEAR(got.norm, expected[i].norm, 1e-5 * expected[i].norm);
    slots += got.count;
  }
  EXPECT_EQ(slots, batch.tokens.size() * k);
}

TEST(AblationSweep, StopsWhenTold) {
  const GoldenModel golden("golden/mixtral");
  OneRank one(golden.folder(), Precision::f32);
  AblationSweep sweep(one.model(), {.mode = AblationMode::zero, .layers = {2}, .experts = {0, 1, 2}});
  WindowSums sums;
  int asked = 0;
  EXPECT_FALSE(sweep.step(golden.batch(), sums, [&] { return ++asked < 2; }));
  EXPECT_EQ(asked, 2);
}

TEST(AblationMode, NamesGoThereAndBack) {
  for (const char* name : {"zero", "drop", "flip"}) EXPECT_EQ(to_string(parse_ablation_mode(name)), name);
  EXPECT_THAT(testing::error_text([] { parse_ablation_mode("half"); }), HasSubstr("zero, drop or flip"));
}

}  // namespace
}  // namespace switchyard
