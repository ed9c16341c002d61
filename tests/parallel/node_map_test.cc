#include "parallel/node_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace switchyard {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

TEST(NodeMap, CountsNodesInTheOrderOfTheirLowestRanks) {
  const NodeMap blocks = number_nodes({0, 0, 2, 2, 2}, {"a", "a", "b", "b", "b"});
  EXPECT_THAT(blocks.node_of_rank, ElementsAre(0U, 0U, 1U, 1U, 1U));
  EXPECT_THAT(blocks.names, ElementsAre("a", "b"));
  const NodeMap cyclic = number_nodes({0, 1, 2, 0, 1}, {"c", "a", "b", "c", "a"});
  EXPECT_THAT(cyclic.node_of_rank, ElementsAre(0U, 1U, 2U, 0U, 1U));
  EXPECT_THAT(cyclic.names, ElementsAre("c", "a", "b"));
}

/// Containers of one host that share no memory are nodes of one name.
TEST(NodeMap, NodesAreToldApartByMemoryNotByName) {
  const NodeMap map = number_nodes({0, 1}, {"host", "host"});
  EXPECT_THAT(map.node_of_rank, ElementsAre(0U, 1U));
  EXPECT_THAT(map.names, ElementsAre("host", "host"));
}

TEST(NodeMap, AllRanksOfThisTestShareANode) {
  const Communicator comm = Communicator::world();
  const NodeMap map = map_nodes(comm);
  EXPECT_EQ(map.node_of_rank, std::vector<std::uint32_t>(static_cast<std::size_t>(comm.size()), 0));
  EXPECT_THAT(map.names, SizeIs(1));
  EXPECT_FALSE(map.names.front().empty());
}

}  // namespace
}  // namespace switchyard
