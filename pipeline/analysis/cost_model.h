#pragma once

#include <array>
#include <cstddef>
#include <span>

namespace switchyard {

/// Seconds of a rank's experts in one layer of one step: intercept + per_slot slots + per_expert experts with a slot.
struct CostModel {
  double intercept = 0, per_slot = 0, per_expert = 0;
  std::array<double, 9> covariance{};  // [3, 3] of the three, in this order
  double r_squared = 0;
};

/// A model that explains less of the seconds' variance is not believed: other things than slots then decide them.
inline constexpr double kLeastRSquared = 0.5;

/// Of n measurements, the sums of n, slots, experts, seconds and of the six products of the last three two by two
/// (slots slots, slots experts, experts experts, slots seconds, experts seconds, seconds seconds): all that a fit
/// needs, and sums of parts add up.
inline constexpr std::size_t kCostSums = 10;
using CostSums = std::span<double, kCostSums>;
using CostSumsView = std::span<const double, kCostSums>;
void add_measurement(CostSums sums, double slots, double experts, double seconds);

/// Least squares. per_expert, and its covariance, are 0 where every measurement had as many experts, or as many as its
/// slots say, per_slot likewise without different slots: the intercept then holds what they would. All NaN of fewer
/// measurements than it takes; r_squared is NaN where all took the same time.
CostModel fit_cost_model(CostSumsView sums);

/// Pearson's correlation of seconds with slots; NaN where one of them never changes.
double slots_seconds_correlation(CostSumsView sums);

}  // namespace switchyard
