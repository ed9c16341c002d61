#pragma once

#include "pipeline/kernels/cuda/warp.h"

namespace switchyard::cores {

/// What is known of a token's logits after some of their columns.
struct RunningLoss {
  float largest;  // -infinity before the first
  float sum;      // of e^(logit - largest)
  float target;   // the target's logit, NaN until it was seen
  std::uint32_t predicted;
};

SWITCHYARD_CORE RunningLoss begin_loss() { return {-INFINITY, 0, NAN, 0}; }

/// Takes columns [first_column, first_column + n) of a token's logits, n at least 1. target: its column, or a negative
/// number. A tie of the largest stays with the lower column.
template <typename Warp>
SWITCHYARD_CORE void take_logits(Warp warp, const float* logits, int n, std::int64_t first_column, std::int64_t target,
                                 RunningLoss* running) {
  typename Warp::template Lanes<std::uint64_t> best;
  typename Warp::template Lanes<float> sums;
  const RunningLoss before = *running;
  warp.each([&](int lane) {
    best[lane] = 0;
    for (int i = lane; i < n; i += kLanes) {
      const std::uint64_t key = ranking_key(logits[i], static_cast<std::uint32_t>(i));
      best[lane] = key > best[lane] ? key : best[lane];
    }
  });
  const std::uint32_t at = index_of_key(warp.largest(best));
  const bool is_larger = logits[at] > before.largest;  // strictly
  const float largest = is_larger ? logits[at] : before.largest;
  warp.each([&](int lane) {
    sums[lane] = 0;
    for (int i = lane; i < n; i += kLanes) sums[lane] += expf(logits[i] - largest);
  });
  const float sum = (is_larger ? before.sum * expf(before.largest - largest) : before.sum) + warp.sum(sums);
  const std::int64_t column = target - first_column;
  warp.each([&](int lane) {
    if (lane != 0) return;
    *running = {largest, sum, column >= 0 && column < n ? logits[column] : before.target,
                is_larger ? static_cast<std::uint32_t>(first_column) + at : before.predicted};
  });
}

/// Nats. of_prediction: of the most likely token instead of the target.
SWITCHYARD_CORE float loss_of(const RunningLoss& running, bool of_prediction) {
  return running.largest + logf(running.sum) - (of_prediction ? running.largest : running.target);
}

}  // namespace switchyard::cores
