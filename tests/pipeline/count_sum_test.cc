#include "pipeline/analysis/count_sum.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace switchyard {
namespace {

constexpr std::uint64_t kRows = 50;
constexpr std::uint64_t kColumns = 8;

struct StoredCounts {
  std::vector<std::uint64_t> pointers = {0};
  std::vector<std::uint16_t> columns;
  std::vector<std::uint64_t> counts;

  CsrCounts view() const { return {pointers, columns, counts, kColumns}; }
};

/// Each cell is there with this probability.
StoredCounts random_counts(double share, std::mt19937_64& random) {
  StoredCounts table;
  for (std::uint64_t row = 0; row < kRows; ++row) {
    for (std::uint16_t column = 0; column < kColumns; ++column)
      if (std::generate_canonical<double, 53>(random) < share) {
        table.columns.push_back(column);
        table.counts.push_back(random() % 1000 + 1);
      }
    table.pointers.push_back(table.counts.size());
  }
  return table;
}

/// Ten tables of such density, added up by a CountSum and cell by cell.
void expect_exact(double share, bool may_be_whole) {
  std::mt19937_64 random(7);
  CountSum sum;
  std::map<std::uint64_t, std::uint64_t> expected;
  for (int i = 0; i < 10; ++i) {
    const StoredCounts table = random_counts(share, random);
    sum.add(table.view(), may_be_whole);
    for (std::uint64_t row = 0; row < kRows; ++row)
      for (std::uint64_t at = table.pointers[row]; at < table.pointers[row + 1]; ++at)
        expected[row * kColumns + table.columns[at]] += table.counts[at];
  }
  const SparseCounts found = sum.take();
  ASSERT_EQ(found.cells().size(), expected.size());
  std::size_t i = 0;
  for (const auto& [cell, count] : expected) {
    EXPECT_EQ(found.cells()[i], cell);
    EXPECT_EQ(found.counts()[i++], count);
  }
  EXPECT_TRUE(sum.take().cells().empty());
}

TEST(CountSum, IsExactHoweverItIsHeld) {
  for (const double share : {0.003, 0.05, 0.9})
    for (const bool may_be_whole : {false, true}) expect_exact(share, may_be_whole);
}

TEST(CountSum, RowsMayBeginAnywhereInTheirColumns) {
  const std::vector<std::uint64_t> pointers = {2, 2, 3};
  const std::vector<std::uint16_t> columns = {9, 9, 1};
  const std::vector<std::uint64_t> counts = {9, 9, 5};
  CountSum sum;
  sum.add({pointers, columns, counts, 4}, true);
  sum.add({pointers, columns, counts, 4}, true);
  const SparseCounts found = sum.take();
  EXPECT_EQ(found.cells(), std::vector<std::uint64_t>{5});
  EXPECT_EQ(found.counts(), std::vector<std::uint64_t>{10});
}

}  // namespace
}  // namespace switchyard
