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
  // Without branches that depend on the cells, which could not be foreseen.
  const std::size_t most = cells_.size() + other.cells_.size();
  std::vector<std::uint64_t> cells(most);
  std::vector<std::uint64_t> counts(most);
  std::size_t a = 0;
  std::size_t b = 0;
  std::size_t n = 0;
  for (; a < cells_.size() && b < other.cells_.size(); ++n) {
    const std::uint64_t of_a = cells_[a];
    const std::uint64_t of_b = other.cells_[b];
    cells[n] = std::min(of_a, of_b);
    counts[n] = (of_a <= of_b ? counts_[a] : 0) + (of_b <= of_a ? other.counts_[b] : 0);
    a += of_a <= of_b ? 1 : 0;
    b += of_b <= of_a ? 1 : 0;
  }
  const auto take_rest = [&](const SparseCounts& from, std::size_t first) {
    std::copy(from.cells_.begin() + static_cast<std::ptrdiff_t>(first), from.cells_.end(),
              cells.begin() + static_cast<std::ptrdiff_t>(n));
    std::copy(from.counts_.begin() + static_cast<std::ptrdiff_t>(first), from.counts_.end(),
              counts.begin() + static_cast<std::ptrdiff_t>(n));
    n += from.cells_.size() - first;
  };
  take_rest(*this, a);
  take_rest(other, b);
  cells.resize(n);
  counts.resize(n);
  cells_ = std::move(cells);
  counts_ = std::move(counts);
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
