/// Where slots go, found on a GPU, is what the CPU finds. The same source runs on the stand-in for CUDA and where there
/// is a GPU on that.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "parallel/device/device_memory.h"
#include "parallel/slot_places.h"
#include "pipeline/kernels/cuda/router.h"
#include "pipeline/kernels/cuda/slot_order.h"
#include "pipeline/kernels/router.h"
#include "pipeline/model/backend.h"
#include "tests/support/error_text.h"
#include "tests/support/f32_matrix.h"
#include "tests/support/gpu_faults.h"
#include "tests/support/skewed_ids.h"

namespace switchyard {
namespace {

const bool kWatched = testing_support::watch_gpu_faults();

using testing_support::random_matrix;
using testing_support::values_of;
using Numbers = std::vector<std::int32_t>;

/// Expert e on rank e mod R, every third one on all ranks.
LayerPlacement with_replicas(int n_experts, int n_ranks, CopyRule rule) {
  std::vector<Numbers> ranks(static_cast<std::size_t>(n_experts));
  for (int e = 0; e < n_experts; ++e)
    for (int rank = 0; rank < n_ranks; ++rank)
      if (e % 3 == 0 || rank == e % n_ranks) ranks[static_cast<std::size_t>(e)].push_back(rank);
  return {ranks, n_ranks, rule};
}

/// Compares places and orders of three parts with SlotPlaces'. Returns the slots compared.
std::size_t compare_with_cpu(const LayerPlacement& placement, int rank, int n_tokens, int top_k) {
  constexpr int kParts = 3;
  const Numbers ids =
      testing_support::skewed_ids(static_cast<std::uint64_t>(n_tokens + rank), n_tokens, top_k, placement.n_experts());
  const DeviceArray<std::int32_t> on_gpu{std::span<const std::int32_t>(ids)};
  const DeviceArray<std::int32_t> table{std::span<const std::int32_t>(gpu::place_table(placement, rank))};
  std::size_t compared = 0;
  for (int part = 0; part < kParts; ++part) {
    const auto [first, end] = tokens_of_part(n_tokens, part, kParts);
    const SlotPlaces expected({ids, top_k}, {first, end}, placement, rank);
    const Numbers before(static_cast<std::size_t>(placement.n_physical()), 5);
    DeviceArray<std::int32_t> rows{std::span<const std::int32_t>(before)};
    const gpu::PlacedSlots slots = gpu::place_slots(on_gpu, {first * top_k, (end - first) * top_k}, top_k, table,
                                                    placement.n_experts(), rank, rows.data());
    Numbers added = rows.to_host();
    for (std::int32_t& count : added) count -= 5;
    EXPECT_THAT(added, ::testing::ElementsAreArray(expected.rows()));
    const Numbers row_of_slot = gpu::rows_of_slots(slots, placement.n_physical()).to_host();
    const Numbers order = expected.pack_order();
    EXPECT_EQ(row_of_slot.size(), order.size());
    for (std::size_t row = 0; row < std::min(order.size(), row_of_slot.size()); ++row, ++compared)
      EXPECT_EQ(row_of_slot[static_cast<std::size_t>(order[row] - first * top_k)], static_cast<std::int32_t>(row));
  }
  return compared;
}

TEST(GpuSlotsTest, PlacesAndOrdersAreThoseOfTheCpu) {
  std::size_t compared = 0;
  std::size_t expected = 0;
  for (const int n_experts : {4, 60, 512}) {
    for (const int n_tokens : {0, 1, 2, 300}) {
      for (const int rank : {0, 2}) {
        for (const LayerPlacement& placement :
             {ExpertPlacement::contiguous(1, n_experts, 3).layer(0),
              ExpertPlacement::round_robin(1, n_experts, 4).layer(0), with_replicas(n_experts, 3, CopyRule::by_token),
              with_replicas(n_experts, 3, CopyRule::local_first)}) {
          compared += compare_with_cpu(placement, rank, n_tokens, 2);
          expected += 2 * static_cast<std::size_t>(n_tokens);
        }
      }
    }
    compared += compare_with_cpu(ExpertPlacement::contiguous(1, n_experts, 1).layer(0), 0, 2000, 4);
    expected += 8000;
  }
  EXPECT_EQ(compared, expected);
}

TEST(GpuSlotsTest, WhatIsNoExpertCountsAsTheFirst) {
  const auto placement = ExpertPlacement::contiguous(1, 3, 1).layer(0);
  const Numbers ids = {1, -7, 2, 1 << 30, 3, 2};
  const DeviceArray<std::int32_t> table(std::span<const std::int32_t>(gpu::place_table(placement, 0)));
  DeviceArray<std::int32_t> rows{std::span<const std::int32_t>(Numbers(3))};
  const auto slots = gpu::place_slots(DeviceArray<std::int32_t>(std::span(ids)), {0, 6}, 1, table, 3, 0, rows.data());
  EXPECT_THAT(slots.places.to_host(), ::testing::ElementsAre(1, 0, 2, 0, 0, 2));
  EXPECT_THAT(rows.to_host(), ::testing::ElementsAre(3, 1, 2));
}

struct Backends {
  ModelConfig config = [] {
    ModelConfig small;
    small.d_model = 24;
    small.n_heads = small.n_kv_heads = small.n_layers = 1;
    small.head_dim = small.d_ff = 8;
    small.n_experts = 7;
    small.top_k = 2;
    return small;
  }();
  std::unique_ptr<Backend> cpu = make_cpu_backend(config, DType::f32);
  std::unique_ptr<Backend> gpu =
      make_gpu_backend(config, DType::f32, AttentionKernel::own, 64, GroupedMatmulKind::cublaslt);
};

TEST(GpuSlotsTest, RowsGoAndComeAsOnTheCpu) {
  const Backends backends;
  const LayerPlacement placement = with_replicas(7, 3, CopyRule::by_token);
  const RouterRule rule{2, true};
  for (const std::int64_t n : {0, 1, 50}) {
    for (const int n_parts : {1, 2}) {
      Routing routing = choose_experts(random_matrix(n, 7, 3), rule, "layer 0");
      Routing on_gpu = gpu::choose_experts(copy_to(Device::gpu, routing.logits), rule);
      const auto expected = backends.cpu->send_slots(routing, "layer 0", placement, 1, n_parts, nullptr);
      const auto found = backends.gpu->send_slots(on_gpu, "layer 0", placement, 1, n_parts, nullptr);
      on_gpu = {};  // need not outlive it
      routing = {};
      const Tensor h = random_matrix(n, 24, 4);
      Tensor x = random_matrix(n, 24, 5);
      Tensor x_on_gpu = copy_to(Device::gpu, x);
      for (int part = 0; part < n_parts; ++part) {
        const Tensor packed = expected->pack(part, h);
        const Tensor packed_on_gpu = found->pack(part, copy_to(Device::gpu, h));
        EXPECT_EQ(values_of(packed_on_gpu), values_of(packed));
        const std::vector<double> norms = expected->norms(part, packed);
        EXPECT_EQ(norms.size(), static_cast<std::size_t>(packed.rows()));
        EXPECT_THAT(found->norms(part, packed_on_gpu), ::testing::Pointwise(::testing::DoubleNear(1e-12), norms));
        expected->add_weighted(part, x, packed);
        found->add_weighted(part, x_on_gpu, packed_on_gpu);
      }
      const std::vector<float> sums = values_of(x);
      const std::vector<float> sums_on_gpu = values_of(x_on_gpu);
      ASSERT_EQ(sums.size(), static_cast<std::size_t>(n * 24));
      for (std::size_t i = 0; i < sums.size(); ++i) EXPECT_NEAR(sums_on_gpu[i], sums[i], 1e-5F);
      EXPECT_THAT(found->rows_by_place(), ::testing::ElementsAreArray(expected->rows_by_place()));
      EXPECT_EQ(found->rows_by_place().size(), static_cast<std::size_t>(n_parts * placement.n_physical()));
    }
  }
}

TEST(GpuSlotsTest, ALogitThatIsNotFiniteIsToldOfWithTheCounts) {
  const Backends backends;
  Tensor bad = random_matrix(9, 7, 1);
  bad.data<float>()[5 * 7 + 3] = NAN;
  bad.data<float>()[7 * 7] = INFINITY;
  const Routing routing = gpu::choose_experts(copy_to(Device::gpu, bad), {2, true});
  const auto sent =
      backends.gpu->send_slots(routing, "layer 4", ExpertPlacement::contiguous(1, 7, 1).layer(0), 0, 1, nullptr);
  EXPECT_EQ(testing::error_text([&] { static_cast<void>(sent->rows_by_place()); }),
            "layer 4, token 5 of the batch: a router logit is not a finite number; check the checkpoint's tensors for "
            "NaN, or run with --precision f32");
}

}  // namespace
}  // namespace switchyard
