#include "pipeline/analysis/paired_tests.h"

#include <algorithm>
#include <boost/math/special_functions/beta.hpp>
#include <cmath>
#include <limits>
#include <numeric>

namespace switchyard {

double mcnemar_exact(std::uint64_t b, std::uint64_t c) {
  const std::uint64_t fewer = std::min(b, c);
  const std::uint64_t more = std::max(b, c);
  if (fewer == more) return 1;
  // P(X <= m) of binomial(n, 1/2) is the regularised incomplete beta function I_1/2(n - m, m + 1).
  return std::min(1.0, 2 * boost::math::ibeta(static_cast<double>(more), static_cast<double>(fewer) + 1, 0.5));
}

std::vector<double> mid_ranks(std::span<const double> values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::sort(order, [&](std::size_t i, std::size_t j) { return values[i] < values[j]; });
  std::vector<double> ranks(values.size());
  for (std::size_t begin = 0; begin < order.size();) {
    std::size_t end = begin + 1;
    while (end < order.size() && values[order[end]] == values[order[begin]]) ++end;
    for (std::size_t i = begin; i < end; ++i) ranks[order[i]] = static_cast<double>(begin + end + 1) / 2;
    begin = end;
  }
  return ranks;
}

double rank_correlation(std::span<const ValuePairs> strata) {
  double xy = 0;
  double xx = 0;
  double yy = 0;
  for (const ValuePairs& pairs : strata) {
    std::vector<double> x;
    std::vector<double> y;
    for (const auto& [first, second] : pairs) {
      x.push_back(first);
      y.push_back(second);
    }
    x = mid_ranks(x);
    y = mid_ranks(y);
    const double mean = static_cast<double>(pairs.size() + 1) / 2;
    for (std::size_t i = 0; i < x.size(); ++i) {
      xy += (x[i] - mean) * (y[i] - mean);
      xx += (x[i] - mean) * (x[i] - mean);
      yy += (y[i] - mean) * (y[i] - mean);
    }
  }
  if (xx == 0 || yy == 0) return std::numeric_limits<double>::quiet_NaN();
  return xy / std::sqrt(xx * yy);
}

}  // namespace switchyard
