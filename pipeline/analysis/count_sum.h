#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "pipeline/analysis/sparse_counts.h"

namespace switchyard {

/// A table of counts as compressed rows: row r's cells are columns[i], counts[i] for i in [pointers[r], pointers[r +
/// 1]).
struct CsrCounts {
  std::span<const std::uint64_t> pointers;  // [rows + 1], ascending
  std::span<const std::uint16_t> columns;   // below n_columns, ascending in a row
  std::span<const std::uint64_t> counts;
  std::uint64_t n_columns = 0;

  std::uint64_t rows() const { return pointers.size() - 1; }
  std::uint64_t nonzero() const { return pointers.back() - pointers.front(); }
};

/// The cells row * n_columns + column.
SparseCounts sparse_of(const CsrCounts& table);

/// Adds up many tables of one shape. Where a good part of the cells is not 0 the sum is held whole: then a cell that is
/// added costs one addition, where merging sorted lists would write the whole sum anew for each table.
class CountSum {
 public:
  explicit CountSum(SparseCounts first = {}) : sparse_(std::move(first)) {}
  /// may_be_whole: the sum may hold all cells, at most kMostWhole of them.
  void add(const CsrCounts& table, bool may_be_whole);
  /// The sum; nothing is left.
  SparseCounts take();

  static constexpr std::uint64_t kMostWhole = std::uint64_t{1} << 24U;

 private:
  void add_to_whole(const CsrCounts& table);

  SparseCounts sparse_;
  std::vector<std::uint64_t> whole_;   // all cells, or none while `sparse_` holds the sum
  std::vector<std::uint32_t> row_at_;  // memory that add uses again
};

}  // namespace switchyard
