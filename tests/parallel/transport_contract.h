#pragma once

/// What every transport must do, on any number of ranks. A transport's test includes this and instantiates
/// TransportContract. Rows say who they are: any rank can tell which bytes a slot of another rank must bring.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/device/device_memory.h"
#include "parallel/error.h"
#include "parallel/exchange_plan.h"
#include "parallel/expert_placement.h"
#include "parallel/expert_transport.h"
#include "parallel/slot_places.h"
#include "parallel/tensor.h"
#include "tests/support/skewed_ids.h"

namespace switchyard {

struct TransportCase {
  std::string name;
  std::unique_ptr<ExpertTransport> (*make)(const Communicator&);
  DType dtype;
  std::int64_t width;
  Device device = Device::cpu;  // where rows lie
};

inline void PrintTo(const TransportCase& value, std::ostream* out) { *out << value.name; }

inline std::vector<TransportCase> transport_cases(std::unique_ptr<ExpertTransport> (*make)(const Communicator&),
                                                  Device device = Device::cpu) {
  return {{"f32_1", make, DType::f32, 1, device},
          {"f32_33", make, DType::f32, 33, device},
          {"bf16_1", make, DType::bf16, 1, device},
          {"bf16_7", make, DType::bf16, 7, device},
          {"bf16_4096", make, DType::bf16, 4096, device}};  // rows that no transport sends eagerly
}

inline std::string case_name(const testing::TestParamInfo<TransportCase>& info) { return info.param.name; }

/// One batch of every rank, and the rows that its slots bring.
class World {
 public:
  static constexpr int kExperts = 7;  // no multiple of 2, 3 or 4 ranks
  static constexpr int kTopK = 2;

  /// ids_of_rank: [n_ranks] batches. `salt` tells the rows of one batch from those of another.
  World(const Communicator& comm, std::vector<std::vector<std::int32_t>> ids_of_rank, const TransportCase& param,
        std::uint64_t salt)
      : ids_(std::move(ids_of_rank)),
        placement_(ExpertPlacement::contiguous(1, kExperts, comm.size()).layer(0)),
        places_(ids_of(comm.rank()), placement_, comm.rank()),
        plan_(ExchangePlan::make(places_.rows(), placement_, comm)),
        dtype_(param.dtype),
        width_(param.width),
        device_(param.device),
        salt_(salt) {}

  const ExchangePlan& plan() const { return plan_; }
  const LayerPlacement& placement() const { return placement_; }
  ExpertIds ids_of(int rank) const { return {ids_[static_cast<std::size_t>(rank)], kTopK}; }

  Tensor packed() const {
    Tensor rows(dtype_, plan_.n_send(), width_);
    std::int64_t row = 0;
    for (const std::int32_t slot : places_.pack_order())
      write_row(rows.bytes() + row++ * rows.row_bytes(), plan_.rank(), slot);
    return device_ == Device::cpu ? std::move(rows) : copy_to(device_, rows);
  }

  /// By source rank, expert, slot: found by scanning every batch, without the plan.
  Tensor expected_arrival() const {
    std::vector<std::pair<int, int>> senders;
    for (int source = 0; source < placement_.n_ranks(); ++source) {
      const auto ids = ids_of(source).ids;
      for (const std::int32_t expert : placement_.experts_of(plan_.rank())) {
        for (std::size_t slot = 0; slot < ids.size(); ++slot) {
          if (ids[slot] == expert) senders.emplace_back(source, static_cast<int>(slot));
        }
      }
    }
    Tensor rows(dtype_, static_cast<std::int64_t>(senders.size()), width_);
    std::int64_t i = 0;
    for (const auto& [source, slot] : senders) write_row(rows.bytes() + rows.row_bytes() * i++, source, slot);
    return rows;
  }

 private:
  /// Any bits may travel: the hash gives NaNs and subnormals too.
  void write_row(std::byte* row, int source, int slot) const {
    std::uint64_t state = testing_support::mix(salt_ * 1000003U + static_cast<std::uint64_t>(source) * 4099U +
                                               static_cast<std::uint64_t>(slot));
    for (std::int64_t i = 0; i < width_ * size_of(dtype_); ++i) {
      state = testing_support::mix(state);
      row[i] = static_cast<std::byte>(state & 0xffU);
    }
  }

