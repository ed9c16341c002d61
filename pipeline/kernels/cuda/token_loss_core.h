#pragma once

#include <cfloat>

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

/// Takes columns [first_column, first_column + n) of a token's logits, n at least 1 and a multiple of kWidth, in one
/// pass: a lane's sum is of e^(logit - the largest it has seen). target: its column, or a negative number. A tie of the
/// largest stays with the lower column.
template <int kWidth, typename Warp>
SWITCHYARD_CORE void take_logits(Warp warp, const float* logits, int n, std::int64_t first_column, std::int64_t target,
                                 RunningLoss* running) {
  typename Warp::template Lanes<std::uint64_t> best;
  typename Warp::template Lanes<float> tops;
  typename Warp::template Lanes<float> sums;
  const RunningLoss before = *running;
  warp.each([&](int lane) {
    float top = -FLT_MAX;  // not -infinity, whose distance from itself is no number
    float sum = 0;
    int at = lane * kWidth < n ? lane * kWidth : 0;
    SWITCHYARD_UNROLL_4
    for (int i = lane * kWidth; i < n; i += kLanes * kWidth) {
      const auto own = load<kWidth>(logits + i);
      const float seen = top;
      SWITCHYARD_UNROLL
      for (int j = 0; j < kWidth; ++j) {
        if (own.at[j] > top) {
          top = own.at[j];
          at = i + j;
        }
      }
      if (top > seen) sum *= expf(seen - top);
      SWITCHYARD_UNROLL
      for (int j = 0; j < kWidth; ++j) sum += expf(own.at[j] - top);
    }
    best[lane] = ranking_key(top, static_cast<std::uint32_t>(at));
    tops[lane] = top;
    sums[lane] = sum;
  });
  const std::uint32_t at = index_of_key(warp.largest(best));
  const bool is_larger = logits[at] > before.largest;  // strictly
  const float largest = is_larger ? logits[at] : before.largest;
  warp.each([&](int lane) {
    if (sums[lane] != 0) sums[lane] *= expf(tops[lane] - largest);
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
