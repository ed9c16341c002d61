#pragma once

#include "pipeline/kernels/cuda/warp.h"

namespace switchyard::cores {

/// One token's router: what goes in and where results go, as in Routing.
struct RouterRow {
  const float* logits;   // [n_experts]
  int n_experts;         // at most kLanes * kPerLane
  int top_k;             // at most kLanes, and n_experts less one where an expert is not to be chosen
  bool renormalise;      // combine weights are divided by their sum
  int without;           // an expert that is not to be chosen; -1: none
  float* probabilities;  // [n_experts]
  std::int32_t* ids;     // [top_k]
  float* weights;        // [top_k]
  float* entropy;
  float* margin;
  float* top_probability;
  float* log_sum_exp;
};

/// Softmax, the top_k most probable experts (a tie goes to the lower id), combine weights, entropy, margin and
/// log-sum-exp in one pass: what choose_experts does. Returns false, with nothing decided, when a logit is not finite.
template <int kPerLane, typename Warp>
SWITCHYARD_CORE bool route_row(Warp warp, const RouterRow& row) {
  struct Mine {
    float values[kPerLane];  // of experts lane, lane + 32, ...
  };
  typename Warp::template Lanes<Mine> mine;
  typename Warp::template Lanes<float> partial;
  const auto for_own = [&](int lane, auto work) {
    SWITCHYARD_UNROLL
    for (int i = 0; i < kPerLane; ++i)
      if (i * kLanes + lane < row.n_experts) work(i, i * kLanes + lane);
  };

  typename Warp::template Lanes<float> bad;
  warp.each([&](int lane) {
    bad[lane] = 0;
    partial[lane] = -INFINITY;
    for_own(lane, [&](int i, int expert) {
      const float logit = row.logits[expert];
      mine[lane].values[i] = logit;
      if (!(fabsf(logit) < INFINITY)) bad[lane] = 1;
      partial[lane] = fmaxf(partial[lane], logit);
    });
  });
  if (warp.largest(bad) > 0) return false;
  const float largest = warp.largest(partial);
  warp.each([&](int lane) {
    partial[lane] = 0;
    for_own(lane, [&](int i, int /*expert*/) {
      mine[lane].values[i] = expf(mine[lane].values[i] - largest);
      partial[lane] += mine[lane].values[i];
    });
  });
  const float sum = warp.sum(partial);
  warp.each([&](int lane) {
    partial[lane] = 0;
    for_own(lane, [&](int i, int expert) {
      const float probability = mine[lane].values[i] / sum;
      row.probabilities[expert] = probability;
      partial[lane] += probability * row.logits[expert];
      mine[lane].values[i] = expert == row.without ? -1.0F : probability;
    });
  });
  const float log_sum_exp = largest + logf(sum);
  const float entropy = fmaxf(0.0F, log_sum_exp - warp.sum(partial));

  // One round for each choice, and one for the best that was not chosen.
  typename Warp::template Lanes<float> chosen;
  typename Warp::template Lanes<std::uint64_t> best;
  float chosen_sum = 0;
  float last = 0;
  float margin = 0;
  for (int choice = 0; choice <= row.top_k; ++choice) {
    warp.each([&](int lane) {
      best[lane] = 0;
      for_own(lane, [&](int i, int expert) {
        const float value = mine[lane].values[i];
        const std::uint64_t key = value < 0 ? 0 : ranking_key(value, static_cast<std::uint32_t>(expert));
        best[lane] = key > best[lane] ? key : best[lane];
      });
    });
    const std::uint64_t key = warp.largest(best);
    const float probability = value_of(static_cast<std::uint32_t>(key >> 32U) & 0x7fffffffU);
    if (choice == row.top_k) {
      margin = key == 0 ? 0.0F : last - probability;
      break;
    }
    const auto expert = static_cast<int>(index_of_key(key));
    last = probability;
    chosen_sum += probability;
    warp.each([&](int lane) {
      for_own(lane, [&](int i, int own) {
        if (own == expert) mine[lane].values[i] = -1;
      });
      if (lane == choice) chosen[lane] = probability;
      if (lane == 0) row.ids[choice] = expert;
    });
  }
  const float top = warp.broadcast(chosen, 0);
  warp.each([&](int lane) {
    if (lane < row.top_k) row.weights[lane] = row.renormalise ? chosen[lane] / chosen_sum : chosen[lane];
    if (lane != 0) return;
    *row.entropy = entropy;
    *row.margin = margin;
    *row.top_probability = top;
    *row.log_sum_exp = log_sum_exp;
  });
  return true;
}

}  // namespace switchyard::cores
