#include "pipeline/analysis/token_experts.h"

#include <gtest/gtest.h>

#include <random>

namespace switchyard {
namespace {

constexpr AccumulatorShape kShape = {2, 3, 2, 40};

/// A dense table [L, V, E] and the same as sparse counts.
struct Tables {
  std::vector<std::uint64_t> dense;
  SparseCounts sparse;

  explicit Tables(std::uint64_t seed) : dense(2 * 40 * 3) {
    std::mt19937_64 random(seed);
    for (std::uint64_t& cell : dense) cell = random() % 3 == 0 ? 0 : random() % 30;
    for (std::size_t cell = 0; cell < dense.size(); ++cell) sparse.append(cell, dense[cell]);
  }
  std::uint64_t at(int layer, std::size_t token, int expert) const {
    return dense[(static_cast<std::size_t>(layer) * 40 + token) * 3 + static_cast<std::size_t>(expert)];
  }
};

TEST(TokenExperts, TopTokensEqualABruteForce) {
  const Tables tables(1);
  int compared = 0;
  for (const int layer : {0, 1})
    for (const int expert : {0, 1, 2}) {
      double all = 0;
      double of_expert = 0;
      for (std::size_t v = 0; v < 40; ++v)
        for (const int e : {0, 1, 2}) {
          all += static_cast<double>(tables.at(layer, v, e));
          if (e == expert) of_expert += static_cast<double>(tables.at(layer, v, e));
        }
      for (const TokenOrder order : {TokenOrder::count, TokenOrder::lift}) {
        const auto top = top_tokens(tables.sparse, kShape, layer, order, 10, 100).at(static_cast<std::size_t>(expert));
        std::size_t expected = 0;
        for (std::size_t v = 0; v < 40; ++v) {
          const std::uint64_t total = tables.at(layer, v, 0) + tables.at(layer, v, 1) + tables.at(layer, v, 2);
          expected += total >= 10 && tables.at(layer, v, expert) > 0 ? 1 : 0;
        }
        ASSERT_EQ(top.size(), expected);
        for (std::size_t i = 0; i < top.size(); ++i) {
          const TokenShare& t = top[i];
          const auto here = static_cast<double>(tables.at(layer, t.token, expert));
          const auto total = static_cast<double>(tables.at(layer, t.token, 0) + tables.at(layer, t.token, 1) +
                                                 tables.at(layer, t.token, 2));
          EXPECT_EQ(t.count, tables.at(layer, t.token, expert));
          EXPECT_DOUBLE_EQ(t.share, here / of_expert);
          EXPECT_DOUBLE_EQ(t.of_token, here / total);
          EXPECT_NEAR(t.lift, (here / of_expert) / (total / all), 1e-12);
          if (i > 0) {
            EXPECT_GE(order == TokenOrder::count ? static_cast<double>(top[i - 1].count) : top[i - 1].lift,
                      order == TokenOrder::count ? static_cast<double>(t.count) : t.lift);
            if (top[i - 1].of_token == t.of_token) {
              EXPECT_GE(top[i - 1].count, t.count);
            }
          }
          ++compared;
        }
        EXPECT_EQ(top_tokens(tables.sparse, kShape, layer, order, 10, 3).at(static_cast<std::size_t>(expert)).size(),
                  3U);
      }
    }
  EXPECT_GT(compared, 200);
}

TEST(TokenExperts, ATokensRowIsItsCells) {
  const Tables tables(2);
  for (const int layer : {0, 1})
    for (std::uint32_t v = 0; v < 40; ++v)
      EXPECT_EQ(experts_of_token(tables.sparse, kShape, layer, v),
                (std::vector<std::uint64_t>{tables.at(layer, v, 0), tables.at(layer, v, 1), tables.at(layer, v, 2)}));
}

TEST(TokenExperts, NothingRecordedHasNoTokens) {
  EXPECT_TRUE(top_tokens({}, kShape, 0, TokenOrder::count, 1, 5).at(1).empty());
  EXPECT_EQ(experts_of_token({}, kShape, 1, 7), (std::vector<std::uint64_t>{0, 0, 0}));
}

}  // namespace
}  // namespace switchyard
