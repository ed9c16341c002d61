#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

namespace switchyard {

/// The step of a mergeable Misra-Gries summary (Agarwal et al., "Mergeable summaries", 2012): what has to be taken off
/// every count so that at most `capacity` of them stay above 0, the (capacity + 1)-th largest; 0 when there are no
/// more. As at least capacity + 1 counts lose that much each time, a count is too low by no more than the sum of all
/// counts over (capacity + 1), however the summaries were merged.
inline std::uint64_t misra_gries_cut(std::vector<std::uint64_t> counts, std::uint64_t capacity) {
  if (counts.size() <= capacity) return 0;
  const auto next = counts.begin() + static_cast<std::ptrdiff_t>(capacity);
  std::nth_element(counts.begin(), next, counts.end(), std::greater<>());
  return *next;
}

}  // namespace switchyard
