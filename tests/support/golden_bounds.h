#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "pipeline/model/model.h"
#include "tests/support/golden_model.h"

/// How far a forward pass may be from the reference implementation's.
namespace switchyard::testing_support {

/// Root mean square difference of the losses that both have; NaN must stand in the same places.
inline double loss_error(const std::vector<float>& got, const std::vector<float>& expected) {
  double squares = got.size() == expected.size() ? 0 : INFINITY;
  double count = 0;
  for (std::size_t t = 0; t < std::min(got.size(), expected.size()); ++t) {
    if (std::isnan(got[t]) != std::isnan(expected[t])) return INFINITY;
    if (std::isnan(got[t])) continue;
    squares += std::pow(static_cast<double>(got[t]) - expected[t], 2);
    ++count;
  }
  return count > 0 ? std::sqrt(squares / count) : INFINITY;
}

struct Routed {
  std::size_t compared = 0, tokens = 0, wrong = 0;
  double weight_error = 0;
};

/// Tokens whose margin exceeds `margin` must choose the golden's experts, in its order where its weights differ enough.
inline Routed compare_routing(const Routing& got, const std::vector<std::int32_t>& ids,
                              const std::vector<float>& weights, float margin) {
  Routed result;
  const auto k = static_cast<std::size_t>(got.top_k);
  result.tokens = static_cast<std::size_t>(got.n_tokens());
  for (std::size_t t = 0; t < result.tokens; ++t) {
    if (got.figure(RoutingFigure::margin)[t] <= margin) continue;
    ++result.compared;
    const std::set<std::int32_t> chosen(&got.ids[t * k], &got.ids[t * k] + k);
    const std::set<std::int32_t> expected(&ids[t * k], &ids[t * k] + k);
    if (chosen != expected) {
      ++result.wrong;
      continue;
    }
    for (std::size_t j = 0; j < k; ++j) {
      const auto same = std::find(&ids[t * k], &ids[t * k] + k, got.ids[t * k + j]) - &ids[t * k];
      const double error = std::abs(got.weights[t * k + j] - weights[t * k + static_cast<std::size_t>(same)]);
      result.weight_error = std::max(result.weight_error, error);
    }
  }
  return result;
}

struct Bounds {
  Precision precision;
  double largest;   // error of hidden states and logits, in standard deviations
  double mean;      // its root mean square
  double loss;      // nats, root mean square
  double weight;    // combine weights
  float margin;     // tokens nearer to a tie are not compared
  double compared;  // least share of tokens that are
  double wrong;     // most of those that choose other experts
};

inline constexpr Bounds kF32 = {.precision = Precision::f32,
                                .largest = 1e-4,
                                .mean = 1e-5,
                                .loss = 1e-4,
                                .weight = 1e-4,
                                .margin = 1e-5F,
                                .compared = 0.99,
                                .wrong = 0};
// bf16 keeps 8 bits of every operand. Where that tips a near tie in one layer, the token is another one from there on,
// and so no bound holds for each token; these hold for nearly all, at about twice what was measured.
inline constexpr Bounds kBf16 = {.precision = Precision::bf16,
                                 .largest = 1.2,
                                 .mean = 0.025,
                                 .loss = 0.03,
                                 .weight = 0.11,
                                 .margin = 0.01F,
                                 .compared = 0.7,
                                 .wrong = 0.01};

// 4 of 16 experts leave more near ties than 2 of 8; norms behind each half of a layer lift small branches, and their
// errors with them, to the size of the others.
inline constexpr Bounds kBf16Wide = {.precision = Precision::bf16,
                                     .largest = kBf16.largest,
                                     .mean = 0.085,
                                     .loss = kBf16.loss,
                                     .weight = kBf16.weight,
                                     .margin = kBf16.margin,
                                     .compared = 0.5,
                                     .wrong = kBf16.wrong};

inline void expect_close(std::span<const float> got, std::span<const float> expected, const Bounds& bounds) {
  const RelativeError error = relative_error(got, expected);
  EXPECT_LT(error.largest, bounds.largest);
  EXPECT_LT(error.mean, bounds.mean);
}

/// A forward pass over all sequences: hidden states, routing and loss.
inline void expect_agreement(const GoldenModel& golden, Model& model, const Bounds& bounds) {
  KeepAll seen;
  const Batch batch = golden.batch();
  const TokenLosses losses = model.forward(batch, seen);
  const ModelConfig& config = model.config();

  ASSERT_EQ(seen.hiddens.size(), static_cast<std::size_t>(config.n_layers));
  for (std::size_t layer = 0; layer < seen.hiddens.size(); ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    expect_close(seen.hiddens[layer], golden.floats(prefix + "hidden"), bounds);
  }
  EXPECT_LT(loss_error(losses.loss, golden.floats("token_loss")), bounds.loss);

  EXPECT_TRUE(seen.layers_in_order);
  ASSERT_EQ(seen.routings.size(), config.moe_layers.size());
  for (std::size_t moe_layer = 0; moe_layer < seen.routings.size(); ++moe_layer) {
    const std::string prefix = "layers." + std::to_string(config.moe_layers[moe_layer]) + ".";
    const Routing& routing = seen.routings[moe_layer];
    const Routed routed = compare_routing(routing, golden.integers(prefix + "topk_ids"),
                                          golden.floats(prefix + "topk_weights"), bounds.margin);
    EXPECT_LE(static_cast<double>(routed.wrong), bounds.wrong * static_cast<double>(routed.compared)) << prefix;
    EXPECT_LT(routed.weight_error, bounds.weight) << prefix;
    EXPECT_GT(static_cast<double>(routed.compared), bounds.compared * static_cast<double>(routed.tokens)) << prefix;
    const std::span<const float> logits(routing.logits.data<float>(), golden.floats(prefix + "router_logits").size());
    expect_close(logits, golden.floats(prefix + "router_logits"), bounds);
  }
}

}  // namespace switchyard::testing_support
