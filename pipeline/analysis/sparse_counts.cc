#include "pipeline/analysis/sparse_counts.h"

#include <utility>

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

}  // namespace switchyard
