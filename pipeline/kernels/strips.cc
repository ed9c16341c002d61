#include "pipeline/kernels/strips.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "pipeline/kernels/leaf_loops.h"

namespace switchyard {

namespace {

constexpr std::int64_t kMostRows = 64;
constexpr std::int64_t kMostColumns = 32;
constexpr std::int64_t kDepth = 256;  // k of one pass: with it, a strip's part stays in the first-level cache

}  // namespace

std::int64_t strip_columns() { return leaf().strip_columns; }

std::int64_t strip_floats(std::int64_t n, std::int64_t k) {
  const std::int64_t width = strip_columns();
  return (n + width - 1) / width * width * k;
}

void pack_strips_of_columns(const float* weights, std::int64_t n, std::int64_t k, float* packed) {
  const std::int64_t width = strip_columns();
  for (std::int64_t column = 0; column < n; column += width, packed += width * k) {
    const std::int64_t columns = std::min(width, n - column);
    for (std::int64_t c = 0; c < columns; ++c)
      for (std::int64_t i = 0; i < k; ++i) packed[i * width + c] = weights[(column + c) * k + i];
    for (std::int64_t c = columns; c < width; ++c)
      for (std::int64_t i = 0; i < k; ++i) packed[i * width + c] = 0;
  }
}

void pack_strips_of_rows(const float* right, std::int64_t n, std::int64_t k, float* packed) {
  const std::int64_t width = strip_columns();
  for (std::int64_t column = 0; column < n; column += width) {
    const std::int64_t columns = std::min(width, n - column);
    for (std::int64_t i = 0; i < k; ++i, packed += width) {
      std::copy_n(right + i * n + column, columns, packed);
      std::fill(packed + columns, packed + width, 0.0F);
    }
  }
}

void multiply_strips(const float* left, const float* packed, std::int64_t m, std::int64_t n, std::int64_t k,
                     float* out) {
  const std::int64_t width = strip_columns();
  const std::int64_t whole = n / width * width;
  std::array<float, kMostRows * kMostColumns> rest;  // results of the last strip, when it is not whole
  for (std::int64_t row = 0; row < m; row += kMostRows) {
    const std::int64_t rows = std::min(kMostRows, m - row);
    for (std::int64_t i = 0; i < k; i += kDepth) {
      const std::int64_t depth = std::min(kDepth, k - i);
      const float* from = left + row * k + i;
      for (std::int64_t column = 0; column < whole; column += width) {
        leaf().multiply_strip(from, k, packed + column * k + i * width, rows, depth, i > 0, out + row * n + column, n);
      }
      if (whole < n) {
        leaf().multiply_strip(from, k, packed + whole * k + i * width, rows, depth, i > 0, rest.data(), width);
      }
    }
    for (std::int64_t r = 0; r < rows && whole < n; ++r) {
      std::copy_n(rest.data() + r * width, n - whole, out + (row + r) * n + whole);
    }
  }
}

}  // namespace switchyard
