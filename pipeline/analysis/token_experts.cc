#include "pipeline/analysis/token_experts.h"

#include <algorithm>

namespace switchyard {
namespace {

/// Positions of the cells [begin, end) of a table.
std::pair<std::size_t, std::size_t> cells_between(const SparseCounts& table, std::uint64_t begin, std::uint64_t end) {
  const auto& cells = table.cells();
  const auto first = std::lower_bound(cells.begin(), cells.end(), begin);
  const auto last = std::lower_bound(first, cells.end(), end);
  return {static_cast<std::size_t>(first - cells.begin()), static_cast<std::size_t>(last - cells.begin())};
}

}  // namespace

std::vector<TokenShare> top_tokens(const SparseCounts& table, const AccumulatorShape& shape, int layer, int expert,
                                   TokenOrder order, std::uint64_t min_count, std::size_t most) {
  const auto experts = static_cast<std::uint64_t>(shape.experts);
  const std::uint64_t layer_cells = static_cast<std::uint64_t>(shape.vocabulary) * experts;
  const std::uint64_t begin = static_cast<std::uint64_t>(layer) * layer_cells;
  const auto [first, last] = cells_between(table, begin, begin + layer_cells);
  std::vector<TokenShare> found;
  double all = 0;
  double of_expert = 0;
  for (std::size_t at = first; at < last;) {
    const std::uint64_t token = (table.cells()[at] - begin) / experts;
    std::uint64_t total = 0;
    std::uint64_t here = 0;
    for (; at < last && (table.cells()[at] - begin) / experts == token; ++at) {
      total += table.counts()[at];
      if (table.cells()[at] % experts == static_cast<std::uint64_t>(expert)) here = table.counts()[at];
    }
    all += static_cast<double>(total);
    of_expert += static_cast<double>(here);
    if (here == 0 || total < min_count) continue;
    const double of_token = static_cast<double>(here) / static_cast<double>(total);
    found.push_back({static_cast<std::uint32_t>(token), here, static_cast<double>(here), of_token, of_token});
  }
  for (TokenShare& token : found) {
    token.share /= of_expert;
    token.lift *= all / of_expert;  // (N[v, e] / N[v]) (N / N[e])
  }
  std::sort(found.begin(), found.end(), [&](const TokenShare& a, const TokenShare& b) {
    if (order == TokenOrder::lift && a.lift != b.lift) return a.lift > b.lift;
    return a.count != b.count ? a.count > b.count : a.token < b.token;
  });
  if (found.size() > most) found.resize(most);
  return found;
}

std::vector<std::uint64_t> experts_of_token(const SparseCounts& table, const AccumulatorShape& shape, int layer,
                                            std::uint32_t token) {
  const auto experts = static_cast<std::uint64_t>(shape.experts);
  const std::uint64_t begin =
      (static_cast<std::uint64_t>(layer) * static_cast<std::uint64_t>(shape.vocabulary) + token) * experts;
  const auto [first, last] = cells_between(table, begin, begin + experts);
  std::vector<std::uint64_t> counts(experts, 0);
  for (std::size_t at = first; at < last; ++at) counts[table.cells()[at] - begin] = table.counts()[at];
  return counts;
}

}  // namespace switchyard
