#include "pipeline/analysis/count_sum.h"

#include <algorithm>
#include <utility>

namespace switchyard {
namespace {

constexpr std::uint64_t kCellsOfOne = 32;  // a whole table may have so many cells for each that is not 0

}  // namespace

SparseCounts sparse_of(const CsrCounts& table) {
  std::vector<std::uint64_t> cells(table.nonzero());
  auto cell = cells.begin();
  for (std::uint64_t row = 0; row < table.rows(); ++row)
    for (std::uint64_t at = table.pointers[row]; at < table.pointers[row + 1]; ++at)
      *cell++ = row * table.n_columns + table.columns[at];
  const auto first = table.counts.begin() + static_cast<std::ptrdiff_t>(table.pointers.front());
  return {std::move(cells), {first, first + static_cast<std::ptrdiff_t>(table.nonzero())}};
}

void CountSum::add(const CsrCounts& table, bool may_be_whole) {
  const std::uint64_t cells = table.rows() * table.n_columns;
  if (whole_.empty()) {
    const bool worthwhile = !sparse_.cells().empty() &&
                            (sparse_.cells().size() + table.nonzero()) * kCellsOfOne >= cells && cells <= kMostWhole;
    if (!may_be_whole || !worthwhile) {
      SparseCounts more = sparse_of(table);
      if (sparse_.cells().empty())
        sparse_ = std::move(more);
      else
        sparse_.merge(more);
      return;
    }
    whole_.resize(cells);
    for (std::size_t i = 0; i < sparse_.cells().size(); ++i) whole_[sparse_.cells()[i]] = sparse_.counts()[i];
    sparse_ = {};
  }
  add_to_whole(table);
}

/// Rows have few cells, and no two alike as many: a loop over each would end where the processor does not expect it. So
/// each row first marks where it begins, empty ones below the next that is not, and the cells are one loop.
void CountSum::add_to_whole(const CsrCounts& table) {
  const std::uint64_t first = table.pointers.front();
  row_at_.assign(table.nonzero() + 1, 0);
  for (std::uint64_t row = 0; row < table.rows(); ++row)
    row_at_[table.pointers[row] - first] = static_cast<std::uint32_t>(row);
  std::uint64_t row = 0;
  for (std::uint64_t i = 0; i < table.nonzero(); ++i) {
    row = std::max<std::uint64_t>(row, row_at_[i]);
    whole_[row * table.n_columns + table.columns[first + i]] += table.counts[first + i];
  }
}

SparseCounts CountSum::take() {
  if (whole_.empty()) return std::exchange(sparse_, {});
  std::vector<std::uint64_t> cells;
  std::vector<std::uint64_t> counts;
  const auto nonzero = whole_.size() - static_cast<std::size_t>(std::ranges::count(whole_, 0U));
  cells.reserve(nonzero);
  counts.reserve(nonzero);
  for (std::uint64_t cell = 0; cell < whole_.size(); ++cell) {
    if (whole_[cell] == 0) continue;
    cells.push_back(cell);
    counts.push_back(whole_[cell]);
  }
  whole_ = {};
  return {std::move(cells), std::move(counts)};
}

}  // namespace switchyard
