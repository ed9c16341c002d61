#include "pipeline/analysis/metrics.h"

#include <gtest/gtest.h>

#include <cmath>

namespace switchyard {
namespace {

using Counts = std::vector<std::uint64_t>;

TEST(Metrics, BalancedCounts) {
  const Counts counts = {10, 10, 10, 10};
  EXPECT_DOUBLE_EQ(coefficient_of_variation(counts), 0);
  EXPECT_DOUBLE_EQ(gini(counts), 0);
  EXPECT_DOUBLE_EQ(max_over_mean(counts), 1);
  EXPECT_DOUBLE_EQ(min_over_mean(counts), 1);
  EXPECT_NEAR(effective_experts(counts), 4, 1e-12);
  EXPECT_EQ(dead_experts(counts), 0U);
}

TEST(Metrics, AllToOneExpert) {
  const Counts counts = {40, 0, 0, 0};
  EXPECT_NEAR(coefficient_of_variation(counts), 1.7320508, 1e-7);
  EXPECT_DOUBLE_EQ(gini(counts), 0.75);
  EXPECT_DOUBLE_EQ(max_over_mean(counts), 4);
  EXPECT_DOUBLE_EQ(min_over_mean(counts), 0);
  EXPECT_DOUBLE_EQ(effective_experts(counts), 1);
  EXPECT_EQ(dead_experts(counts), 3U);
  EXPECT_EQ(underused_experts(counts), 3U);
}

TEST(Metrics, UnderusedIsBelowATenthOfTheIdeal) {
  // Ideal 25 of 100: the threshold is 2.5 slots.
  EXPECT_EQ(underused_experts(Counts{50, 45, 3, 2}), 1U);
  EXPECT_EQ(underused_experts(Counts{50, 45, 3, 2}, 0.2), 2U);
}

TEST(Metrics, NothingRoutedHasNoRatios) {
  const Counts none = {0, 0};
  EXPECT_TRUE(std::isnan(coefficient_of_variation(none)));
  EXPECT_TRUE(std::isnan(gini(none)));
  EXPECT_TRUE(std::isnan(max_over_mean(none)));
  EXPECT_TRUE(std::isnan(effective_experts(none)));
  EXPECT_TRUE(std::isnan(usage(none)[0]));
  EXPECT_EQ(dead_experts(none), 2U);
}

TEST(Metrics, GiniEqualsItsDefinition) {
  const Counts counts = {7, 1, 0, 19, 4, 4};
  double sum = 0;
  for (const auto a : counts)
    for (const auto b : counts) sum += std::abs(static_cast<double>(a) - static_cast<double>(b));
  EXPECT_NEAR(gini(counts), sum / (2.0 * 36 * (35.0 / 6)), 1e-12);
}

TEST(Metrics, EntropyIsInNats) {
  const std::vector<double> p = {.5, .25, .125, .125};
  EXPECT_NEAR(entropy_nats(p), 1.2130076, 1e-7);
  EXPECT_NEAR(entropy_nats(p) / std::log(2.0), 1.75, 1e-12);
}

TEST(Metrics, JensenShannonOfKnownPair) {
  EXPECT_NEAR(jensen_shannon(std::vector<double>{.5, .5}, std::vector<double>{1, 0}), 0.2157616, 1e-7);
  EXPECT_NEAR(jensen_shannon(std::vector<double>{1, 0}, std::vector<double>{0, 1}), std::log(2.0), 1e-12);
  EXPECT_EQ(jensen_shannon(std::vector<double>{.3, .7}, std::vector<double>{.3, .7}), 0);
}

TEST(Metrics, UniformRouterHasLossK) {
  // 100 tokens, 8 experts, 2 choices: 25 slots each, probabilities of 1/8.
  const Counts counts(8, 25);
  const std::vector<double> probability_sum(8, 100.0 / 8);
  EXPECT_NEAR(load_balancing_loss(counts, probability_sum, 100), 2, 1e-12);
  EXPECT_NEAR(load_balancing_loss(counts, probability_sum, 100) / 2, 1, 1e-12);  // by choice
}

TEST(Metrics, BalancednessOfSteps) {
  EXPECT_NEAR((balancedness(std::vector<double>{4, 0}) + balancedness(std::vector<double>{1, 1})) / 2, 0.75, 1e-5);
  EXPECT_NEAR((balancedness(std::vector<double>{2, 1}) + balancedness(std::vector<double>{1, 2})) / 2, 0.75, 1e-5);
}

TEST(Metrics, NullOfRepetition) {
  EXPECT_NEAR(intersection_null(8, 2), 0.4643, 1e-4);
  EXPECT_DOUBLE_EQ(intersection_null(8, 1), 0.125);
  EXPECT_DOUBLE_EQ(intersection_null(4, 3), 1);
}

TEST(Metrics, MutualInformation) {
  // Independent: 0. Copy of a fair coin: ln 2.
  EXPECT_NEAR(mutual_information(Counts{2, 4, 3, 6}, 2, 2), 0, 1e-12);
  EXPECT_NEAR(mutual_information(Counts{5, 0, 0, 5}, 2, 2), std::log(2.0), 1e-12);
  // 2 cells, 2 rows, 2 columns: (2 - 2 - 2 + 1) / 20.
  EXPECT_DOUBLE_EQ(miller_madow_bias(Counts{5, 0, 0, 5}, 2, 2), -0.05);
  EXPECT_DOUBLE_EQ(miller_madow_bias(Counts{2, 4, 3, 6}, 2, 2), 1.0 / 30);
}

TEST(Metrics, QuantilesOfAHistogram) {
  const Counts histogram = {0, 10, 0, 30};
  EXPECT_DOUBLE_EQ(histogram_quantile(histogram, 0, 4, 0.125), 1.5);
  EXPECT_DOUBLE_EQ(histogram_quantile(histogram, 0, 4, 0.25), 2);
  EXPECT_DOUBLE_EQ(histogram_quantile(histogram, 0, 4, 0.625), 3.5);
  EXPECT_DOUBLE_EQ(histogram_quantile(histogram, 0, 4, 1), 4);
  EXPECT_TRUE(std::isnan(histogram_quantile(Counts{0, 0}, 0, 1, 0.5)));
}

}  // namespace
}  // namespace switchyard
