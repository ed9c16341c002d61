#include "pipeline/analysis/compare.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <map>
#include <random>

#include "pipeline/analysis/metrics.h"

namespace switchyard {
namespace {

/// One layer; groups of slots [groups, E].
GroupedSlots dataset(const std::string& name, int experts, std::vector<double> slots) {
  return {name, 1, experts, std::move(slots)};
}

/// Documents of 60 slots each, drawn from a usage of their own: a Dirichlet variate whose mean is `usage`.
GroupedSlots sampled(const std::string& name, const std::vector<double>& usage, int groups, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<double> slots;
  for (int g = 0; g < groups; ++g) {
    std::vector<double> own = usage;
    for (double& u : own) u = std::gamma_distribution<double>(10 * u, 1)(random);
    std::discrete_distribution<std::size_t> expert(own.begin(), own.end());
    std::vector<double> counts(usage.size(), 0);
    for (int t = 0; t < 60; ++t) ++counts[expert(random)];
    slots.insert(slots.end(), counts.begin(), counts.end());
  }
  return dataset(name, static_cast<int>(usage.size()), std::move(slots));
}

PairDistances compare(const GroupedSlots& a, const GroupedSlots& b, const CompareOptions& options) {
  return compare_pair(a, b, bootstrap_usage(a, options), bootstrap_usage(b, options), options);
}

TEST(TotalVariation, IsHalfTheSumOfDifferences) {
  EXPECT_DOUBLE_EQ(total_variation(std::vector<double>{.5, .5}, std::vector<double>{1, 0}), 0.5);
  EXPECT_DOUBLE_EQ(total_variation(std::vector<double>{.25, .25, .5}, std::vector<double>{.25, .25, .5}), 0);
  EXPECT_DOUBLE_EQ(total_variation(std::vector<double>{1, 0}, std::vector<double>{0, 1}), 1);
}

TEST(BenjaminiHochberg, EqualsAWorkedExample) {
  const std::vector<double> q = benjamini_hochberg(std::vector<double>{.01, .04, .03, NAN, .005});
  EXPECT_DOUBLE_EQ(q[0], .02);
  EXPECT_DOUBLE_EQ(q[1], .04);
  EXPECT_DOUBLE_EQ(q[2], .04);
  EXPECT_TRUE(std::isnan(q[3]));
  EXPECT_DOUBLE_EQ(q[4], .02);
  EXPECT_DOUBLE_EQ(benjamini_hochberg(std::vector<double>{.9, .8})[0], .9);
}

TEST(ComparePair, ValuesAreThoseOfPooledUsage) {
  const GroupedSlots a = dataset("a", 2, {3, 0, 1, 4});  // [4, 4]
  const GroupedSlots b = dataset("b", 2, {8, 0, 0, 0});  // [8, 0]; a group may hold no slot at some layer
  const PairDistances pair = compare(a, b, {});
  EXPECT_NEAR(pair.jensen_shannon[0].value, 0.2157616, 1e-7);
  EXPECT_DOUBLE_EQ(pair.total_variation[0].value, 0.5);
}

TEST(ComparePair, PermutationsApproachAllSplits) {
  const GroupedSlots a = dataset("a", 3, {5, 1, 0, 4, 2, 1, 6, 0, 1, 3, 3, 1});
  const GroupedSlots b = dataset("b", 3, {1, 4, 2, 2, 5, 0, 4, 3, 1});
  const CompareOptions options{.permutations = 20000};
  const PairDistances pair = compare(a, b, options);

  std::vector<double> all = a.slots;
  all.insert(all.end(), b.slots.begin(), b.slots.end());
  int splits = 0;
  int at_least = 0;
  for (unsigned chosen = 0; chosen < 1U << 7U; ++chosen) {  // each way to take four of the seven groups
    if (__builtin_popcount(chosen) != 4) continue;
    std::vector<std::uint64_t> left(3, 0);
    std::vector<std::uint64_t> right(3, 0);
    for (std::size_t g = 0; g < 7; ++g)
      for (std::size_t e = 0; e < 3; ++e)
        ((chosen >> g & 1U) != 0 ? left : right)[e] += static_cast<std::uint64_t>(all[g * 3 + e]);
    ++splits;
    at_least += jensen_shannon(usage(left), usage(right)) >= pair.jensen_shannon[0].value - 1e-12 ? 1 : 0;
  }
  ASSERT_EQ(splits, 35);
  const double exact = at_least / 35.0;
  EXPECT_GT(exact, 0.02);
  EXPECT_LT(exact, 0.9);
  EXPECT_NEAR(pair.jensen_shannon[0].p, exact, 4 * std::sqrt(exact * (1 - exact) / 20000));
}

TEST(BootstrapUsage, DrawsGroupsWithReplacement) {
  const GroupedSlots two = dataset("two", 2, {1, 0, 0, 3});
  const CompareOptions options{.bootstrap = 20000};
  const std::vector<float> usages = bootstrap_usage(two, options);
  std::map<float, int> times;
  for (std::size_t r = 0; r < 20000; ++r) ++times[usages[2 * r]];
  ASSERT_EQ(times.size(), 3U);  // both times one group, both times the other, or each once
  EXPECT_NEAR(times[1.0F], 5000, 250);
  EXPECT_NEAR(times[0.0F], 5000, 250);
  EXPECT_NEAR(times[0.25F], 10000, 300);
  EXPECT_TRUE(bootstrap_usage(dataset("one", 2, {1, 2}), options).empty());
}

TEST(ComparePair, ASingleGroupHasNoInterval) {
  const PairDistances pair = compare(dataset("a", 2, {1, 3}), dataset("b", 2, {2, 2, 1, 0}), {});
  EXPECT_GT(pair.jensen_shannon[0].value, 0);
  EXPECT_TRUE(std::isnan(pair.jensen_shannon[0].low));
  EXPECT_TRUE(std::isnan(pair.jensen_shannon[0].p));
  EXPECT_TRUE(std::isnan(pair.jensen_shannon[0].q));
}

TEST(ComparePair, IntervalsCoverAndTestsHoldTheirLevel) {
  const std::vector<double> one = {.4, .3, .2, .1};
  const std::vector<double> other = {.2, .3, .3, .2};
  const double truth = jensen_shannon(one, other);
  const CompareOptions options{.bootstrap = 300, .permutations = 199};
  int covered = 0;
  int covered_null = 0;
  int false_alarms = 0;
  int found = 0;
  constexpr int kTrials = 200;
  for (std::uint64_t trial = 0; trial < kTrials; ++trial) {
    const GroupedSlots a = sampled(std::to_string(trial), one, 60, 3 * trial);
    const GroupedSlots b = sampled("b", other, 80, 3 * trial + 1);
    const GroupedSlots c = sampled("c", one, 50, 3 * trial + 2);
    const Distance different = compare(a, b, options).jensen_shannon[0];
    covered += different.low <= truth && truth <= different.high ? 1 : 0;
    found += different.p < 0.05 ? 1 : 0;
    const Distance same = compare(a, c, options).jensen_shannon[0];
    covered_null += same.low == 0 ? 1 : 0;
    false_alarms += same.p <= 0.05 ? 1 : 0;
    EXPECT_GT(same.bias, 0);
  }
  RecordProperty("covered", covered);
  RecordProperty("covered_null", covered_null);
  RecordProperty("false_alarms", false_alarms);
  RecordProperty("found", found);
  EXPECT_GE(covered, 180);  // 190 expected
  EXPECT_GE(covered_null, 180);
  EXPECT_LE(false_alarms, 20);  // 10 expected
  EXPECT_GE(found, 195);
}

TEST(ComparePair, DoesNotDependOnThreads) {
  const GroupedSlots a = sampled("a", {.4, .3, .2, .1}, 30, 1);
  const GroupedSlots b = sampled("b", {.3, .3, .2, .2}, 40, 2);
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const Distance one = compare(a, b, {}).jensen_shannon[0];
  omp_set_num_threads(3);
  const Distance three = compare(a, b, {}).jensen_shannon[0];
  omp_set_num_threads(before);
  EXPECT_EQ(one.low, three.low);
  EXPECT_EQ(one.high, three.high);
  EXPECT_EQ(one.p, three.p);
  const Distance other_seed = compare(a, b, {.seed = 1}).jensen_shannon[0];
  EXPECT_NE(one.high, other_seed.high);
}

TEST(DistanceTables, AreSymmetric) {
  const std::vector<GroupedSlots> datasets = {dataset("a", 2, {3, 1, 2, 2}), dataset("b", 2, {1, 3, 2, 2}),
                                              dataset("c", 2, {0, 4, 1, 3})};
  std::vector<PairDistances> pairs;
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t j = i + 1; j < 3; ++j) pairs.push_back(compare(datasets[i], datasets[j], {}));
  const std::vector<Table> tables = distance_tables(datasets, pairs);
  ASSERT_EQ(tables.size(), 12U);
  const auto& jsd = std::get<std::vector<double>>(tables[0].values);
  EXPECT_EQ(tables[0].path, "/compare/jsd");
  EXPECT_EQ(tables[0].shape, (std::vector<std::uint64_t>{3, 3, 1}));
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(std::isnan(jsd[i * 3 + i]));
    for (std::size_t j = 0; j < i; ++j) EXPECT_EQ(jsd[i * 3 + j], jsd[j * 3 + i]);
  }
  EXPECT_EQ(jsd[1], pairs[0].jensen_shannon[0].value);
  EXPECT_EQ(jsd[5], pairs[2].jensen_shannon[0].value);
}

TEST(PooledTables, EqualHandComputedFigures) {
  const std::vector<GroupedSlots> datasets = {dataset("a", 2, {6, 2}), dataset("b", 2, {2, 6})};
  for (const Table& table : pooled_tables(datasets)) {
    const auto& values = std::get<std::vector<double>>(table.values);
    if (table.path == "/specialisation/usage_ratio") {
      EXPECT_EQ(values, (std::vector<double>{1.5, .5, .5, 1.5}));
    } else if (table.path == "/specialisation/pooled_usage") {
      EXPECT_EQ(values, (std::vector<double>{.5, .5}));
    } else if (table.path == "/dataset_information/mutual_information") {
      // ln 2 minus the entropy of (3/4, 1/4).
      EXPECT_NEAR(values[0], 0.1308121, 1e-7);
    } else {
      EXPECT_DOUBLE_EQ(values[0], (4 - 2 - 2 + 1) / 32.0);
    }
  }
}

}  // namespace
}  // namespace switchyard
