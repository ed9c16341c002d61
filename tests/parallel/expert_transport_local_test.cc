#include <gtest/gtest.h>

#include "tests/parallel/transport_contract.h"

namespace switchyard {
namespace {

INSTANTIATE_TEST_SUITE_P(Local, TransportContract, testing::ValuesIn(transport_cases(make_local_transport)), case_name);

TEST(LocalTransportTest, RowsAreNotCopied) {
  const Communicator comm = Communicator::world();
  const auto transport = make_transport("local", comm);
  const auto placement = ExpertPlacement::contiguous(1, 2, 1).layer(0);
  const std::vector<std::int32_t> ids = {1, 0, 1};
  const auto plan = ExchangePlan::make(SlotPlaces({ids, 1}, placement, comm.rank()).rows(), placement, comm);
  Tensor rows(DType::f32, 3, 5);
  const std::byte* memory = rows.bytes();
  Tensor arrived = transport->start_dispatch(plan, std::move(rows)).finish();
  EXPECT_EQ(arrived.bytes(), memory);
  const Tensor back = transport->start_combine(plan, std::move(arrived)).finish();
  EXPECT_EQ(back.bytes(), memory);
}

}  // namespace
}  // namespace switchyard
