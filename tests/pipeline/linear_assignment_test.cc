#include "pipeline/analysis/linear_assignment.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "pipeline/experiments/kendall_tau.h"

namespace switchyard {
namespace {

using Gains = std::vector<float>;

double total(const Gains& gain, const std::vector<std::int32_t>& columns) {
  double sum = 0;
  for (std::size_t i = 0; i < columns.size(); ++i)
    sum += gain[i * columns.size() + static_cast<std::size_t>(columns[i])];
  return sum;
}

double best_by_trying(const Gains& gain, std::int32_t n) {
  std::vector<std::int32_t> columns(static_cast<std::size_t>(n));
  std::iota(columns.begin(), columns.end(), 0);
  double best = total(gain, columns);
  while (std::next_permutation(columns.begin(), columns.end())) best = std::max(best, total(gain, columns));
  return best;
}

/// A permutation, the total that it says, and duals that prove it.
void expect_optimal(const Gains& gain, std::int32_t n) {
  const Assignment found = assign(gain, n);
  std::vector<std::int32_t> sorted = found.column_of_row;
  std::sort(sorted.begin(), sorted.end());
  for (std::int32_t i = 0; i < n; ++i) ASSERT_EQ(sorted[static_cast<std::size_t>(i)], i);
  EXPECT_NEAR(found.total, total(gain, found.column_of_row), 1e-9);
  const double duals = std::accumulate(found.row_dual.begin(), found.row_dual.end(), 0.0) +
                       std::accumulate(found.column_dual.begin(), found.column_dual.end(), 0.0);
  EXPECT_NEAR(found.total, duals, 1e-9);
  double most = 0;
  for (std::size_t i = 0; i < sorted.size(); ++i)
    for (std::size_t j = 0; j < sorted.size(); ++j)
      most = std::max(most, gain[i * sorted.size() + j] - found.row_dual[i] - found.column_dual[j]);
  EXPECT_LE(most, 1e-12);
}

Gains random_gains(std::int32_t n, std::mt19937& engine, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  Gains gain(static_cast<std::size_t>(n) * static_cast<std::size_t>(n));
  for (float& g : gain) g = normal(engine);
  return gain;
}

TEST(LinearAssignment, EqualsTheBestOfAllPermutations) {
  std::mt19937 engine(1);
  int compared = 0;
  for (std::int32_t n = 1; n <= 7; ++n) {
    for (int k = 0; k < 30; ++k, ++compared) {
      Gains gain = random_gains(n, engine);
      if (k % 3 == 1)  // few values, so that many are best
        for (float& g : gain) g = std::round(g);
      if (k % 3 == 2)  // alike rows
        for (std::size_t i = static_cast<std::size_t>(n); i < gain.size() / 2; ++i) gain[i] = gain[i % 2];
      expect_optimal(gain, n);
      EXPECT_NEAR(assign(gain, n).total, best_by_trying(gain, n), 1e-9);
    }
  }
  EXPECT_EQ(compared, 210);
}

TEST(LinearAssignment, DualsProveLargerOnes) {
  std::mt19937 engine(2);
  for (const std::int32_t n : {200, 511, 1000, 1025}) expect_optimal(random_gains(n, engine, 0.02F), n);
}

TEST(LinearAssignment, TiesAndStructure) {
  const std::int32_t n = 150;
  const std::size_t cells = 150 * 150;
  expect_optimal(Gains(cells, 0.0F), n);
  Gains products(cells);  // the textbook's hard case: gain[i, j] = i j
  Gains few(cells);
  Gains ladder(cells);  // small differences far below the values
  for (std::size_t c = 0; c < cells; ++c) {
    products[c] = static_cast<float>((c / 150) * (c % 150)) / 22500;
    few[c] = static_cast<float>((c * 7919) % 3);
    ladder[c] = 1.0F + 1e-6F * static_cast<float>((c * 31) % 17);
  }
  expect_optimal(products, n);
  expect_optimal(few, n);
  expect_optimal(ladder, n);
  EXPECT_EQ(assign(products, n).column_of_row.front(), 0);  // large with large, small with small
}

TEST(LinearAssignment, FindsAPlantedPermutation) {
  std::mt19937 engine(3);
  const std::int32_t n = 300;
  std::vector<std::int32_t> planted(300);
  std::iota(planted.begin(), planted.end(), 0);
  std::shuffle(planted.begin(), planted.end(), engine);
  Gains gain = random_gains(n, engine, 0.02F);
  for (std::size_t i = 0; i < planted.size(); ++i) gain[i * 300 + static_cast<std::size_t>(planted[i])] += 1;
  EXPECT_EQ(assign(gain, n).column_of_row, planted);
}

TEST(KendallTau, EqualsTheDefinition) {
  std::mt19937 engine(4);
  int compared = 0;
  for (const std::size_t n : {2U, 3U, 10U, 101U}) {
    std::vector<std::int32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    EXPECT_EQ(kendall_tau(order), 1);
    std::reverse(order.begin(), order.end());
    EXPECT_EQ(kendall_tau(order), -1);
    for (int k = 0; k < 5; ++k, ++compared) {
      std::shuffle(order.begin(), order.end(), engine);
      int in_order = 0;
      int pairs = 0;
      for (std::size_t i = 0; i < n; ++i)
        for (std::size_t j = i + 1; j < n; ++j, ++pairs) in_order += order[i] < order[j] ? 1 : -1;
      EXPECT_DOUBLE_EQ(kendall_tau(order), static_cast<double>(in_order) / pairs);
    }
  }
  EXPECT_EQ(compared, 20);
  EXPECT_TRUE(std::isnan(kendall_tau(std::vector<std::int32_t>{0})));
}

}  // namespace
}  // namespace switchyard
