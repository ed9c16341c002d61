#include "pipeline/analysis/resampling.h"

#include <algorithm>

namespace switchyard {

std::mt19937_64 random_stream(std::uint64_t seed, std::string_view name, std::uint64_t number) {
  std::vector<std::uint32_t> words = {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32U),
                                      static_cast<std::uint32_t>(number)};
  for (const char byte : name) words.push_back(static_cast<unsigned char>(byte));
  std::seed_seq sequence(words.begin(), words.end());
  return std::mt19937_64(sequence);
}

std::size_t random_below(std::size_t n, std::mt19937_64& random) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<std::size_t>(static_cast<Wide>(random()) * n >> 64U);
}

std::vector<std::uint32_t> bootstrap_times(std::size_t n, std::uint64_t seed, std::string_view name,
                                           std::uint64_t resample) {
  std::mt19937_64 random = random_stream(seed, name, resample);
  std::vector<std::uint32_t> times(n, 0);
  for (std::size_t i = 0; i < n; ++i) ++times[random_below(n, random)];
  return times;
}

double sorted_quantile(std::span<const double> sorted, double at) {
  const double place = at * static_cast<double>(sorted.size() - 1);
  const auto lower = static_cast<std::size_t>(place);
  const std::size_t upper = std::min(lower + 1, sorted.size() - 1);
  return sorted[lower] + (place - static_cast<double>(lower)) * (sorted[upper] - sorted[lower]);
}

}  // namespace switchyard
