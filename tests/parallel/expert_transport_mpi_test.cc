#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <exception>
#include <stdexcept>
#include <thread>

#include "tests/parallel/transport_contract.h"

namespace switchyard {
namespace {

INSTANTIATE_TEST_SUITE_P(Mpi, TransportContract, testing::ValuesIn(transport_cases(make_mpi_transport)), case_name);

const TransportCase kNarrow{"f32_5", make_mpi_transport, DType::f32, 5};

/// Every rank sends one token of two slots to each expert but the last.
World even_world(const Communicator& comm, const TransportCase& param, std::uint64_t salt) {
  const std::vector<std::int32_t> ids = {0, 1, 2, 3, 4, 5};
  return World(comm, std::vector<std::vector<std::int32_t>>(static_cast<std::size_t>(comm.size()), ids), param, salt);
}

TEST(MpiTransportTest, RowsOfDifferentWidthsFlyTogether) {
  const Communicator comm = Communicator::world();
  const auto transport = make_transport("mpi", comm);
  std::vector<World> worlds;
  std::vector<Exchange> flying;
  for (const std::int64_t width : {1, 500, 3, 2000, 1}) {
    TransportCase param = kNarrow;
    param.width = width;
    worlds.push_back(even_world(comm, param, worlds.size()));
  }
  for (const World& world : worlds) flying.push_back(transport->start_dispatch(world.plan(), world.packed()));
  std::int64_t compared = 0;
  for (std::size_t i = 0; i < worlds.size(); ++i) {
    compared += expect_same_rows(std::move(flying[i]).finish(), worlds[i].expected_arrival());
  }
  EXPECT_EQ(comm.sum(compared), 5 * 6 * comm.size());
}

#ifdef NDEBUG  // a debug build compares widths among all ranks before rows fly, and so waits earlier
TEST(MpiTransportTest, TimeSpentWaitingIsCountedWhereItWasSpent) {
  constexpr std::chrono::milliseconds kLate{150};
  const Communicator comm = Communicator::world();
  if (comm.size() == 1) GTEST_SKIP() << "nobody to wait for";
  const auto transport = make_mpi_transport(comm);
  const World world = even_world(comm, kNarrow, 1);
  comm.barrier();
  if (comm.rank() == comm.size() - 1) std::this_thread::sleep_for(kLate);
  Tensor arrived = transport->start_dispatch(world.plan(), world.packed()).finish();
  const double dispatch_wait = transport->traffic().dispatch_wait_seconds;
  if (comm.rank() == 0) {
    EXPECT_GT(dispatch_wait, 0.1);
    EXPECT_LT(dispatch_wait, 60.0);
  }
  EXPECT_EQ(transport->traffic().combine_wait_seconds, 0.0);
  comm.barrier();
  if (comm.rank() == comm.size() - 1) std::this_thread::sleep_for(kLate);
  static_cast<void>(transport->start_combine(world.plan(), std::move(arrived)).finish());
  EXPECT_EQ(transport->traffic().dispatch_wait_seconds, dispatch_wait);
  if (comm.rank() == 0) {
    EXPECT_GT(transport->traffic().combine_wait_seconds, 0.1);
  }
}

TEST(MpiTransportTest, AnExchangeDroppedByAnErrorDoesNotWait) {
  const Communicator comm = Communicator::world();
  // Never freed: it still owns the exchange that nobody finishes.
  auto* transport = make_mpi_transport(comm).release();
  const World world = even_world(comm, kNarrow, 1);
  try {
    if (comm.rank() != 0 || comm.size() == 1) {  // rank 0 never takes part
      const Exchange flying = transport->start_dispatch(world.plan(), world.packed());
      throw std::runtime_error("while rows fly");
    }
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(comm.sum(std::int64_t{1}), comm.size());
}
#endif

TEST(MakeTransportTest, UnknownNamesAndLonelyTransportsAreUsageErrors) {
  const Communicator comm = Communicator::world();
  EXPECT_THROW(static_cast<void>(make_transport("smoke", comm)), UsageError);
  try {
    static_cast<void>(make_transport("smoke", comm));
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("choose local, mpi or nccl"));
  }
  if (comm.size() > 1) {
    EXPECT_THROW(static_cast<void>(make_transport("local", comm)), UsageError);
  }
}

}  // namespace
}  // namespace switchyard
