// Run on 1 to 4 ranks: the spread of experts must not change a bit of what is recorded.
#include "tests/support/model_ranks.h"

#include <gtest/gtest.h>

#include <cstring>

namespace switchyard {
namespace {

using testing_support::RanksCase;

RanksCase in_halves(RanksCase test) {
  test.overlap = true;
  return test;
}

class ModelRanks : public ::testing::TestWithParam<RanksCase> {};

TEST_P(ModelRanks, EveryBitIsThatOfOneRank) {
  const RanksCase test = GetParam();
  if (test.precision == Precision::bf16 && best_precision() != Precision::bf16) GTEST_SKIP() << "no bf16";
  if (std::strcmp(test.transport, "local") == 0 && Communicator::world().size() > 1)
    GTEST_SKIP() << "the local transport has one rank";
  testing_support::expect_bits_of_one_rank(test);
}

INSTANTIATE_TEST_SUITE_P(All, ModelRanks,
                         ::testing::Values(RanksCase{"golden/mixtral", "local", "contiguous", Precision::f32},
                                           RanksCase{"golden/mixtral", "mpi", "contiguous", Precision::f32},
                                           RanksCase{"golden/mixtral", "mpi", "round-robin", Precision::f32},
                                           RanksCase{"golden/mixtral", "mpi", "round-robin", Precision::bf16},
                                           RanksCase{"golden/deepseek", "mpi", "round-robin", Precision::f32},
                                           RanksCase{"golden/deepseek", "mpi", "contiguous", Precision::bf16},
                                           RanksCase{"golden/deepseek", "mpi", "replicas", Precision::f32},
                                           RanksCase{"golden/mixtral", "mpi", "local replicas", Precision::bf16},
                                           RanksCase{"golden/mixtral", "mpi", "contiguous", Precision::f32, true},
                                           RanksCase{"golden/deepseek", "mpi", "contiguous", Precision::bf16, true},
                                           RanksCase{"golden/grok1", "mpi", "contiguous", Precision::f32},
                                           in_halves({"golden/mixtral", "mpi", "round-robin", Precision::f32}),
                                           in_halves({"golden/deepseek", "mpi", "replicas", Precision::f32}),
                                           in_halves({"data/demo", "mpi", "local replicas", Precision::bf16, true}),
                                           RanksCase{"data/demo", "mpi", "contiguous", Precision::bf16}));

}  // namespace
}  // namespace switchyard
