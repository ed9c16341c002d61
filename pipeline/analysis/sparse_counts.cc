#include "pipeline/analysis/sparse_counts.h"

#include <algorithm>
#include <utility>

#include "pipeline/analysis/misra_gries.h"

namespace switchyard {

SparseCounts::SparseCounts(std::vector<std::uint64_t> cells, std::vector<std::uint64_t> counts)
    : cells_(std::move(cells)), counts_(std::move(counts)) {}

void SparseCounts::append(std::uint64_t cell, std::uint64_t count) {
  if (count == 0) return;
  cells_.push_back(cell);
  counts_.push_back(count);
}

void SparseCounts::merge(const SparseCounts& other) {
  if (other.cells_.empty()) return;
  if (cells_.empty()) {
    *this = other;
    return;
  }
  SparseCounts merged;
  merged.cells_.reserve(cells_.size() + other.cells_.size());
  merged.counts_.reserve(cells_.size() + other.cells_.size());
  std::size_t a = 0;
  std::size_t b = 0;
  while (a < cells_.size() || b < other.cells_.size()) {
    const bool from_a = b == other.cells_.size() || (a < cells_.size() && cells_[a] <= other.cells_[b]);
    const bool from_b = a == cells_.size() || (b < other.cells_.size() && other.cells_[b] <= cells_[a]);
    merged.append(from_a ? cells_[a] : other.cells_[b], (from_a ? counts_[a] : 0) + (from_b ? other.counts_[b] : 0));
    a += from_a ? 1 : 0;
    b += from_b ? 1 : 0;
  }
  *this = std::move(merged);
}

SparseCounts SparseCounts::between(std::uint64_t begin, std::uint64_t end) const {
  const auto first = std::lower_bound(cells_.begin(), cells_.end(), begin);
  const auto last = std::lower_bound(first, cells_.end(), end);
  return {{first, last}, {counts_.begin() + (first - cells_.begin()), counts_.begin() + (last - cells_.begin())}};
}

std::uint64_t SparseCounts::compact(std::uint64_t capacity) {
  const std::uint64_t taken = misra_gries_cut(counts_, capacity);
  if (taken == 0) return 0;
  SparseCounts kept;
  for (std::size_t i = 0; i < cells_.size(); ++i)
    if (counts_[i] > taken) kept.append(cells_[i], counts_[i] - taken);
  *this = std::move(kept);
  return taken;
}

}  // namespace switchyard
