#include "jobs/binding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "jobs/format.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

/// Nodes of as many ranks each, ranks bound to these CPUs one after another.
Binding binding_of(std::size_t n_nodes, const std::vector<RankBinding>& ranks_of_node) {
  Binding binding;
  for (std::size_t node = 0; node < n_nodes; ++node) {
    binding.nodes.names.push_back(std::string("n") + std::to_string(node + 1));
    for (const RankBinding& rank : ranks_of_node) {
      binding.nodes.node_of_rank.push_back(static_cast<std::uint32_t>(node));
      binding.ranks.push_back(rank);
    }
  }
  return binding;
}

TEST(Ranges, AreRunsOfNumbers) {
  EXPECT_EQ(as_ranges({}), "");
  EXPECT_EQ(as_ranges({5}), "5");
  EXPECT_EQ(as_ranges({0, 1, 2, 3}), "0-3");
  EXPECT_EQ(as_ranges({0, 2, 3, 7, 8, 9, 11}), "0,2-3,7-9,11");
}

TEST(Binding, IsALineForEachNode) {
  EXPECT_EQ(describe(binding_of(2, {{"0-1", 2, 2, "0"}, {"2-3", 2, 2, "1"}})),
            "node n1: ranks 0-1 x 2 threads on CPUs 0-1, 2-3; GPUs 0, 1 unused\n"
            "node n2: ranks 2-3 x 2 threads on CPUs 0-1, 2-3; GPUs 0, 1 unused\n");
  EXPECT_EQ(describe(binding_of(1, {{"0-3,8", 5, 1, std::nullopt}})), "node n1: rank 0 x 1 thread on CPUs 0-3,8\n");
  EXPECT_EQ(describe(binding_of(1, {{"0-1", 2, 1, std::nullopt}, {"0-1", 2, 3, "2"}})),
            "node n1: ranks 0-1 x 1-3 threads on CPUs 0-1; GPU 2 unused\n");
}

TEST(Binding, SaysNothingOfGpusThatAreUsed) {
  Binding binding = binding_of(1, {{"0-1", 2, 2, "0"}, {"2-3", 2, 2, "1"}});
  binding.uses_gpus = true;
  EXPECT_EQ(describe(binding), "node n1: ranks 0-1 x 2 threads on CPUs 0-1, 2-3; GPUs 0, 1\n");
}

TEST(Binding, OfCyclicRanksNamesThem) {
  Binding binding = binding_of(2, {{"0", 1, 1, std::nullopt}, {"1", 1, 1, std::nullopt}});
  binding.nodes.node_of_rank = {0, 1, 0, 1};
  EXPECT_EQ(describe(binding), "node n1: ranks 0,2 x 1 thread on CPUs 0\nnode n2: ranks 1,3 x 1 thread on CPUs 1\n");
}

TEST(Binding, OfManyNodesAndRanksIsShort) {
  const std::string nodes = describe(binding_of(100, {{"0-7", 8, 8, std::nullopt}}));
  EXPECT_EQ(std::count(nodes.begin(), nodes.end(), '\n'), 9);
  EXPECT_THAT(nodes, AllOf(HasSubstr("node n8: rank 7 x 8"), HasSubstr("and 92 more nodes")));
  std::vector<RankBinding> ranks;
  for (int r = 0; r < 64; ++r) ranks.push_back({std::to_string(r), 1, 1, std::nullopt});
  EXPECT_EQ(describe(binding_of(1, ranks)), "node n1: ranks 0-63 x 1 thread on CPUs 0, 1, 2, 3, 4, 5, 6, 7, ... 63\n");
}

TEST(Binding, WarnsOfMoreThreadsThanCpus) {
  const auto warning = [](const std::vector<RankBinding>& ranks) {
    return oversubscription(binding_of(2, ranks)).value_or("none");
  };
  EXPECT_EQ(warning({{"0-1", 2, 2, std::nullopt}, {"2-3", 2, 2, std::nullopt}}), "none");
  EXPECT_EQ(warning({{"0-3", 4, 2, std::nullopt}, {"0-3", 4, 2, std::nullopt}}), "none");
  EXPECT_THAT(warning({{"0-3", 4, 4, std::nullopt}, {"0-3", 4, 4, std::nullopt}}),
              AllOf(HasSubstr("ranks 0-1 on node n1 run 8 threads on 4 CPUs (0-3): "), HasSubstr("--threads"),
                    HasSubstr("--cpu-bind"), Not(HasSubstr("n2"))));
  EXPECT_THAT(warning({{"0", 1, 1, std::nullopt}, {"1", 1, 3, std::nullopt}}),
              HasSubstr("rank 1 on node n1 runs 3 threads on 1 CPU (1): "));
}

}  // namespace
}  // namespace switchyard
