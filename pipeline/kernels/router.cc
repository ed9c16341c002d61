#include "pipeline/kernels/router.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <limits>
#include <numeric>

#include "parallel/error.h"
#include "pipeline/kernels/leaf_loops.h"

namespace switchyard {

namespace {

/// What is decided for one token; pointers into Routing's columns.
struct Decision {
  std::span<const float> logits;
  std::span<float> probabilities;
  std::span<std::int32_t> ids;
  std::span<float> weights;
  std::int32_t without;  // not to be chosen; -1: none
};

float softmax(Decision& token) {
  const float largest = *std::ranges::max_element(token.logits);
  const auto n = static_cast<std::int64_t>(token.logits.size());
  for (std::size_t e = 0; e < token.logits.size(); ++e) token.probabilities[e] = token.logits[e] - largest;
  leaf().exp(token.probabilities.data(), token.probabilities.data(), n);
  const float sum = std::accumulate(token.probabilities.begin(), token.probabilities.end(), 0.0F);
  for (float& p : token.probabilities) p /= sum;
  return largest + std::log(sum);
}

/// Fills ids by probability descending; returns the best probability that was not chosen, -1 when all were.
float choose(Decision& token) {
  const auto probability = [&](std::int32_t id) { return token.probabilities[static_cast<std::size_t>(id)]; };
  std::size_t chosen = 0;
  float next = -1;
  for (std::int32_t e = 0; e < static_cast<std::int32_t>(token.probabilities.size()); ++e) {
    if (e == token.without) continue;
    // Behind everything at least as probable: a tie stays with the lower id.
    std::size_t place = chosen;
    while (place > 0 && probability(e) > probability(token.ids[place - 1])) --place;
    if (chosen == token.ids.size()) next = std::max(next, probability(place == chosen ? e : token.ids.back()));
    if (place == token.ids.size()) continue;
    if (chosen < token.ids.size()) ++chosen;
    std::copy_backward(token.ids.begin() + static_cast<std::ptrdiff_t>(place),
                       token.ids.begin() + static_cast<std::ptrdiff_t>(chosen) - 1,
                       token.ids.begin() + static_cast<std::ptrdiff_t>(chosen));
    token.ids[place] = e;
  }
  return next;
}

bool all_finite(std::span<const float> values) {
  std::uint32_t largest = 0;
  for (const float v : values) largest = std::max(largest, std::bit_cast<std::uint32_t>(v) & 0x7f800000U);
  return largest != 0x7f800000U;  // the exponent of infinity and NaN
}

}  // namespace

Routing choose_experts(Tensor logits, RouterRule rule, const std::string& where,
                       std::span<const std::int32_t> without) {
  const std::int64_t n = logits.rows();
  const auto k = static_cast<std::size_t>(rule.top_k);
  assert(rule.top_k + (without.empty() ? 0 : 1) <= logits.cols());
  Routing out;
  out.top_k = rule.top_k;
  out.ids.resize(static_cast<std::size_t>(n) * k);
  out.weights.resize(static_cast<std::size_t>(n) * k);
  out.probabilities = Tensor(DType::f32, n, logits.cols());
  out.logits = std::move(logits);
  out.figures = Tensor(DType::f32, kRoutingFigures, n);
  const auto figure = [&](RoutingFigure which) { return out.figures.row<float>(static_cast<std::int64_t>(which)); };
  const std::span<float> entropy = figure(RoutingFigure::entropy);
  const std::span<float> margin = figure(RoutingFigure::margin);
  const std::span<float> top_probability = figure(RoutingFigure::top_probability);
  const std::span<float> log_sum_exp = figure(RoutingFigure::log_sum_exp);
  std::int64_t first_bad = n;
#pragma omp parallel for reduction(min : first_bad)
  for (std::int64_t t = 0; t < n; ++t) {
    const auto i = static_cast<std::size_t>(t);
    Decision token = {out.logits.view().row<float>(t), out.probabilities.row<float>(t),
                      std::span(out.ids).subspan(i * k, k), std::span(out.weights).subspan(i * k, k),
                      without.empty() ? -1 : without[i]};
    if (!all_finite(token.logits)) {
      first_bad = std::min(first_bad, t);
      continue;
    }
    log_sum_exp[i] = softmax(token);
    const float next = choose(token);
    float chosen = 0;
    for (std::size_t j = 0; j < k; ++j) {
      token.weights[j] = token.probabilities[static_cast<std::size_t>(token.ids[j])];
      chosen += token.weights[j];
    }
    top_probability[i] = token.weights[0];
    margin[i] = next < 0 ? 0.0F : token.weights[k - 1] - next;
    if (rule.renormalise)
      for (float& w : token.weights) w /= chosen;
    float mean_logit = 0;
    for (std::size_t e = 0; e < token.logits.size(); ++e) mean_logit += token.probabilities[e] * token.logits[e];
    entropy[i] = std::max(0.0F, log_sum_exp[i] - mean_logit);
  }
  if (first_bad < n) throw_not_finite(where, first_bad);
  return out;
}

Routing route(TensorView h, TensorView weights, RouterRule rule, const std::string& where) {
  assert(h.cols() == weights.cols());
  Tensor logits(DType::f32, h.rows(), weights.rows());
#pragma omp parallel for
  for (std::int64_t t = 0; t < h.rows(); ++t) {
    leaf().dot_rows(h.row<float>(t).data(), weights.data<float>(), logits.row<float>(t).data(), weights.rows(),
                    h.cols());
  }
  return choose_experts(std::move(logits), rule, where);
}

}  // namespace switchyard
