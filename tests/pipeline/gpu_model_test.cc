/// The forward pass on a GPU: against the reference implementation, against one rank alone, and by itself. The same
/// source runs on the stand-in for CUDA, whose kernels are loops on the host, and where there is a GPU on that.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "parallel/device/device_memory.h"
#include "parallel/device/gpu.h"
#include "parallel/error.h"
#include "pipeline/model/backend.h"
#include "pipeline/model/model.h"
#include "pipeline/synth.h"
#include "tests/support/error_text.h"
#include "tests/support/f32_matrix.h"
#include "tests/support/golden_bounds.h"
#include "tests/support/golden_model.h"
#include "tests/support/gpu_faults.h"
#include "tests/support/model_ranks.h"
#include "tests/support/one_rank.h"
#include "tests/support/temp_folder.h"

namespace switchyard {
namespace {

using ::testing::HasSubstr;
using testing_support::Bounds;
using testing_support::GoldenModel;
using testing_support::kBf16;
using testing_support::kBf16Wide;
using testing_support::KeepAll;
using testing_support::kF32;
using testing_support::OneRank;
using testing_support::RanksCase;

const bool kWatched = testing_support::watch_gpu_faults();

bool is_alone() { return Communicator::world().size() == 1; }

class GpuGolden : public ::testing::TestWithParam<std::tuple<std::string, Bounds>> {
 protected:
  void SetUp() override {
    if (!is_alone()) GTEST_SKIP() << "one rank is enough";
  }
};

TEST_P(GpuGolden, AgreesWithTheReference) {
  const auto& [folder, bounds] = GetParam();
  const GoldenModel golden(folder);
  OneRank one(golden.folder(), bounds.precision, Device::gpu);
  testing_support::expect_agreement(golden, one.model(), bounds);
}

// Every window alone and all of them together: no bit may change.
TEST_P(GpuGolden, NothingDependsOnWhatSharesTheBatch) {
  const auto& [folder, bounds] = GetParam();
  const GoldenModel golden(folder);
  OneRank one(golden.folder(), bounds.precision, Device::gpu);
  KeepAll together;
  const Batch batch = golden.batch();
  const TokenLosses losses = one.forward(batch, together);
  const auto d = static_cast<std::size_t>(one.model().config().d_model);
  std::size_t compared = 0;
  for (std::size_t w = 0; w + 1 < batch.window_offsets.size(); ++w) {
    KeepAll alone;
    const TokenLosses alone_losses = one.forward(golden.batch(w, w + 1), alone);
    const auto begin = static_cast<std::size_t>(batch.window_offsets[w]);
    const auto n = alone_losses.loss.size();
    EXPECT_EQ(std::memcmp(&losses.loss[begin], alone_losses.loss.data(), n * sizeof(float)), 0) << "window " << w;
    for (std::size_t layer = 0; layer < together.hiddens.size(); ++layer) {
      EXPECT_EQ(std::memcmp(&together.hiddens[layer][begin * d], alone.hiddens[layer].data(), n * d * sizeof(float)), 0)
          << "window " << w << " layer " << layer;
      compared += n;
    }
  }
  EXPECT_EQ(compared, batch.tokens.size() * together.hiddens.size());
}

INSTANTIATE_TEST_SUITE_P(F32, GpuGolden,
                         ::testing::Combine(::testing::Values("golden/mixtral", "golden/mistral", "golden/mistral_swa",
                                                              "golden/deepseek", "golden/grok1"),
                                            ::testing::Values(kF32)));
INSTANTIATE_TEST_SUITE_P(Bf16, GpuGolden,
                         ::testing::Combine(::testing::Values("golden/mixtral", "golden/mistral", "golden/mistral_swa"),
                                            ::testing::Values(kBf16)));
INSTANTIATE_TEST_SUITE_P(Bf16Wide, GpuGolden,
                         ::testing::Combine(::testing::Values("golden/deepseek", "golden/grok1"),
                                            ::testing::Values(kBf16Wide)));

/// 100 tokens in windows of 1, 29 and 70.
Batch some_tokens() {
  Batch batch;
  batch.window_offsets = {0, 1, 30, 100};
  for (std::uint32_t t = 0; t < 100; ++t) {
    batch.tokens.push_back(t * 37 % 256);
    batch.targets.push_back(t * 11 % 256);
  }
  return batch;
}

/// A small model with heads of 64 columns, which bf16 attends to on the matrix units.
SynthSpec wide_heads() {
  return {.n_layers = 2, .d_model = 128, .d_ff = 72, .n_heads = 2, .n_kv_heads = 1, .head_dim = 64, .n_experts = 5};
}

TEST(GpuModelTest, Bf16RoundsWhereTheCpuDoes) {
  if (!is_alone() || best_precision() != Precision::bf16) GTEST_SKIP() << "needs one rank, on a CPU with bf16";
  const testing::TempFolder folder;
  synthesize_checkpoint(folder.path() / "model", wide_heads());
  OneRank on_gpu(folder.path() / "model", Precision::bf16, Device::gpu);
  OneRank on_cpu(folder.path() / "model", Precision::bf16);
  ASSERT_EQ(on_gpu.model().config().head_dim, 64);
  KeepAll found;
  KeepAll expected;
  const TokenLosses found_losses = on_gpu.forward(some_tokens(), found);
  const TokenLosses expected_losses = on_cpu.forward(some_tokens(), expected);
  // What is left is the order of sums, which tips a rounding to bf16 here and there.
  EXPECT_LT(testing_support::relative_error(found.hiddens[0], expected.hiddens[0]).mean, 2e-3);
  EXPECT_LT(testing_support::loss_error(found_losses.loss, expected_losses.loss), 0.02);
}

// Two kernels, by bits of their own: what they say is the same within bf16, and with either a window's bits do not
// depend on what shares its batch.
TEST(GpuModelTest, AttentionOfCudnnIsNearThatOfOurOwnKernel) {
  if (!is_alone()) GTEST_SKIP();
  const testing::TempFolder folder;
  synthesize_checkpoint(folder.path() / "model", wide_heads());
  OneRank own(folder.path() / "model", Precision::bf16, Device::gpu);
  if (const auto reason = why_not_cudnn(own.model().config().attention_shape(), 1)) GTEST_SKIP() << *reason;
  OneRank cudnn(folder.path() / "model", Precision::bf16, Device::gpu, AttentionKernel::cudnn);
  KeepAll found;
  KeepAll expected;
  const Batch batch = some_tokens();
  const TokenLosses found_losses = cudnn.forward(batch, found);
  const TokenLosses expected_losses = own.forward(batch, expected);
  EXPECT_LT(testing_support::relative_error(found.hiddens[0], expected.hiddens[0]).mean, 5e-3);
  EXPECT_LT(testing_support::loss_error(found_losses.loss, expected_losses.loss), 0.02);

  for (std::size_t w = 0; w + 1 < batch.window_offsets.size(); ++w) {
    const auto begin = static_cast<std::size_t>(batch.window_offsets[w]);
    const auto end = static_cast<std::size_t>(batch.window_offsets[w + 1]);
    Batch alone;
    alone.window_offsets = {0, static_cast<std::int32_t>(end - begin)};
    for (std::size_t t = begin; t < end; ++t) {
      alone.tokens.push_back(batch.tokens[t]);
      alone.targets.push_back(batch.targets[t]);
    }
    KeepAll seen;
    const TokenLosses losses = cudnn.forward(alone, seen);
    EXPECT_EQ(std::memcmp(losses.loss.data(), &found_losses.loss[begin], (end - begin) * sizeof(float)), 0)
        << "window " << w;
  }
}

TEST(GpuModelTest, AnEmptyBatchGivesNothing) {
  if (!is_alone()) GTEST_SKIP();
  OneRank one(GoldenModel("golden/mixtral").folder(), Precision::f32, Device::gpu);
  KeepAll seen;
  Batch empty;
  empty.window_offsets = {0};
  EXPECT_TRUE(one.forward(empty, seen).loss.empty());
  EXPECT_EQ(seen.routings.size(), 3U);
}

/// Sends every token to the experts behind those that it chose, with half the weight.
class ToTheNextExperts : public KeepAll {
 public:
  void decide(int /*moe_layer*/, Routing& routing) override {
    bring_to_host(routing, "test");
    const auto n_experts = static_cast<std::int32_t>(routing.logits.cols());
    for (std::int32_t& id : routing.ids) id = (id + 1) % n_experts;
    for (float& weight : routing.weights) weight /= 2;
    ids.push_back(routing.ids);
    weights.push_back(routing.weights);
    testing_support::take_choices(routing);
  }
  std::vector<std::vector<std::int32_t>> ids;  // of each layer
  std::vector<std::vector<float>> weights;
};

TEST(GpuModelTest, AChangedDecisionIsTheGpusToo) {
  if (!is_alone()) GTEST_SKIP();
  const GoldenModel golden("golden/mixtral");
  const Batch batch = golden.batch();
  OneRank one(golden.folder(), Precision::f32, Device::gpu);
  KeepAll seen;
  ToTheNextExperts changed;
  one.forward(batch, seen);
  one.forward(batch, changed);
  EXPECT_NE(seen.routings[0].ids, changed.routings[0].ids);
  EXPECT_NE(seen.hiddens[0], changed.hiddens[0]);
  ASSERT_EQ(changed.routings.size(), 3U);
  for (std::size_t layer = 0; layer < 3; ++layer) {  // as the GPU has them
    EXPECT_EQ(changed.routings[layer].ids.size(), 2U * batch.tokens.size());
    EXPECT_EQ(changed.routings[layer].ids, changed.ids[layer]);
    EXPECT_EQ(changed.routings[layer].weights, changed.weights[layer]);
  }
}

TEST(GpuModelTest, TimesCoverAStepInOrder) {
  if (!is_alone()) GTEST_SKIP();
  OneRank one(GoldenModel("golden/mixtral").folder(), Precision::f32, Device::gpu);
  KeepAll seen;
  for (int step = 0; step < 2; ++step) {
    const auto before = StepTimes::Clock::now();
    one.forward(GoldenModel("golden/mixtral").batch(), seen);
    const auto after = StepTimes::Clock::now();
    const StepTimes times = one.model().take_times();
    ASSERT_GT(times.laps.size(), 3U * 9U);
    EXPECT_GE(times.begin, before);
    auto last = times.begin;
    for (const StepTimes::Lap& lap : times.laps) {
      EXPECT_GE(lap.end, last);
      last = lap.end;
    }
    EXPECT_LE(last, after + std::chrono::milliseconds(10));  // the device's clock has its own resolution
    EXPECT_EQ(times.laps.back().part, Part::head);
  }
}

// A sequence token by token over a cache, and whole: at f32 the same bits.
TEST(GpuModelTest, ACacheChangesNothing) {
  if (!is_alone()) GTEST_SKIP();
  const testing::TempFolder folder;
  synthesize_checkpoint(folder.path() / "model", wide_heads());
  for (const Precision precision : {Precision::f32, Precision::bf16}) {
    OneRank one(folder.path() / "model", precision, Device::gpu);
    Model& model = one.model();
    const int layers = model.config().n_layers;
    const Batch whole = some_tokens();
    KeepAll together;
    Tensor x = model.embed(whole);
    model.run_layers(x, whole, 0, layers, together);
    std::vector<std::int32_t> rows(static_cast<std::size_t>(x.rows()));
    std::iota(rows.begin(), rows.end(), 0);
    const Tensor expected = model.logits(x, rows);

    KvCache cache = model.make_cache(std::vector<std::int64_t>{1, 29, 70});
    std::vector<std::int32_t> known = {0, 0, 0};
    std::int64_t compared = 0;
    for (const std::int32_t most : {20, 1, 1, 60}) {
      Batch part;
      part.window_offsets = {0};
      std::vector<std::int32_t> of_whole;
      for (std::int32_t w = 0; w < 3; ++w) {
        const auto at = static_cast<std::size_t>(w);
        const std::int32_t begin = whole.window_offsets[at] + known[at];
        const std::int32_t end = std::min(begin + most, whole.window_offsets[at + 1]);
        if (begin == end) continue;
        part.sequence.push_back(w);
        part.start.push_back(known[at]);
        for (std::int32_t t = begin; t < end; ++t) {
          part.tokens.push_back(whole.tokens[static_cast<std::size_t>(t)]);
          part.targets.push_back(-1);
          of_whole.push_back(t);
        }
        part.window_offsets.push_back(static_cast<std::int32_t>(part.tokens.size()));
        known[at] += end - begin;
      }
      KeepAll seen;
      Tensor y = model.embed(part);
      model.run_layers(y, part, 0, layers, seen, &cache);
      const Tensor found = model.logits(y, std::span(rows).first(of_whole.size()));
      for (std::size_t row = 0; row < of_whole.size(); ++row, ++compared) {
        const auto bytes = static_cast<std::size_t>(expected.row_bytes());
        EXPECT_EQ(std::memcmp(found.view().row<float>(static_cast<std::int64_t>(row)).data(),
                              expected.view().row<float>(of_whole[row]).data(), bytes),
                  0)
            << "token " << of_whole[row];
      }
    }
    EXPECT_EQ(compared, whole.n_tokens());
  }
}

TEST(GpuModelTest, WeightsTakeWhatThePlanSays) {
  if (!is_alone()) GTEST_SKIP();
  const testing::TempFolder folder;
  synthesize_checkpoint(folder.path() / "model", {.d_model = 512, .d_ff = 1024, .dense_d_ff = 0, .vocabulary = 4096});
  const std::uint64_t before = use_gpu(0).free_bytes;
  OneRank one(folder.path() / "model", Precision::f32, Device::gpu);
  const auto taken = static_cast<double>(before - use_gpu(0).free_bytes);
  const auto plan_for = [&](Device device) {
    return Model::memory(one.model().config(), one.model().placement(), 0, {Precision::f32, device}, 64);
  };
  const ModelMemory plan = plan_for(Device::gpu);
  const auto planned = static_cast<double>(plan.replicated_bytes + plan.expert_bytes);
  EXPECT_GT(planned, 1e8);
  EXPECT_NEAR(taken / planned, 1, 0.2);  // buffers of earlier tests are used again, and sizes rounded up
  EXPECT_GT(plan.activation_bytes, plan.transport_bytes);
  EXPECT_GT(plan.activation_bytes, plan_for(Device::cpu).activation_bytes);
}

TEST(GpuModelTest, ForcedExpertsAreNearTheCpus) {
  if (!is_alone()) GTEST_SKIP();
  for (const char* folder : {"golden/mixtral", "golden/grok1"}) {  // SiLU, GELU
    OneRank on_gpu(GoldenModel(folder).folder(), Precision::f32, Device::gpu);
    OneRank on_cpu(GoldenModel(folder).folder(), Precision::f32);
    const ModelConfig& config = on_cpu.model().config();
    const Tensor rows = testing_support::random_matrix(37, config.d_model, 9);
    std::vector<std::vector<float>> expected;
    on_cpu.model().force_experts(1, rows, [&](int, TensorView states, TensorView outputs) {
      expected.push_back(testing_support::values_of(states));
      expected.push_back(testing_support::values_of(outputs));
    });
    int experts = 0;
    on_gpu.model().force_experts(1, rows, [&](int e, TensorView states, TensorView outputs) {
      EXPECT_EQ(e, experts++);
      const auto at = static_cast<std::size_t>(e) * 2;
      EXPECT_LT(testing_support::relative_error(testing_support::values_of(states), expected[at]).largest, 1e-4);
      EXPECT_LT(testing_support::relative_error(testing_support::values_of(outputs), expected[at + 1]).largest, 1e-4);
    });
    EXPECT_EQ(experts, config.n_experts);
    EXPECT_EQ(expected[0].size(), 37U * static_cast<std::size_t>(config.d_ff));
    on_gpu.model().force_experts(1, rows.rows(0, 0), [&](int, TensorView states, TensorView outputs) {
      EXPECT_EQ(states.rows() + outputs.rows(), 0);
    });
  }
}

/// GPU memory that knows what was taken of it.
class CountedMemory : public BufferSource {
 public:
  Buffer take(std::size_t bytes) override {
    bytes_taken.push_back(bytes);
    return take_device_buffer(Device::gpu, bytes);
  }
  void give(Buffer buffer) override {
    ++given;
    give_device_buffer(Device::gpu, buffer);
  }

