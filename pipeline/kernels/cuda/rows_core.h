#pragma once

#include "pipeline/kernels/cuda/warp.h"

namespace switchyard::cores {

/// out = weight * (x / sqrt(mean(x^2) + epsilon)), one row of d, a multiple of kWidth.
template <int kWidth, typename T, typename Warp>
SWITCHYARD_CORE void rms_norm_row(Warp warp, const float* x, const float* weight, float epsilon, int d, T* out) {
  typename Warp::template Lanes<float> squares;
  warp.each([&](int lane) {
    squares[lane] = 0;
    SWITCHYARD_UNROLL_4
    for (int i = lane * kWidth; i < d; i += kLanes * kWidth) {
      const auto own = load<kWidth>(x + i);
      SWITCHYARD_UNROLL
      for (int j = 0; j < kWidth; ++j) squares[lane] += own.at[j] * own.at[j];
    }
  });
  const float factor = 1.0F / sqrtf(warp.sum(squares) / static_cast<float>(d) + epsilon);
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
  typename Warp::template Lanes<double> squares;
  warp.each([&](int lane) {
    squares[lane] = 0;
    SWITCHYARD_UNROLL_4
    for (int i = lane * kWidth; i < d; i += kLanes * kWidth) {
      const auto own = load<kWidth>(row + i);
      SWITCHYARD_UNROLL
      for (int j = 0; j < kWidth; ++j) {
        const auto value = static_cast<double>(own.at[j]);
        squares[lane] += value * value;
      }
    }
  });
  return sqrt(warp.sum(squares));
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
