#include "pipeline/kernels/rows.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "pipeline/kernels/leaf_loops.h"

namespace switchyard {

namespace {

bool is_identity(std::span<const std::int32_t> order) {
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (order[i] != static_cast<std::int32_t>(i)) return false;
  }
  return true;
}

template <typename T>
double norm(std::span<const T> row) {
  return std::sqrt(std::transform_reduce(row.begin(), row.end(), 0.0, std::plus<>(), [](T value) {
    const auto wide = static_cast<double>(static_cast<float>(value));
    return wide * wide;
  }));
}

}  // namespace

Tensor embed(TensorView table, std::span<const std::uint32_t> tokens, float scale) {
  Tensor x(DType::f32, static_cast<std::int64_t>(tokens.size()), table.cols());
#pragma omp parallel for
  for (std::int64_t t = 0; t < x.rows(); ++t) {
    const std::int64_t token = tokens[static_cast<std::size_t>(t)];
    if (table.dtype() == DType::bf16) {
      leaf().bf16.widen(table.row<Bf16>(token).data(), x.row<float>(t).data(), x.cols());
    } else {
      std::ranges::copy(table.row<float>(token), x.row<float>(t).begin());
    }
    if (scale != 1.0F) leaf().f32.multiply(x.row<float>(t).data(), scale, x.row<float>(t).data(), x.cols());
  }
  return x;
}

Tensor rms_norm(TensorView x, std::span<const float> weight, float epsilon, DType out) {
  Tensor y(out, x.rows(), x.cols());
#pragma omp parallel for
  for (std::int64_t t = 0; t < x.rows(); ++t) {
    const float* row = x.row<float>(t).data();
    const float mean = leaf().sum_of_squares(row, x.cols()) / static_cast<float>(x.cols());
    const float scale = 1.0F / std::sqrt(mean + epsilon);
    if (out == DType::bf16) {
      leaf().bf16.scale(row, weight.data(), scale, y.row<Bf16>(t).data(), x.cols());
    } else {
      leaf().f32.scale(row, weight.data(), scale, y.row<float>(t).data(), x.cols());
    }
  }
  return y;
}

Tensor gather_slots(TensorView h, std::span<const std::int32_t> slots, int top_k, DType out) {
  Tensor rows(out, static_cast<std::int64_t>(slots.size()), h.cols());
#pragma omp parallel for
  for (std::int64_t i = 0; i < rows.rows(); ++i) {
    const std::span<const float> row = h.row<float>(slots[static_cast<std::size_t>(i)] / top_k);
    if (out == DType::bf16) {
      leaf().bf16.narrow(row.data(), rows.row<Bf16>(i).data(), h.cols());
    } else {
      std::ranges::copy(row, rows.row<float>(i).begin());
    }
  }
  return rows;
}

Tensor gather(Tensor rows, std::span<const std::int32_t> order) {
  if (is_identity(order)) return rows;
  Tensor out(rows.dtype(), static_cast<std::int64_t>(order.size()), rows.cols());
  const auto bytes = static_cast<std::size_t>(rows.row_bytes());
#pragma omp parallel for
  for (std::int64_t i = 0; i < out.rows(); ++i) {
    const auto from = static_cast<std::size_t>(order[static_cast<std::size_t>(i)]);
    std::memcpy(out.bytes() + static_cast<std::size_t>(i) * bytes, rows.bytes() + from * bytes, bytes);
  }
  return out;
}

Tensor scatter(Tensor rows, std::span<const std::int32_t> order) {
  if (is_identity(order)) return rows;
  Tensor out(rows.dtype(), rows.rows(), rows.cols());
  const auto bytes = static_cast<std::size_t>(rows.row_bytes());
#pragma omp parallel for
  for (std::int64_t i = 0; i < out.rows(); ++i) {
    const auto to = static_cast<std::size_t>(order[static_cast<std::size_t>(i)]);
    std::memcpy(out.bytes() + to * bytes, rows.bytes() + static_cast<std::size_t>(i) * bytes, bytes);
  }
  return out;
}

void add_rows(Tensor& x, TensorView rows) {
#pragma omp parallel for
  for (std::int64_t t = 0; t < x.rows(); ++t) {
    leaf().f32.accumulate(x.row<float>(t).data(), rows.row<float>(t).data(), 1.0F, x.cols());
  }
}

void add_weighted(Tensor& x, std::int64_t first, TensorView rows, std::span<const float> weights, int top_k,
                  std::span<const std::int32_t> slots) {
  const std::int64_t end = first + static_cast<std::int64_t>(slots.size()) / top_k;
  std::vector<std::int32_t> row_of_slot(slots.size());  // from the first token's on
  for (std::size_t i = 0; i < slots.size(); ++i)
    row_of_slot[static_cast<std::size_t>(slots[i] - first * top_k)] = static_cast<std::int32_t>(i);
#pragma omp parallel
  {
    std::vector<float> sum(static_cast<std::size_t>(x.cols()));
#pragma omp for
    for (std::int64_t t = first; t < end; ++t) {
      std::ranges::fill(sum, 0.0F);
      for (std::int64_t slot = t * top_k; slot < (t + 1) * top_k; ++slot) {
        const std::int64_t row = row_of_slot[static_cast<std::size_t>(slot - first * top_k)];
        const float weight = weights[static_cast<std::size_t>(slot)];
        if (rows.dtype() == DType::bf16) {
          leaf().bf16.accumulate(sum.data(), rows.row<Bf16>(row).data(), weight, x.cols());
        } else {
          leaf().f32.accumulate(sum.data(), rows.row<float>(row).data(), weight, x.cols());
        }
      }
      leaf().f32.accumulate(x.row<float>(t).data(), sum.data(), 1.0F, x.cols());
    }
  }
}

std::vector<double> slot_norms(TensorView rows, std::span<const std::int32_t> slots, std::int64_t first) {
  std::vector<double> norms(slots.size());
#pragma omp parallel for
  for (std::int64_t i = 0; i < rows.rows(); ++i) {
    const auto slot = static_cast<std::size_t>(slots[static_cast<std::size_t>(i)] - first);
    norms[slot] = rows.dtype() == DType::bf16 ? norm(rows.row<Bf16>(i)) : norm(rows.row<float>(i));
  }
  return norms;
}

}  // namespace switchyard
