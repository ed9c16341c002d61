#pragma once

#include "pipeline/kernels/cuda/warp.h"

namespace switchyard::cores {

/// Of one row of d, a multiple of kWidth.
template <typename Sum, int kWidth, typename T, typename Warp>
SWITCHYARD_CORE Sum sum_of_squares(Warp warp, const T* row, int d) {
  typename Warp::template Lanes<Sum> squares;
  warp.each([&](int lane) {
    squares[lane] = 0;
    SWITCHYARD_UNROLL_4
    for (int i = lane * kWidth; i < d; i += kLanes * kWidth) {
      const auto own = load<kWidth>(row + i);
      SWITCHYARD_UNROLL
      for (int j = 0; j < kWidth; ++j) squares[lane] += static_cast<Sum>(own.at[j]) * static_cast<Sum>(own.at[j]);
    }
  });
  return warp.sum(squares);
}

/// out = weight * (x / sqrt(mean(x^2) + epsilon)), one row of d, a multiple of kWidth.
template <int kWidth, typename T, typename Warp>
SWITCHYARD_CORE void rms_norm_row(Warp warp, const float* x, const float* weight, float epsilon, int d, T* out) {
  const float mean = sum_of_squares<float, kWidth>(warp, x, d) / static_cast<float>(d);
  const float factor = 1.0F / sqrtf(mean + epsilon);
  warp.each([&](int lane) {
    SWITCHYARD_UNROLL_4
    for (int i = lane * kWidth; i < d; i += kLanes * kWidth) {
      auto own = load<kWidth>(x + i);
      const auto scale = load<kWidth>(weight + i);
      SWITCHYARD_UNROLL
      for (int j = 0; j < kWidth; ++j) own.at[j] = scale.at[j] * (own.at[j] * factor);
      store<kWidth>(out + i, own);
    }
  });
}

/// The Euclidean norm of one row of d, a multiple of kWidth, in f64.
template <int kWidth, typename T, typename Warp>
SWITCHYARD_CORE double row_norm(Warp warp, const T* row, int d) {
  return sqrt(sum_of_squares<double, kWidth>(warp, row, d));
}

/// kWidth columns of one token of add_weighted: the sums over its slots, in slot order.
template <int kWidth, typename T>
SWITCHYARD_CORE Pack<float, kWidth> weighted_sum(const T* rows, std::int64_t width, const std::int32_t* row_of_slot,
                                                 const float* weights, int top_k, std::int64_t column) {
  Pack<float, kWidth> sums = {};
  SWITCHYARD_UNROLL_4
  for (int j = 0; j < top_k; ++j) {
    const auto row = load<kWidth>(rows + row_of_slot[j] * width + column);
    SWITCHYARD_UNROLL
    for (int i = 0; i < kWidth; ++i) sums.at[i] = fmaf(weights[j], row.at[i], sums.at[i]);
  }
  return sums;
}

}  // namespace switchyard::cores
