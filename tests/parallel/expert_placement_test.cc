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
}

}  // namespace
}  // namespace switchyard
