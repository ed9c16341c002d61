#include "pipeline/analysis/cost_model.h"

#include <cmath>
#include <limits>

namespace switchyard {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
/// Of a variance over the mean square, or of a determinant over the product of variances: less is rounding.
constexpr double kDegenerate = 1e-10;

/// Sums of products of deviations from the means.
struct Centred {
  double n, slots, experts, seconds;  // means of the last three
  double ss, se, ee, sy, ey, yy;

  explicit Centred(CostSumsView sums)
      : n(sums[0]),
        slots(sums[1] / n),
        experts(sums[2] / n),
        seconds(sums[3] / n),
        ss(sums[4] - sums[1] * slots),
        se(sums[5] - sums[1] * experts),
        ee(sums[6] - sums[2] * experts),
        sy(sums[7] - sums[1] * seconds),
        ey(sums[8] - sums[2] * seconds),
        yy(sums[9] - sums[3] * seconds) {
    if (ss <= kDegenerate * sums[4]) ss = 0;
    if (ee <= kDegenerate * sums[6]) ee = 0;
    if (yy <= kDegenerate * kDegenerate * sums[9]) yy = 0;
  }
};

}  // namespace

void add_measurement(CostSums sums, double slots, double experts, double seconds) {
  const std::array<double, kCostSums> terms = {1,
                                               slots,
                                               experts,
                                               seconds,
                                               slots * slots,
                                               slots * experts,
                                               experts * experts,
                                               slots * seconds,
                                               experts * seconds,
                                               seconds * seconds};
  for (std::size_t i = 0; i < kCostSums; ++i) sums[i] += terms[i];
}

CostModel fit_cost_model(CostSumsView sums) {
  const Centred c(sums);
  const double determinant = c.ss * c.ee - c.se * c.se;
  const bool both = determinant > kDegenerate * c.ss * c.ee;
  // The inverse of the matrix of the regressors that are told apart: [slots, experts].
  double inverse_ss = 0;
  double inverse_se = 0;
  double inverse_ee = 0;
  if (both) {
    inverse_ss = c.ee / determinant;
    inverse_se = -c.se / determinant;
    inverse_ee = c.ss / determinant;
  } else if (c.ss > 0) {
    inverse_ss = 1 / c.ss;
  }
  const double freedom = c.n - 1 - (inverse_ss > 0 ? 1 : 0) - (inverse_ee > 0 ? 1 : 0);
  if (!(freedom >= 0)) {
    CostModel unknown{kNaN, kNaN, kNaN, {}, kNaN};
    unknown.covariance.fill(kNaN);
    return unknown;
  }
  CostModel model;
  model.per_slot = inverse_ss * c.sy + inverse_se * c.ey;
  model.per_expert = inverse_se * c.sy + inverse_ee * c.ey;
  model.intercept = c.seconds - model.per_slot * c.slots - model.per_expert * c.experts;
  const double explained = model.per_slot * c.sy + model.per_expert * c.ey;
  model.r_squared = c.yy > 0 ? explained / c.yy : kNaN;
  const double variance = freedom > 0 ? std::fmax(c.yy - explained, 0) / freedom : kNaN;
  // Of the means' coefficients and of the intercept, which is what is left of the mean.
  const double to_slot = inverse_ss * c.slots + inverse_se * c.experts;
  const double to_expert = inverse_se * c.slots + inverse_ee * c.experts;
  const double of_intercept = 1 / c.n + c.slots * to_slot + c.experts * to_expert;
  model.covariance = {of_intercept, -to_slot,   -to_expert, -to_slot,  inverse_ss,
                      inverse_se,   -to_expert, inverse_se, inverse_ee};
  for (double& value : model.covariance) value *= variance;
  return model;
}

double slots_seconds_correlation(CostSumsView sums) {
  const Centred c(sums);
  return c.ss > 0 && c.yy > 0 ? c.sy / std::sqrt(c.ss * c.yy) : kNaN;
}

}  // namespace switchyard
