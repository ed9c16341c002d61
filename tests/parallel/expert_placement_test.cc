#include "parallel/expert_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/error.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::vector<std::int32_t> ranks_of(const LayerPlacement& layer) {
  std::vector<std::int32_t> ranks;
  for (int expert = 0; expert < layer.n_experts(); ++expert) ranks.push_back(layer.rank_of(expert));
  return ranks;
}

template <typename Make>
std::string message_of(Make make) {
  try {
    make();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(ExpertPlacementTest, ContiguousRunsDifferByAtMostOne) {
  const auto placement = ExpertPlacement::contiguous(3, 8, 3);
  EXPECT_EQ(placement.n_layers(), 3);
  EXPECT_THAT(ranks_of(placement.layer(2)), ElementsAre(0, 0, 1, 1, 1, 2, 2, 2));
  EXPECT_THAT(ranks_of(ExpertPlacement::contiguous(1, 7, 4).layer(0)), ElementsAre(0, 1, 1, 2, 2, 3, 3));
  EXPECT_THAT(ranks_of(ExpertPlacement::contiguous(1, 4, 4).layer(0)), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(ranks_of(ExpertPlacement::contiguous(1, 3, 1).layer(0)), ElementsAre(0, 0, 0));
}

TEST(ExpertPlacementTest, RoundRobin) {
  const auto placement = ExpertPlacement::round_robin(2, 8, 3);
  EXPECT_EQ(placement.n_layers(), 2);
  EXPECT_THAT(ranks_of(placement.layer(1)), ElementsAre(0, 1, 2, 0, 1, 2, 0, 1));
  EXPECT_THAT(placement.layer(1).experts_of(1), ElementsAre(1, 4, 7));
}

TEST(ExpertPlacementTest, ExpertsOfARankAscendWhateverThePlacement) {
  const LayerPlacement layer({3, 1, 3, 0, 1, 3, 3}, 5);
  EXPECT_EQ(layer.n_experts(), 7);
  EXPECT_EQ(layer.n_ranks(), 5);
  EXPECT_THAT(layer.experts_of(0), ElementsAre(3));
  EXPECT_THAT(layer.experts_of(1), ElementsAre(1, 4));
  EXPECT_THAT(layer.experts_of(2), IsEmpty());
  EXPECT_THAT(layer.experts_of(3), ElementsAre(0, 2, 5, 6));
  EXPECT_THAT(layer.experts_of(4), IsEmpty());
  EXPECT_EQ(layer.local_index(0), 0);
  EXPECT_EQ(layer.local_index(5), 2);
  EXPECT_EQ(layer.local_index(4), 1);
}

TEST(ExpertPlacementTest, CopiesAreNumberedByExpertThenRank) {
  const LayerPlacement layer({{1, 3}, {0}, {0, 1, 2}}, 4, CopyRule::by_token);
  EXPECT_EQ(layer.n_experts(), 3);
  EXPECT_EQ(layer.n_physical(), 6);
  EXPECT_TRUE(layer.has_replicas());
  std::vector<std::int32_t> logical;
  std::vector<std::int32_t> local;
  for (int p = 0; p < layer.n_physical(); ++p) {
    logical.push_back(layer.logical_of(p));
    local.push_back(layer.local_index(p));
    EXPECT_EQ(layer.experts_of(layer.rank_of(p))[static_cast<std::size_t>(layer.local_index(p))], logical.back());
  }
  EXPECT_THAT(logical, ElementsAre(0, 0, 1, 2, 2, 2));
  EXPECT_THAT(local, ElementsAre(0, 0, 0, 1, 1, 0));
  EXPECT_THAT(layer.ranks_of(0), ElementsAre(1, 3));
  EXPECT_THAT(layer.ranks_of(2), ElementsAre(0, 1, 2));
  EXPECT_THAT(layer.experts_of(1), ElementsAre(0, 2));
  EXPECT_FALSE(LayerPlacement({0, 1}, 2).has_replicas());
}

TEST(ExpertPlacementTest, ATokensCopyIsChosenByTheRule) {
  const std::vector<std::vector<std::int32_t>> ranks = {{1, 3}, {0}, {0, 1, 2}};
  const LayerPlacement by_token(ranks, 4, CopyRule::by_token);
  const LayerPlacement local_first(ranks, 4, CopyRule::local_first);
  for (int token = 0; token < 7; ++token)
    for (int rank = 0; rank < 4; ++rank) {
      EXPECT_EQ(by_token.physical_for(0, token, rank), (token + rank) % 2);
      EXPECT_EQ(by_token.physical_for(1, token, rank), 2);
      EXPECT_EQ(by_token.physical_for(2, token, rank), 3 + (token + rank) % 3);
      EXPECT_EQ(local_first.physical_for(2, token, rank), rank == 3 ? 3 + (token + rank) % 3 : 3 + rank);
    }
}

TEST(ExpertPlacementTest, RulesHaveNames) {
  for (const CopyRule rule : {CopyRule::by_token, CopyRule::local_first})
    EXPECT_EQ(parse_copy_rule(to_string(rule)), rule);
  EXPECT_THROW(static_cast<void>(parse_copy_rule("nearest")), UsageError);
}

TEST(ExpertPlacementTest, MoreRanksThanExpertsIsAUsageErrorThatNamesTheLimit) {
  EXPECT_THROW(ExpertPlacement::contiguous(1, 8, 9), UsageError);
  EXPECT_THROW(ExpertPlacement::round_robin(1, 8, 9), UsageError);
  EXPECT_THROW(ExpertPlacement::contiguous(1, 8, 0), UsageError);
  EXPECT_THAT(message_of([] { ExpertPlacement::contiguous(1, 8, 9); }), HasSubstr("at most 8 ranks"));
}

TEST(ExpertPlacementTest, BadRanksAreErrorsThatNameTheExpert) {
  EXPECT_THAT(message_of([] { LayerPlacement({0, 1, 2}, 2); }), HasSubstr("expert 2 is placed on rank 2"));
  EXPECT_THAT(message_of([] { LayerPlacement({0, -1}, 2); }), HasSubstr("expert 1 is placed on rank -1"));
  EXPECT_THAT(message_of([] {
                ExpertPlacement({LayerPlacement({0, 1}, 2), LayerPlacement({0, 1}, 3)});
              }),
              HasSubstr("MoE layer 1 is placed on 3 ranks"));
  const auto with_copies = [](const std::vector<std::vector<std::int32_t>>& ranks) {
    return LayerPlacement(ranks, 2, CopyRule::by_token);
  };
  EXPECT_THAT(message_of([&] { with_copies({{0}, {}}); }), HasSubstr("expert 1 is placed on no rank"));
  EXPECT_THAT(message_of([&] { with_copies({{0, 0}, {1}}); }), HasSubstr("ranks of expert 0 do not ascend"));
  EXPECT_THAT(message_of([&] { with_copies({{0, 2}, {1}}); }), HasSubstr("expert 0 is placed on rank 2"));
  EXPECT_THAT(message_of([&] {
                ExpertPlacement({with_copies({{0}, {1}}), with_copies({{0, 1}, {1}})});
              }),
              HasSubstr("MoE layer 1 has 3 copies of experts, layer 0 2"));
}

}  // namespace
}  // namespace switchyard
