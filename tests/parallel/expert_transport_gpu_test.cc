/// The transports of rows in GPU memory, on the stand-in for CUDA and NCCL.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "parallel/device/stream.h"
#include "tests/parallel/transport_contract.h"
#include "tests/support/error_text.h"
#include "tests/support/fake_gpu/fake_gpu.h"

namespace switchyard {
namespace {

/// Fails when the stand-in has seen something wrong.
class NoComplaints : public ::testing::EmptyTestEventListener {
  void OnTestEnd(const ::testing::TestInfo& /*test*/) override { EXPECT_EQ(fake_gpu::take_complaints(), ""); }
};
const bool kListening = [] {
  fake_gpu::set_patience(std::chrono::seconds(60));  // busy machines
  ::testing::UnitTest::GetInstance()->listeners().Append(new NoComplaints);
  return true;
}();

INSTANTIATE_TEST_SUITE_P(Nccl, TransportContract,
                         ::testing::ValuesIn(transport_cases(make_nccl_transport, Device::gpu)), case_name);
INSTANTIATE_TEST_SUITE_P(MpiStaged, TransportContract,
                         ::testing::ValuesIn(transport_cases(make_mpi_transport, Device::gpu)), case_name);

const TransportCase kOnGpu{"f32_5", make_nccl_transport, DType::f32, 5, Device::gpu};

/// Every rank sends one token of two slots to each expert but the last.
World even_world(const Communicator& comm, const TransportCase& param, std::uint64_t salt) {
  const std::vector<std::int32_t> ids = {0, 1, 2, 3, 4, 5};
  return World(comm, std::vector<std::vector<std::int32_t>>(static_cast<std::size_t>(comm.size()), ids), param, salt);
}

TEST(NcclTransportTest, RowsInHostMemoryAreRefused) {
  const Communicator comm = Communicator::world();
  const auto transport = make_nccl_transport(comm);
  const World world = even_world(comm, kOnGpu, 1);
  EXPECT_EQ(testing::error_text([&] {
              static_cast<void>(transport->start_dispatch(world.plan(), copy_to(Device::cpu, world.packed())));
            }),
            "the nccl transport was given rows that are not in GPU memory; choose the mpi transport");
}

TEST(NcclTransportTest, RowsLeaveWhenTheComputeStreamHasMadeThem) {
  const Communicator comm = Communicator::world();
  const auto transport = make_nccl_transport(comm);
  const World world = even_world(comm, kOnGpu, 2);
  const Tensor made = world.packed();
  Tensor rows(made.dtype(), made.rows(), made.cols(), Device::gpu);
  const auto bytes = static_cast<std::size_t>(rows.rows() * rows.row_bytes());
  fake_gpu::enqueue(compute_stream().handle(), {{rows.bytes(), bytes}}, [to = rows.bytes(), &made, bytes] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    std::memcpy(to, made.bytes(), bytes);
  });
  Exchange flying = transport->start_dispatch(world.plan(), std::move(rows));
  EXPECT_EQ(comm.sum(expect_same_rows(std::move(flying).finish(), world.expected_arrival())), 6 * comm.size());
}

TEST(NcclTransportTest, RowsFlyWhileTheComputeStreamIsBusy) {
  const Communicator comm = Communicator::world();
  const auto transport = make_nccl_transport(comm);
  const World world = even_world(comm, kOnGpu, 3);
  Exchange flying = transport->start_dispatch(world.plan(), world.packed());
  std::atomic<bool> go = false;
  fake_gpu::enqueue(compute_stream().handle(), {}, [&] {
    while (!go) std::this_thread::yield();
  });
  const Tensor arrived = std::move(flying).finish();
  EXPECT_FALSE(compute_stream().record().is_done());
  go = true;
  EXPECT_EQ(comm.sum(expect_same_rows(arrived, world.expected_arrival())), 6 * comm.size());
}

TEST(NcclTransportTest, RowsInItsOwnMemoryAreNotCopied) {
  const Communicator comm = Communicator::world();
  const auto transport = make_nccl_transport(comm);
  const World world = even_world(comm, kOnGpu, 4);
  const Tensor made = world.packed();
  Tensor rows(made.dtype(), made.rows(), made.cols(), Device::gpu, transport->row_memory());
  const std::byte* there = rows.bytes();
  copy_bytes(rows.bytes(), made.bytes(), static_cast<std::size_t>(rows.rows() * rows.row_bytes()));
  const int before = fake_gpu::count_registrations();
  Exchange flying = transport->start_dispatch(world.plan(), std::move(rows));
  const Tensor arrived = std::move(flying).finish();
  EXPECT_EQ(comm.sum(expect_same_rows(arrived, world.expected_arrival())), 6 * comm.size());
  EXPECT_LE(fake_gpu::count_registrations() - before, 1);  // of what arrived
  const Tensor next(made.dtype(), made.rows(), made.cols(), Device::gpu, transport->row_memory());
  EXPECT_EQ(next.bytes(), there);  // given back, to be used again
}

TEST(NcclTransportTest, MemoryOfRowsIsFreedWhereItIsNeeded) {
  const Communicator comm = Communicator::world();
  const auto transport = make_nccl_transport(comm);
  { const Tensor idle(DType::f32, 700, 1 << 18, Device::gpu, transport->row_memory()); }
  { const Tensor other(DType::f32, 700, 1 << 18, Device::gpu); }                      // in its place
  const Tensor rows(DType::f32, 700, 1 << 18, Device::gpu, transport->row_memory());  // and back again
  EXPECT_TRUE(fake_gpu::is_registered({rows.bytes(), std::size_t{700} << 20U}));
  EXPECT_THAT(
      testing::error_text([&] { const Tensor more(DType::f32, 700, 1 << 18, Device::gpu, transport->row_memory()); }),
      ::testing::MatchesRegex("no GPU memory for [0-9]+ bytes of rows to exchange; use smaller batches or more ranks"));
}

TEST(NcclTransportTest, ManyUnevenExchangesOneAfterAnother) {
  const Communicator comm = Communicator::world();
  const auto transport = make_nccl_transport(comm);
  const int before = fake_gpu::count_registrations();
  std::int64_t compared = 0;
  std::int64_t expected = 0;
  for (std::uint64_t step = 0; step < 40; ++step) {
    std::vector<std::vector<std::int32_t>> ids;
    for (int rank = 0; rank < comm.size(); ++rank) {
      const int tokens = static_cast<int>((step * 5 + static_cast<std::uint64_t>(rank) * 3) % 4);
      ids.push_back(testing_support::skewed_ids(step * 8 + static_cast<std::uint64_t>(rank), tokens, World::kTopK,
                                                World::kExperts));
      expected += 2 * tokens * World::kTopK;
    }
    const World world(comm, std::move(ids), kOnGpu, step);
    Tensor arrived = transport->start_dispatch(world.plan(), world.packed()).finish();
    compared += expect_same_rows(arrived, world.expected_arrival());
    compared += expect_same_rows(transport->start_combine(world.plan(), std::move(arrived)).finish(), world.packed());
  }
  EXPECT_EQ(comm.sum(compared), expected);
  EXPECT_GT(fake_gpu::count_registrations() - before, 0);
  EXPECT_LE(fake_gpu::count_registrations() - before, 4);  // rows that go and come, and rows that tests hold
}

}  // namespace
}  // namespace switchyard
