#pragma once

#include <cstdint>

#include "parallel/bf16.h"

namespace switchyard {

/// The innermost loops over one row, compiled for several levels of vector instructions; the best one that this CPU has
/// is chosen when the program starts. A row's result depends on that row alone. T: float or Bf16, rows of the matmul
/// type.
template <typename T>
struct RowLoops {
  void (*narrow)(const float* in, T* out, std::int64_t n);
  void (*widen)(const T* in, float* out, std::int64_t n);
  /// out = weight * (x * factor)
  void (*scale)(const float* x, const float* weight, float factor, T* out, std::int64_t n);
  /// out = x * factor
  void (*multiply)(const float* x, float factor, T* out, std::int64_t n);
  /// sum += weight * row
  void (*accumulate)(float* sum, const T* row, float weight, std::int64_t n);
  /// Rotates (x[i], x[i + half]) by an angle.
  void (*rotate)(const float* x, const float* cosines, const float* sines, T* out, std::int64_t half);
  /// out = silu(gate) * up
  void (*silu_gate)(const float* gate, const float* up, T* out, std::int64_t n);
  /// out = gelu(gate) * up, with the normal distribution to 3e-7
  void (*gelu_gate)(const float* gate, const float* up, T* out, std::int64_t n);
  /// out = e^((scores - their largest) * scale) for keys [begin, end), 0 for the others of n; returns the sum. n: a
  /// multiple of 16.
  float (*masked_softmax)(const float* scores, float scale, std::int32_t begin, std::int32_t end, std::int32_t n,
                          T* out);
};

struct TwoLargest {
  double first, second;
};

struct LeafLoops {
  RowLoops<float> f32;
  RowLoops<Bf16> bf16;
  float (*sum_of_squares)(const float* x, std::int64_t n);
  float (*largest)(const float* x, std::int64_t n);
  /// sum of e^(x - shift), x - shift at most 88
  float (*sum_of_exp)(const float* x, float shift, std::int64_t n);
  /// The lowest index of a value, n: none
  std::int64_t (*index_of)(const float* x, float value, std::int64_t n);
  /// out[e] = row . weights[e], weights: [n_experts, d]
  void (*dot_rows)(const float* row, const float* weights, float* out, std::int64_t n_experts, std::int64_t d);
  /// out = e^x, relative error below 2e-7 for x in [-87, 88]; beyond, it stays at the value there.
  void (*exp)(const float* x, float* out, std::int64_t n);
  /// scores = cap * tanh(scores * scale / cap), relative error below 5e-7.
  void (*soft_cap)(float* scores, float scale, float cap, std::int64_t n);
  /// The innermost product (strips.h): out [m, strip_columns] = left [m, k] * strip [k, strip_columns], added to what
  /// is in out where `add`; left_stride, out_stride: floats from row to row.
  void (*multiply_strip)(const float* left, std::int64_t left_stride, const float* strip, std::int64_t m,
                         std::int64_t k, bool add, float* out, std::int64_t out_stride);
  std::int64_t strip_columns;  // divides 32

  // For linear_assignment.h: one row of gains, and the columns' prices.
  /// The two largest of gain[j] - price[j]; n >= 1, the second -infinity when n is 1.
  TwoLargest (*two_largest_profits)(const float* gain, const double* price, std::int64_t n);
  /// Where base - gain[j] + price[j] is below distance[j], makes it that and previous[j] `row`. Returns the smallest
  /// distance.
  double (*shorten_paths)(const float* gain, const double* price, double base, std::int64_t row, double* distance,
                          std::int64_t* previous, std::int64_t n);
};

/// The best that this CPU has.
const LeafLoops& choose_leaf_loops();
inline const LeafLoops& leaf() {
  static const LeafLoops& best = choose_leaf_loops();
  return best;
}

template <typename T>
const RowLoops<T>& row_loops();
template <>
inline const RowLoops<float>& row_loops<float>() {
  return leaf().f32;
}
template <>
inline const RowLoops<Bf16>& row_loops<Bf16>() {
  return leaf().bf16;
}

}  // namespace switchyard
