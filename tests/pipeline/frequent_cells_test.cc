#include "pipeline/analysis/frequent_cells.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>

namespace switchyard {
namespace {

/// Zipf-distributed cells out of 100,000.
std::vector<std::uint64_t> zipf_cells(std::size_t n, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> uniform(0, std::log(1e5));
  std::vector<std::uint64_t> cells;
  for (std::size_t i = 0; i < n; ++i) cells.push_back(static_cast<std::uint64_t>(std::exp(uniform(random))) * 7919);
  return cells;
}

std::map<std::uint64_t, std::uint64_t> brute_force(const std::vector<std::uint64_t>& cells) {
  std::map<std::uint64_t, std::uint64_t> counts;
  for (const std::uint64_t cell : cells) ++counts[cell];
  return counts;
}

void expect_bound(const SparseCounts& kept, std::uint64_t undercount, std::uint64_t capacity,
                  const std::vector<std::uint64_t>& seen) {
  std::map<std::uint64_t, std::uint64_t> found;
  for (std::size_t i = 0; i < kept.cells().size(); ++i) found[kept.cells()[i]] = kept.counts()[i];
  const auto truth = brute_force(seen);
  ASSERT_GT(truth.size(), 2 * capacity);
  EXPECT_LE(found.size(), capacity);
  EXPECT_GT(undercount, 0U);
  EXPECT_LE(undercount, seen.size() / (capacity + 1));
  for (const auto& [cell, count] : found) EXPECT_TRUE(truth.contains(cell));
  for (const auto& [cell, count] : truth) {
    const std::uint64_t estimate = found.contains(cell) ? found[cell] : 0;
    EXPECT_LE(estimate, count);
    EXPECT_LE(count, estimate + undercount);
  }
}

TEST(FrequentCells, ExactWhileTheyHoldAllCells) {
  const auto cells = zipf_cells(3000, 1);
  const auto truth = brute_force(cells);
  FrequentCells frequent(truth.size());
  for (const std::uint64_t cell : cells) frequent.add(cell);
  const SparseCounts counts = frequent.counts();
  EXPECT_EQ(frequent.undercount(), 0U);
  ASSERT_EQ(counts.cells().size(), truth.size());
  std::size_t i = 0;
  for (const auto& [cell, count] : truth) {
    EXPECT_EQ(counts.cells()[i], cell);
    EXPECT_EQ(counts.counts()[i++], count);
  }
}

TEST(FrequentCells, KeepTheirBoundOnZipfCells) {
  const auto cells = zipf_cells(200000, 2);
  FrequentCells frequent(500);
  for (const std::uint64_t cell : cells) frequent.add(cell);
  const SparseCounts counts = frequent.counts();
  expect_bound(counts, frequent.undercount(), 500, cells);
}

TEST(FrequentCells, MergedInAnyOrderKeepTheBound) {
  const auto cells = zipf_cells(200000, 3);
  const auto part = [&](std::size_t p) {
    FrequentCells frequent(300);
    for (std::size_t i = p; i < cells.size(); i += 5) frequent.add(cells[i]);
    return frequent;
  };
  // One after another, backwards, as a tree, and as the sparse counts that are stored.
  FrequentCells left = part(0);
  for (const std::size_t p : {1U, 2U, 3U, 4U}) left.merge(part(p));
  FrequentCells right = part(4);
  for (const std::size_t p : {3U, 2U, 1U, 0U}) right.merge(part(p));
  FrequentCells tree = part(0);
  FrequentCells other = part(1);
  tree.merge(part(2));
  other.merge(part(4));
  other.merge(part(3));
  tree.merge(other);
  for (FrequentCells* merged : {&left, &right, &tree}) {
    const SparseCounts counts = merged->counts();
    expect_bound(counts, merged->undercount(), 300, cells);
  }
  SparseCounts stored;
  std::uint64_t undercount = 0;
  for (std::size_t p = 0; p < 5; ++p) {
    FrequentCells frequent = part(p);
    stored.merge(frequent.counts());
    undercount += frequent.undercount() + stored.compact(300);
  }
  expect_bound(stored, undercount, 300, cells);
}

TEST(FrequentCells, TakeNoMoreMemoryThanTheySay) {
  for (const std::uint64_t bytes : {1024U, 5000U, 1U << 22U}) {
    const std::uint64_t capacity = FrequentCells::capacity_within(bytes);
    EXPECT_LE(FrequentCells::bytes(capacity), bytes);
    EXPECT_GT(FrequentCells::bytes(capacity + 1), bytes / 2);
  }
  EXPECT_EQ(FrequentCells::capacity_within(1), 15U);
}

TEST(FrequentCells, AClearedOneBeginsAnew) {
  FrequentCells frequent(15);
  for (const std::uint64_t cell : zipf_cells(5000, 4)) frequent.add(cell);
  frequent.clear();
  EXPECT_EQ(frequent.undercount(), 0U);
  frequent.add(5, 3);
  EXPECT_EQ(frequent.counts(), SparseCounts({5}, {3}));
}

}  // namespace
}  // namespace switchyard
