#include "pipeline/analysis/cost_model.h"

#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <array>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace switchyard {
namespace {

struct Measurement {
  double slots, experts, seconds;
};

std::array<double, kCostSums> sums_of(const std::vector<Measurement>& measurements) {
  std::array<double, kCostSums> sums{};
  for (const Measurement& m : measurements) add_measurement(sums, m.slots, m.experts, m.seconds);
  return sums;
}

std::vector<Measurement> noisy(std::size_t n) {
  std::mt19937_64 draw(5);
  std::uniform_real_distribution<double> slots(0, 4000);
  std::uniform_int_distribution<int> experts(1, 8);
  std::normal_distribution<double> noise(0, 1e-4);
  std::vector<Measurement> measurements;
  for (std::size_t i = 0; i < n; ++i) {
    Measurement m{std::floor(slots(draw)), static_cast<double>(experts(draw)), 0};
    m.seconds = 3e-4 + 2e-6 * m.slots + 1e-4 * m.experts + noise(draw);
    measurements.push_back(m);
  }
  return measurements;
}

TEST(CostModel, EqualsAnOrthogonalDecompositionOfTheMeasurements) {
  const std::vector<Measurement> measurements = noisy(300);
  const auto n = static_cast<Eigen::Index>(measurements.size());
  Eigen::MatrixXd x(n, 3);
  Eigen::VectorXd y(n);
  for (Eigen::Index i = 0; i < n; ++i) {
    const Measurement& m = measurements[static_cast<std::size_t>(i)];
    x.row(i) << 1, m.slots, m.experts;
    y(i) = m.seconds;
  }
  const Eigen::VectorXd b = x.colPivHouseholderQr().solve(y);
  const double rest = (y - x * b).squaredNorm();
  const Eigen::MatrixXd covariance = (x.transpose() * x).inverse() * rest / static_cast<double>(n - 3);

  const CostModel model = fit_cost_model(sums_of(measurements));
  EXPECT_NEAR(model.intercept, b(0), 1e-9);
  EXPECT_NEAR(model.per_slot, b(1), 1e-12);
  EXPECT_NEAR(model.per_expert, b(2), 1e-10);
  EXPECT_NEAR(model.r_squared, 1 - rest / (y.array() - y.mean()).square().sum(), 1e-9);
  for (Eigen::Index i = 0; i < 3; ++i)
    for (Eigen::Index j = 0; j < 3; ++j)
      EXPECT_NEAR(model.covariance.at(static_cast<std::size_t>(3 * i + j)), covariance(i, j),
                  1e-6 * std::sqrt(covariance(i, i) * covariance(j, j)));
  const Eigen::VectorXd slots = x.col(1).array() - x.col(1).mean();
  const Eigen::VectorXd seconds = y.array() - y.mean();
  EXPECT_NEAR(slots_seconds_correlation(sums_of(measurements)),
              slots.dot(seconds) / std::sqrt(slots.squaredNorm() * seconds.squaredNorm()), 1e-9);
}

TEST(CostModel, RecoversAnExactLaw) {
  std::vector<Measurement> measurements;
  for (int i = 0; i < 40; ++i) {
    const double slots = 100.0 * i;
    const double experts = i % 7;
    measurements.push_back({slots, experts, 0.5 + 0.25 * slots + 8 * experts});
  }
  const CostModel model = fit_cost_model(sums_of(measurements));
  EXPECT_NEAR(model.intercept, 0.5, 1e-8);
  EXPECT_NEAR(model.per_slot, 0.25, 1e-12);
  EXPECT_NEAR(model.per_expert, 8, 1e-9);
  EXPECT_NEAR(model.r_squared, 1, 1e-12);
}

TEST(CostModel, SumsOfPartsAreSumsOfTheWhole) {
  const std::vector<Measurement> all = noisy(100);
  std::array<double, kCostSums> sums = sums_of({all.begin(), all.begin() + 37});
  const std::array<double, kCostSums> rest = sums_of({all.begin() + 37, all.end()});
  for (std::size_t i = 0; i < kCostSums; ++i) sums.at(i) += rest.at(i);
  EXPECT_NEAR(fit_cost_model(sums).per_slot, fit_cost_model(sums_of(all)).per_slot, 1e-14);
}

TEST(CostModel, WhatCannotBeToldApartGoesToTheIntercept) {
  // Always four experts.
  const CostModel constant = fit_cost_model(sums_of({{10, 4, 3}, {20, 4, 5}, {40, 4, 9}}));
  EXPECT_NEAR(constant.per_slot, 0.2, 1e-12);
  EXPECT_EQ(constant.per_expert, 0);
  EXPECT_NEAR(constant.intercept, 1, 1e-12);
  EXPECT_EQ(constant.covariance[8], 0);
  // A slot for each expert.
  EXPECT_EQ(fit_cost_model(sums_of({{1, 1, 3}, {2, 2, 5}, {4, 4, 9}})).per_expert, 0);
  // Never another number of slots.
  const CostModel flat = fit_cost_model(sums_of({{7, 2, 3}, {7, 2, 5}}));
  EXPECT_EQ(flat.per_slot, 0);
  EXPECT_NEAR(flat.intercept, 4, 1e-12);
  EXPECT_TRUE(std::isnan(slots_seconds_correlation(sums_of({{7, 2, 3}, {7, 2, 5}}))));
  // Nothing measured.
  EXPECT_TRUE(std::isnan(fit_cost_model(std::array<double, kCostSums>{}).intercept));
  EXPECT_TRUE(std::isnan(fit_cost_model(sums_of({{1, 1, 3}, {2, 1, 3}})).r_squared));
}

}  // namespace
}  // namespace switchyard
