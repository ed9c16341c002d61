#pragma once

#include <span>

namespace switchyard {

/// y = intercept + slope x by least squares; r_squared: the share of y's variance that the line explains.
struct Regression {
  double slope, intercept, r_squared;
};

/// Of equally many x and y. All NaN for fewer than three points or equal x; r_squared NaN for equal y.
Regression regress(std::span<const double> x, std::span<const double> y);

}  // namespace switchyard
