#include "pipeline/batching.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

std::vector<Window> windows_of(const std::vector<std::int64_t>& counts) {
  std::vector<Window> windows;
  std::uint64_t first = 0;
  for (const std::int64_t count : counts) {
    windows.push_back({windows.size(), first, count, -1});
    first += static_cast<std::uint64_t>(count);
  }
  return windows;
}

TEST(Batching, SharesAreRunsAboutEqualInTokens) {
  const auto windows = windows_of({10, 10, 10, 10, 10, 10});
  EXPECT_EQ(window_shares(windows, 1), (std::vector<std::size_t>{0, 6}));
  EXPECT_EQ(window_shares(windows, 2), (std::vector<std::size_t>{0, 3, 6}));
  EXPECT_EQ(window_shares(windows, 3), (std::vector<std::size_t>{0, 2, 4, 6}));
  EXPECT_EQ(window_shares(windows_of({1, 1, 1, 97}), 2), (std::vector<std::size_t>{0, 3, 4}));
  EXPECT_EQ(window_shares(windows_of({97, 1, 1, 1}), 2), (std::vector<std::size_t>{0, 1, 4}));
}

TEST(Batching, SharesCountAnswers) {
  EXPECT_EQ(window_shares(windows_of({1, 1, 1, 97}), 2, 1000), (std::vector<std::size_t>{0, 2, 4}));
}

TEST(Batching, MoreRanksThanWindows) {
  const auto shares = window_shares(windows_of({5}), 4);
  ASSERT_EQ(shares.size(), 5U);
  EXPECT_EQ(shares.front(), 0U);
  EXPECT_EQ(shares.back(), 1U);
  EXPECT_TRUE(std::is_sorted(shares.begin(), shares.end()));
  EXPECT_EQ(window_shares({}, 3), (std::vector<std::size_t>{0, 0, 0, 0}));
}

TEST(Batching, BatchesAreFilledInOrder) {
  using Pairs = std::vector<std::pair<std::size_t, std::size_t>>;
  const auto windows = windows_of({4, 4, 3, 8, 1});
  EXPECT_EQ(pack_batches(windows, 0, 5, 8), (Pairs{{0, 2}, {2, 3}, {3, 4}, {4, 5}}));
  EXPECT_EQ(pack_batches(windows, 0, 5, 100), (Pairs{{0, 5}}));
  EXPECT_EQ(pack_batches(windows, 1, 4, 11), (Pairs{{1, 3}, {3, 4}}));
  EXPECT_TRUE(pack_batches(windows, 2, 2, 8).empty());
  EXPECT_EQ(pack_batches(windows, 0, 5, 100, 2), (Pairs{{0, 2}, {2, 4}, {4, 5}}));
  EXPECT_EQ(pack_batches(windows, 0, 5, 8, 1), (Pairs{{0, 1}, {1, 2}, {2, 3}, {3, 4}, {4, 5}}));
}

TEST(Batching, TargetsFollowTheDocument) {
  Block block;
  block.tokens = {11, 12, 13, 21, 22};
  block.windows = {{7, 0, 2, 13, 3}, {7, 2, 1, -1, 3}, {8, 3, 2, 23, 900}};
  const Batch batch = make_batch(block, 0, 3);
  EXPECT_EQ(batch.tokens, block.tokens);
  EXPECT_EQ(batch.targets, (std::vector<std::int64_t>{12, 13, -1, 22, 23}));
  EXPECT_EQ(batch.window_offsets, (std::vector<std::int32_t>{0, 2, 3, 5}));
  const StepTokens step = make_step_tokens(block, 0, 3);
  EXPECT_EQ(step.document, (std::vector<std::uint32_t>{7, 7, 7, 8, 8}));
  EXPECT_EQ(step.group, (std::vector<std::uint16_t>{3, 3, 3, 900, 900}));
  EXPECT_EQ(step.position, (std::vector<std::uint32_t>{0, 1, 0, 0, 1}));
  EXPECT_EQ(make_batch(block, 1, 1).window_offsets, (std::vector<std::int32_t>{0}));
}

}  // namespace
}  // namespace switchyard