  std::vector<std::vector<std::int32_t>> ids_;
  LayerPlacement placement_;
  SlotPlaces places_;
  ExchangePlan plan_;
  DType dtype_;
  std::int64_t width_;
  Device device_;
  std::uint64_t salt_;
};

/// Returns the rows compared.
inline std::int64_t expect_same_rows(const Tensor& found, const Tensor& expected) {
  if (found.device() != Device::cpu) return expect_same_rows(copy_to(Device::cpu, found), expected);
  if (expected.device() != Device::cpu) return expect_same_rows(found, copy_to(Device::cpu, expected));
  EXPECT_EQ(found.dtype(), expected.dtype());
  EXPECT_EQ(found.cols(), expected.cols());
  EXPECT_EQ(found.rows(), expected.rows());
  if (found.rows() != expected.rows() || found.row_bytes() != expected.row_bytes()) return 0;
  for (std::int64_t row = 0; row < found.rows(); ++row) {
    const std::int64_t begin = row * found.row_bytes();
    EXPECT_EQ(std::memcmp(found.bytes() + begin, expected.bytes() + begin, static_cast<std::size_t>(found.row_bytes())),
              0)
        << "row " << row;
  }
  return found.rows();
}

class TransportContract : public testing::TestWithParam<TransportCase> {
 protected:
  /// Tokens of a rank: none on rank 0 unless it is alone, different numbers on the others.
  int n_tokens_of(int rank) const { return comm_.size() == 1 ? 19 : 17 * rank; }

  World skewed(std::uint64_t salt) const {
    std::vector<std::vector<std::int32_t>> ids;
    for (int rank = 0; rank < comm_.size(); ++rank) {
      ids.push_back(testing_support::skewed_ids(salt * 64 + static_cast<std::uint64_t>(rank), n_tokens_of(rank),
                                                World::kTopK, World::kExperts));
    }
    return World(comm_, std::move(ids), GetParam(), salt);
  }

  /// Slots of all ranks: what one exchange moves.
  std::int64_t n_slots() const {
    std::int64_t tokens = 0;
    for (int rank = 0; rank < comm_.size(); ++rank) tokens += n_tokens_of(rank);
    return tokens * World::kTopK;
  }

