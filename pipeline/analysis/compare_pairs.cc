#include "pipeline/analysis/compare_pairs.h"

namespace switchyard {

std::vector<PairDistances> compare_pairs(const std::vector<GroupedSlots>& datasets, const CompareOptions& options,
                                         const std::function<void(std::size_t, std::size_t)>& on_pair,
                                         const Communicator& comm) {
  const auto rank = static_cast<std::size_t>(comm.rank());
  const auto n_ranks = static_cast<std::size_t>(comm.size());
  const auto n_layers = static_cast<std::size_t>(datasets.front().layers);
  const std::size_t n_pairs = datasets.size() * (datasets.size() - 1) / 2;

  std::vector<std::vector<float>> usage(datasets.size());
  const auto usage_of = [&](std::size_t d) -> const std::vector<float>& {
    if (usage[d].empty()) usage[d] = bootstrap_usage(datasets[d], options);
    return usage[d];
  };
  std::vector<Distance> mine;  // [my pairs][2][L]
  std::size_t pair = 0;
  for (std::size_t i = 0; i < datasets.size(); ++i)
    for (std::size_t j = i + 1; j < datasets.size(); ++j, ++pair) {
      if (pair % n_ranks != rank) continue;
      const PairDistances distances = compare_pair(datasets[i], datasets[j], usage_of(i), usage_of(j), options);
      mine.insert(mine.end(), distances.jensen_shannon.begin(), distances.jensen_shannon.end());
      mine.insert(mine.end(), distances.total_variation.begin(), distances.total_variation.end());
      on_pair(pair + 1, n_pairs);
    }
  const std::vector<Distance> all = comm.gather_v<Distance>(mine);
  std::vector<PairDistances> pairs;
  if (comm.rank() != 0) return pairs;
  // Rank r's pairs are r, r + R, ...: where its run of distances begins.
  std::vector<std::size_t> next(n_ranks, 0);
  for (std::size_t r = 1; r < n_ranks; ++r) next[r] = next[r - 1] + (n_pairs + n_ranks - r) / n_ranks * 2 * n_layers;
  for (std::size_t p = 0; p < n_pairs; ++p) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(next[p % n_ranks]);
    const auto middle = begin + static_cast<std::ptrdiff_t>(n_layers);
    pairs.push_back({{begin, middle}, {middle, middle + static_cast<std::ptrdiff_t>(n_layers)}});
    next[p % n_ranks] += 2 * n_layers;
  }
  return pairs;
}

}  // namespace switchyard
