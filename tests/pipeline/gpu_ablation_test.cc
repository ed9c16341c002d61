/// Experts taken away from a model on a GPU: against the CPU, and by itself. The same source runs on the stand-in for
/// CUDA and where there is a GPU on that.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "pipeline/experiments/ablation.h"
#include "tests/support/golden_model.h"
#include "tests/support/gpu_faults.h"
#include "tests/support/one_rank.h"

namespace switchyard {
namespace {

using testing_support::GoldenModel;
using testing_support::OneRank;

const bool kWatched = testing_support::watch_gpu_faults();

const std::function<bool()> kGoOn = [] { return true; };

bool is_alone() { return Communicator::world().size() == 1; }

std::vector<int> all_experts(const ModelConfig& config) {
  std::vector<int> experts(static_cast<std::size_t>(config.n_experts));
  std::iota(experts.begin(), experts.end(), 0);
  return experts;
}

AblationPlan plan_of(AblationMode mode, std::vector<int> layers, const ModelConfig& config) {
  return {.mode = mode,
          .layers = std::move(layers),
          .experts = mode == AblationMode::flip ? std::vector<int>() : all_experts(config)};
}

class GpuAblationModes : public ::testing::TestWithParam<AblationMode> {};

TEST_P(GpuAblationModes, SumsAreThoseOfTheCpu) {
  if (!is_alone()) GTEST_SKIP();
  const GoldenModel golden("golden/mixtral");
  OneRank on_gpu(golden.folder(), Precision::f32, Device::gpu);
  OneRank on_cpu(golden.folder(), Precision::f32);
  const AblationPlan plan = plan_of(GetParam(), {0, 2}, on_cpu.model().config());
  WindowSums found;
  WindowSums expected;
  // In two batches, the second after an empty one, as ranks bring them.
  for (const auto& [first, last] : {std::pair<std::size_t, std::size_t>{0, 1}, {1, 1}, {1, 100}}) {
    ASSERT_TRUE(AblationSweep(on_gpu.model(), plan).step(golden.batch(first, last), found, kGoOn));
    ASSERT_TRUE(AblationSweep(on_cpu.model(), plan).step(golden.batch(first, last), expected, kGoOn));
  }
  ASSERT_GT(found.baseline.size(), 1U);
  ASSERT_EQ(found.baseline.size(), expected.baseline.size());
  ASSERT_EQ(found.ablated.size(), found.baseline.size() * 2 * plan.variants());
  double differs = 0;
  for (std::size_t w = 0; w < found.baseline.size(); ++w) {
    EXPECT_NEAR(found.baseline[w].loss, expected.baseline[w].loss, 1e-5 * expected.baseline[w].loss);
    EXPECT_EQ(found.baseline[w].tokens, expected.baseline[w].tokens);
    EXPECT_EQ(found.baseline[w].right, expected.baseline[w].right);
    for (std::size_t c = w * 2 * plan.variants(); c < (w + 1) * 2 * plan.variants(); ++c) {
      EXPECT_NEAR(found.ablated[c].loss, expected.ablated[c].loss, 1e-5 * expected.ablated[c].loss);
      EXPECT_EQ(found.ablated[c].lost, expected.ablated[c].lost);
      EXPECT_EQ(found.ablated[c].gained, expected.ablated[c].gained);
      differs = std::max(differs, std::abs(found.ablated[c].loss - found.baseline[w].loss));
    }
  }
  EXPECT_GT(differs, 0.1);
  ASSERT_EQ(found.use.size(), expected.use.size());
  std::uint64_t slots = 0;
  for (std::size_t i = 0; i < found.use.size(); ++i) {
    EXPECT_EQ(found.use[i].count, expected.use[i].count);
    EXPECT_NEAR(found.use[i].weight, expected.use[i].weight, 1e-4);
    EXPECT_NEAR(found.use[i].norm, expected.use[i].norm, 1e-4 * expected.use[i].norm);
    EXPECT_NEAR(found.use[i].weighted_norm, expected.use[i].weighted_norm, 1e-4 * expected.use[i].norm);
    slots += found.use[i].count;
  }
  EXPECT_EQ(slots, 2 * 2 * golden.batch().tokens.size());
}

INSTANTIATE_TEST_SUITE_P(All, GpuAblationModes,
                         ::testing::Values(AblationMode::zero, AblationMode::drop, AblationMode::flip),
                         [](const auto& test) { return std::string(to_string(test.param)); });

// A loss that moved without a reason would be noise of the changed pass.
TEST(GpuAblationTest, AnExpertThatAWindowDoesWithoutChangesNoBitOfIt) {
  if (!is_alone()) GTEST_SKIP();
  const GoldenModel golden("golden/mixtral");
  Batch batch = golden.batch();
  batch.window_offsets.clear();  // of three tokens
  for (std::int32_t t = 0; t < batch.n_tokens(); t += 3) batch.window_offsets.push_back(t);
  batch.window_offsets.push_back(static_cast<std::int32_t>(batch.n_tokens()));
  for (const Precision precision : {Precision::f32, Precision::bf16}) {
    OneRank one(golden.folder(), precision, Device::gpu);
    const auto experts = static_cast<std::size_t>(one.model().config().n_experts);
    for (const AblationMode mode : {AblationMode::zero, AblationMode::drop}) {
      WindowSums sums;
      ASSERT_TRUE(AblationSweep(one.model(), plan_of(mode, {1}, one.model().config())).step(batch, sums, kGoOn));
      std::size_t unused = 0;
      std::size_t changed = 0;
      for (std::size_t i = 0; i < sums.use.size(); ++i) {
        const bool same = sums.ablated[i].loss == sums.baseline[i / experts].loss;
        if (sums.use[i].count == 0) {
          EXPECT_TRUE(same) << "window " << i / experts << ", expert " << i % experts;
          ++unused;
        } else {
          changed += same ? 0 : 1;
        }
      }
      EXPECT_GT(unused, 10U);
      EXPECT_GT(changed, 10U);
    }
  }
}

TEST(GpuAblationTest, AnyNumberOfRanksGivesTheSameBits) {
  const Communicator comm = Communicator::world();
  const GoldenModel golden("golden/mixtral");
  const Checkpoint checkpoint(golden.folder());
  const ModelConfig config = ModelConfig::parse(checkpoint.config_text(), golden.folder().string());
  const auto placement = ExpertPlacement::round_robin(config.n_moe_layers(), config.n_experts, comm.size());
  const auto transport = make_transport("mpi", comm);
  const auto windows = golden.batch().window_offsets.size() - 1;
  for (const Precision precision : {Precision::f32, Precision::bf16}) {
    OneRank one(golden.folder(), precision, Device::gpu);
    ModelOptions options = {precision, Device::gpu};
    options.overlap = true;
    Model model(checkpoint, config, placement, comm, *transport, options);
    for (const AblationMode mode : {AblationMode::zero, AblationMode::drop, AblationMode::flip}) {
      const AblationPlan plan = plan_of(mode, {1, 2}, config);
      AblationSweep sweep(model, plan);
      WindowSums mine;
      WindowSums expected;
      const auto ranks = static_cast<std::size_t>(comm.size());
      for (std::size_t first = 0; first < windows; first += ranks) {
        const std::size_t own = std::min(windows, first + static_cast<std::size_t>(comm.rank()));
        ASSERT_TRUE(sweep.step(golden.batch(own, own + 1), mine, kGoOn));
        if (own == windows) continue;
        ASSERT_TRUE(AblationSweep(one.model(), plan).step(golden.batch(own, own + 1), expected, kGoOn));
      }
      const auto same = [](const auto& a, const auto& b, std::size_t bytes) {
        return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * bytes) == 0;
      };
      EXPECT_TRUE(same(mine.baseline, expected.baseline, sizeof(WindowScore)));
      EXPECT_TRUE(same(mine.ablated, expected.ablated, sizeof(AblatedScore)));
      EXPECT_TRUE(same(mine.use, expected.use, sizeof(ExpertUse)));
      EXPECT_EQ(comm.sum(static_cast<std::int64_t>(mine.baseline.size())), static_cast<std::int64_t>(windows));
    }
  }
}

}  // namespace
}  // namespace switchyard
