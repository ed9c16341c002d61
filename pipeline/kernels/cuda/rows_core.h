#pragma once

#include "pipeline/kernels/cuda/warp.h"

namespace switchyard::cores {

/// out = weight * (x / sqrt(mean(x^2) + epsilon)), one row of d.
template <typename T, typename Warp>
SWITCHYARD_CORE void rms_norm_row(Warp warp, const float* x, const float* weight, float epsilon, int d, T* out) {
  typename Warp::template Lanes<float> squares;
  warp.each([&](int lane) {
    squares[lane] = 0;
    for (int i = lane; i < d; i += kLanes) squares[lane] += x[i] * x[i];
  });
  const float factor = 1.0F / sqrtf(warp.sum(squares) / static_cast<float>(d) + epsilon);
  warp.each([&](int lane) {
    for (int i = lane; i < d; i += kLanes) store(out + i, weight[i] * (x[i] * factor));
  });
}

/// One column of one token of add_weighted: the sum over its slots, in slot order.
template <typename T>
SWITCHYARD_CORE float weighted_sum(const T* rows, std::int64_t width, const std::int32_t* row_of_slot,
                                   const float* weights, int top_k, std::int64_t column) {
  float sum = 0;
  for (int j = 0; j < top_k; ++j) sum = fmaf(weights[j], widen(rows[row_of_slot[j] * width + column]), sum);
  return sum;
}

/// Of ascending keys, how many are below `key`.
SWITCHYARD_CORE std::int32_t count_below(const std::int32_t* keys, std::int32_t n, std::int32_t key) {
  std::int32_t low = 0;
  std::int32_t high = n;
  while (low < high) {
    const std::int32_t middle = low + (high - low) / 2;
    if (keys[middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace switchyard::cores
