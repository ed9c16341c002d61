#include "pipeline/experiments/kendall_tau.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace switchyard {
namespace {

/// Sorts values, with `room` as long as they are; returns the pairs that were out of order.
std::uint64_t sort_counting(std::span<std::int32_t> values, std::span<std::int32_t> room) {
  if (values.size() < 2) return 0;
  const std::size_t half = values.size() / 2;
  std::uint64_t inversions =
      sort_counting(values.first(half), room.first(half)) + sort_counting(values.subspan(half), room.subspan(half));
  std::size_t left = 0;
  std::size_t right = half;
  for (std::int32_t& out : room) {
    const bool take_right = left == half || (right < values.size() && values[right] < values[left]);
    if (take_right) inversions += half - left;
    out = values[take_right ? right++ : left++];
  }
  std::copy(room.begin(), room.end(), values.begin());
  return inversions;
}

}  // namespace

double kendall_tau(std::span<const std::int32_t> permutation) {
  if (permutation.size() < 2) return std::numeric_limits<double>::quiet_NaN();
  std::vector<std::int32_t> values(permutation.begin(), permutation.end());
  std::vector<std::int32_t> room(values.size());
  const auto out_of_order = static_cast<std::int64_t>(sort_counting(values, room));
  const auto n = static_cast<std::int64_t>(values.size());
  const std::int64_t pairs = n * (n - 1) / 2;
  return static_cast<double>(pairs - 2 * out_of_order) / static_cast<double>(pairs);
}

}  // namespace switchyard
