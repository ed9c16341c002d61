#include "pipeline/experiments/regression.h"

#include <cassert>
#include <limits>
#include <numeric>

namespace switchyard {

Regression regress(std::span<const double> x, std::span<const double> y) {
  assert(x.size() == y.size());
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  const auto n = static_cast<double>(x.size());
  const double mean_x = std::accumulate(x.begin(), x.end(), 0.0) / n;
  const double mean_y = std::accumulate(y.begin(), y.end(), 0.0) / n;
  double xx = 0;
  double xy = 0;
  double yy = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    xx += (x[i] - mean_x) * (x[i] - mean_x);
    xy += (x[i] - mean_x) * (y[i] - mean_y);
    yy += (y[i] - mean_y) * (y[i] - mean_y);
  }
  if (x.size() < 3 || xx == 0) return {kNaN, kNaN, kNaN};
  const double slope = xy / xx;
  return {slope, mean_y - slope * mean_x, yy == 0 ? kNaN : xy * xy / (xx * yy)};
}

}  // namespace switchyard
