#include "pipeline/analysis/token_experts.h"

#include <algorithm>
#include <numeric>

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

std::vector<std::vector<TokenShare>> top_tokens(const SparseCounts& table, const AccumulatorShape& shape, int layer,
                                                TokenOrder order, std::uint64_t min_count, std::size_t most) {
  const auto experts = static_cast<std::uint64_t>(shape.experts);
  const std::uint64_t layer_cells = static_cast<std::uint64_t>(shape.vocabulary) * experts;
  const std::uint64_t begin = static_cast<std::uint64_t>(layer) * layer_cells;
  const auto [first, last] = cells_between(table, begin, begin + layer_cells);
  std::vector<std::vector<TokenShare>> found(experts);
  std::vector<double> of_expert(experts, 0);
  for (std::size_t at = first; at < last;) {
    const std::uint64_t token = (table.cells()[at] - begin) / experts;
    const std::uint64_t token_begin = begin + token * experts;
    std::size_t end = at;
    std::uint64_t total = 0;
    for (; end < last && table.cells()[end] < token_begin + experts; ++end) total += table.counts()[end];
    for (; at < end; ++at) {
      const std::uint64_t here = table.counts()[at];
      const std::uint64_t expert = table.cells()[at] - token_begin;
      of_expert[expert] += static_cast<double>(here);
      if (total < min_count) continue;
      const double of_token = static_cast<double>(here) / static_cast<double>(total);
      found[expert].push_back({static_cast<std::uint32_t>(token), here, static_cast<double>(here), of_token, of_token});
    }
  }
  const double all = std::accumulate(of_expert.begin(), of_expert.end(), 0.0);
  const auto before = [&](const TokenShare& a, const TokenShare& b) {
    // At one expert, lift follows of_token.
    if (order == TokenOrder::lift && a.of_token != b.of_token) return a.of_token > b.of_token;
    return a.count != b.count ? a.count > b.count : a.token < b.token;
  };
  for (std::size_t e = 0; e < experts; ++e) {
    const auto kept = static_cast<std::ptrdiff_t>(std::min(most, found[e].size()));
    std::partial_sort(found[e].begin(), found[e].begin() + kept, found[e].end(), before);
    found[e].resize(static_cast<std::size_t>(kept));
    for (TokenShare& token : found[e]) {
      token.share /= of_expert[e];
      token.lift *= all / of_expert[e];  // (N[v, e] / N[v]) (N / N[e])
    }
  }
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