  Communicator comm_ = Communicator::world();
  std::unique_ptr<ExpertTransport> transport_ = GetParam().make(comm_);
};

TEST_P(TransportContract, DispatchBringsRowsInArrivedOrder) {
  const World world = skewed(1);
  Exchange flying = transport_->start_dispatch(world.plan(), world.packed());
  const Tensor arrived = std::move(flying).finish();
  EXPECT_EQ(arrived.device(), GetParam().device);
  EXPECT_EQ(comm_.sum(expect_same_rows(arrived, world.expected_arrival())), n_slots());
}

TEST_P(TransportContract, CombineBringsTheSameBitsBack) {
  const World world = skewed(2);
  Tensor arrived = transport_->start_dispatch(world.plan(), world.packed()).finish();
  const Tensor back = transport_->start_combine(world.plan(), std::move(arrived)).finish();
  EXPECT_EQ(comm_.sum(expect_same_rows(back, world.packed())), n_slots());
}

TEST_P(TransportContract, SeveralFlyAtOnceAndFinishInOrder) {
  const World first = skewed(3);
  const World second = skewed(4);
  Exchange out_first = transport_->start_dispatch(first.plan(), first.packed());
  Exchange out_second = transport_->start_dispatch(second.plan(), second.packed());
  Tensor arrived_first = std::move(out_first).finish();
  std::int64_t compared = expect_same_rows(arrived_first, first.expected_arrival());
  Exchange back_first = transport_->start_combine(first.plan(), std::move(arrived_first));
  Tensor arrived_second = std::move(out_second).finish();
  compared += expect_same_rows(arrived_second, second.expected_arrival());
  Exchange back_second = transport_->start_combine(second.plan(), std::move(arrived_second));
  compared += expect_same_rows(std::move(back_first).finish(), first.packed());
  compared += expect_same_rows(std::move(back_second).finish(), second.packed());
  EXPECT_EQ(comm_.sum(compared), 4 * n_slots());
}

TEST_P(TransportContract, EveryTokenToOneExpert) {
  std::vector<std::vector<std::int32_t>> ids;
  for (int rank = 0; rank < comm_.size(); ++rank) {
    ids.emplace_back(static_cast<std::size_t>(n_tokens_of(rank) * World::kTopK), World::kExperts - 1);
  }
  const World world(comm_, std::move(ids), GetParam(), 5);
  Tensor arrived = transport_->start_dispatch(world.plan(), world.packed()).finish();
  EXPECT_EQ(arrived.rows(), comm_.rank() == comm_.size() - 1 ? n_slots() : 0);
  std::int64_t compared = expect_same_rows(arrived, world.expected_arrival());
  compared += expect_same_rows(transport_->start_combine(world.plan(), std::move(arrived)).finish(), world.packed());
  EXPECT_EQ(comm_.sum(compared), 2 * n_slots());
}

TEST_P(TransportContract, NobodyBringsAnything) {
  const World world(comm_, std::vector<std::vector<std::int32_t>>(static_cast<std::size_t>(comm_.size())), GetParam(),
                    6);
  Tensor arrived = transport_->start_dispatch(world.plan(), world.packed()).finish();
  EXPECT_EQ(arrived.rows(), 0);
  EXPECT_EQ(arrived.cols(), GetParam().width);
  EXPECT_EQ(arrived.dtype(), GetParam().dtype);
  const Tensor back = transport_->start_combine(world.plan(), std::move(arrived)).finish();
  EXPECT_EQ(back.rows(), 0);
  EXPECT_EQ(back.cols(), GetParam().width);
}

TEST_P(TransportContract, TrafficCountsBothWays) {
  const World world = skewed(7);
  Tensor arrived = transport_->start_dispatch(world.plan(), world.packed()).finish();
  const auto row_bytes = static_cast<std::uint64_t>(GetParam().width * size_of(GetParam().dtype));
  const auto n_ranks = static_cast<std::size_t>(comm_.size());
  std::vector<std::uint64_t> expected(n_ranks);
  for (const std::int32_t id : world.ids_of(comm_.rank()).ids) {
    expected[static_cast<std::size_t>(world.placement().rank_of(id))] += row_bytes;
  }
  EXPECT_EQ(transport_->traffic().bytes_sent, expected);
  EXPECT_EQ(transport_->traffic().combine_wait_seconds, 0.0);

  static_cast<void>(transport_->start_combine(world.plan(), std::move(arrived)).finish());
  for (int source = 0; source < comm_.size(); ++source) {
    for (const std::int32_t id : world.ids_of(source).ids) {
      if (world.placement().rank_of(id) == comm_.rank()) expected[static_cast<std::size_t>(source)] += row_bytes;
    }
  }
  EXPECT_EQ(transport_->traffic().bytes_sent, expected);
}

TEST_P(TransportContract, WrongShapesAreErrors) {
  const World world = skewed(8);
  const ExchangePlan& plan = world.plan();
  const auto rows = [](std::int64_t n, std::int64_t width) { return Tensor(DType::f32, n, width, GetParam().device); };
  EXPECT_THROW(static_cast<void>(transport_->start_dispatch(plan, rows(plan.n_send() + 1, 4))), Error);
  EXPECT_THROW(static_cast<void>(transport_->start_combine(plan, rows(plan.n_receive() + 1, 4))), Error);
  EXPECT_THROW(static_cast<void>(transport_->start_dispatch(plan, rows(plan.n_send(), 0))), Error);
  const auto wider = ExpertPlacement::contiguous(1, World::kExperts, comm_.size() + 1).layer(0);
  const std::vector<std::int32_t> nothing(wider.experts_of(0).size() * static_cast<std::size_t>(comm_.size() + 1));
  const std::vector<std::int32_t> nowhere(World::kExperts);
  EXPECT_THROW(static_cast<void>(transport_->start_dispatch(ExchangePlan(nowhere, wider, 0, nothing), rows(0, 4))),
               Error);
}

TEST_P(TransportContract, FinishingTwiceIsAnError) {
  const World world = skewed(9);
  Exchange flying = transport_->start_dispatch(world.plan(), world.packed());
  static_cast<void>(std::move(flying).finish());
  EXPECT_THROW(static_cast<void>(std::move(flying).finish()), Error);  // NOLINT(bugprone-use-after-move)
}

}  // namespace switchyard
