#pragma once

#include <cstdint>
#include <vector>

namespace switchyard {

/// A large table of counts of which few cells are not 0: (cell, count) in ascending order of cell.
class SparseCounts {
 public:
  SparseCounts() = default;
  /// cells ascending without repeats, counts of the same length.
  SparseCounts(std::vector<std::uint64_t> cells, std::vector<std::uint64_t> counts);

  /// Appends a cell beyond the last one; a count of 0 is left out.
  void append(std::uint64_t cell, std::uint64_t count);
  void merge(const SparseCounts& other);
  /// The cells of [begin, end).
  SparseCounts between(std::uint64_t begin, std::uint64_t end) const;
  /// Keeps at most `capacity` cells and returns what that takes off every count, as misra_gries.h says.
  std::uint64_t compact(std::uint64_t capacity);
  const std::vector<std::uint64_t>& cells() const { return cells_; }
  const std::vector<std::uint64_t>& counts() const { return counts_; }
  bool operator==(const SparseCounts&) const = default;

 private:
  std::vector<std::uint64_t> cells_, counts_;
};

}  // namespace switchyard