  std::vector<std::size_t> bytes_taken;
  int given = 0;
};

TEST(GpuModelTest, RowsToSendLieWhereTheTransportWantsThem) {
  if (!is_alone()) GTEST_SKIP();
  ModelConfig config;
  config.d_model = 8;
  config.n_heads = config.n_kv_heads = config.n_layers = 1;
  config.head_dim = 8;
  config.d_ff = 8;
  config.top_k = 1;
  const auto backend = make_gpu_backend(config, DType::f32, AttentionKernel::own, 4, GroupedMatmulKind::cublaslt);
  // Rank 0 of two, which holds two of four experts: each rank sends it one row for each.
  const auto placement = ExpertPlacement::contiguous(1, 4, 2).layer(0);
  const std::vector<std::int32_t> ids = {3, 0, 1, 2};
  const std::vector<std::int32_t> arriving = {1, 1, 1, 1};
  Routing routing;
  routing.top_k = 1;
  routing.gpu_ids = DeviceArray<std::int32_t>(std::span(ids));
  routing.gpu_weights = copy_to(Device::gpu, Tensor(DType::f32, 4, 1));
  const std::int32_t no_fault = 4;
  routing.gpu_fault = DeviceArray<std::int32_t>(std::span(&no_fault, 1));
  CountedMemory memory;
  {
    const auto sent = backend->send_slots(routing, "layer 0", placement, 0, 1, &memory);
    Tensor h(DType::f32, 4, 8);
    std::iota(h.data<float>(), h.data<float>() + 32, 0.0F);
    const Tensor packed = sent->pack(0, copy_to(Device::gpu, h));
    EXPECT_THAT(memory.bytes_taken, ::testing::ElementsAre(4 * 8 * 4));
    const ExchangePlan plan(sent->rows_by_place(), placement, 0, arriving);
    const auto rows = backend->arrived_rows(plan, &memory);
    Tensor grouped = rows->group(copy_to(Device::gpu, h));
    EXPECT_EQ(memory.bytes_taken.size(), 1U);  // not sent
    const Tensor back = rows->ungroup(std::move(grouped));
    EXPECT_EQ(memory.bytes_taken.size(), 2U);
    EXPECT_EQ(std::memcmp(copy_to(Device::cpu, back).bytes(), h.bytes(), 4 * 8 * 4), 0);
    EXPECT_EQ(memory.given, 0);
  }
  EXPECT_EQ(memory.given, 2);
}

class GpuModelRanks : public ::testing::TestWithParam<RanksCase> {};

TEST_P(GpuModelRanks, EveryBitIsThatOfOneRank) {
  if (std::strcmp(GetParam().transport, "local") == 0 && !is_alone())
    GTEST_SKIP() << "the local transport has one rank";
  if (std::strcmp(GetParam().transport, "nccl") == 0 && !testing_support::has_gpu_for_each_rank())
    GTEST_SKIP() << "NCCL wants a GPU for each rank";
  testing_support::expect_bits_of_one_rank(GetParam());
}

RanksCase on_gpu(const char* folder, const char* transport, const char* placement, Precision precision) {
  return {folder, transport, placement, precision, false, Device::gpu};
}

RanksCase in_halves(RanksCase test) {
  test.overlap = true;
  return test;
}

RanksCase with_moves(RanksCase test) {
  test.moves = true;
  return test;
}

INSTANTIATE_TEST_SUITE_P(All, GpuModelRanks,
                         ::testing::Values(on_gpu("golden/mixtral", "local", "contiguous", Precision::f32),
                                           on_gpu("golden/mixtral", "mpi", "round-robin", Precision::f32),
                                           on_gpu("golden/mixtral", "nccl", "contiguous", Precision::f32),
                                           on_gpu("golden/mixtral", "nccl", "round-robin", Precision::bf16),
                                           on_gpu("golden/deepseek", "mpi", "contiguous", Precision::bf16),
                                           on_gpu("golden/deepseek", "nccl", "replicas", Precision::f32),
                                           on_gpu("golden/grok1", "nccl", "contiguous", Precision::f32),
                                           in_halves(on_gpu("golden/mixtral", "mpi", "contiguous", Precision::f32)),
                                           in_halves(on_gpu("golden/mixtral", "nccl", "round-robin", Precision::bf16)),
                                           in_halves(on_gpu("golden/deepseek", "nccl", "replicas", Precision::f32)),
                                           with_moves(on_gpu("golden/mixtral", "mpi", "contiguous", Precision::f32)),
                                           with_moves(on_gpu("golden/deepseek", "mpi", "replicas", Precision::bf16)),
                                           with_moves(on_gpu("golden/grok1", "nccl", "contiguous", Precision::f32))));

}  // namespace
}  // namespace switchyard
