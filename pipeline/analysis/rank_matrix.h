#pragma once

#include <cstddef>
#include <vector>

namespace switchyard {

/// A matrix of `columns` columns, one a rank, with zeros added to reach n_rows x n_columns: segments of a run may have
/// had fewer ranks than others.
template <typename T>
std::vector<T> widened(const std::vector<T>& matrix, std::size_t columns, std::size_t n_rows, std::size_t n_columns) {
  std::vector<T> wide(n_rows * n_columns, T{});
  for (std::size_t i = 0; i < matrix.size(); ++i) wide[i / columns * n_columns + i % columns] = matrix[i];
  return wide;
}

}  // namespace switchyard
