/// Routing counted on a GPU is routing counted on the CPU. The same source runs on the stand-in for CUDA, whose kernels
/// are loops on the host, and where there is a GPU on that.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "parallel/bf16.h"
#include "parallel/device/device_memory.h"
#include "pipeline/kernels/cuda/routing_counts.h"
#include "pipeline/recorder.h"
#include "tests/support/golden_model.h"
#include "tests/support/gpu_faults.h"
#include "tests/support/one_rank.h"

namespace switchyard {
namespace {

const bool kWatched = testing_support::watch_gpu_faults();

struct Case {
  AccumulatorShape shape;
  TokenTableChoice tables = {};
  bool excludes = false;  // some tokens
  bool phases = false;    // some tokens are of another one
};

/// n tokens with their routing, on the host and on the GPU.
class RoutedTokens {
 public:
  RoutedTokens(const Case& test, std::int64_t n, unsigned seed) : shape_(test.shape), random_(seed) {
    const auto id = [&] { return static_cast<std::uint32_t>(random_() % static_cast<unsigned>(shape_.vocabulary)); };
    std::uint32_t position = 0;
    for (std::int64_t t = 0; t < n; ++t) {
      position = random_() % 40 == 0 ? 0 : t == 0 ? 7 : position + 1;  // the first may be in a window's midst
      tokens_.push_back(id());
      positions_.push_back(position);
      groups_.push_back(static_cast<std::uint16_t>(random_() % kDocumentGroups));
      targets_.push_back(random_() % 5 == 0 ? -1 : static_cast<std::int64_t>(id()));
      predicted_.push_back(id());
      losses_.push_back(uniform());
      if (test.excludes) included_.push_back(random_() % 7 == 0 ? 0 : 1);
      if (test.phases) of_phase_.push_back(random_() % 6 == 0 ? 0 : 1);
    }
    for (int l = 0; l < shape_.layers; ++l) add_layer(n);
  }

  /// All of it, or what LiveAccumulators looks at beside a GPU.
  TokenView view(bool whole) {
    views_.clear();
    for (std::size_t l = 0; l < routing_.size(); ++l) {
      views_.push_back({experts_[l], {}, {}, {}, {}, {}, {}});
      if (!whole) continue;
      const std::size_t n = tokens_.size();
      const auto figure = [&](std::size_t row) { return std::span(figures_[l]).subspan(row * n, n); };
      views_.back() = {experts_[l], weights_[l], figure(0), figure(1), figure(2), figure(3), probability_sums_[l]};
    }
    return {tokens_, positions_, groups_, targets_, predicted_, losses_, included_, views_, of_phase_};
  }
  void sum_probabilities() {
    probability_sums_.clear();
    const TokenView all = view(false);
    std::vector<std::uint8_t> counted;
    for (std::size_t t = 0; t < tokens_.size(); ++t) counted.push_back(all.counts(t) ? 1 : 0);
    for (const Tensor& probabilities : probabilities_)
      probability_sums_.push_back(probability_sums(probabilities, counted));
  }
  std::span<const Routing> routing() const { return routing_; }

 private:
  float uniform() { return std::uniform_real_distribution<float>(0, 1)(random_); }

  void add_layer(std::int64_t n) {
    const auto n_experts = static_cast<std::size_t>(shape_.experts);
    const auto k = static_cast<std::size_t>(shape_.top_k);
    std::vector<std::int32_t> ids;
    std::vector<float> weights;
    std::vector<std::int32_t> order(n_experts);
    std::iota(order.begin(), order.end(), 0);
    for (std::int64_t t = 0; t < n; ++t) {
      if (t % 3 != 0) std::shuffle(order.begin(), order.end(), random_);  // else as the token before: repetition
      ids.insert(ids.end(), order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k));
      for (std::size_t j = 0; j < k; ++j) weights.push_back(uniform() * (j == 0 ? 1.0F : 1e-3F));
    }
    std::vector<float> figures;
    const float most_entropy = std::log(static_cast<float>(n_experts));
    for (const float scale : {most_entropy, 1.0F, 1.0F, 30.0F})
      for (std::int64_t t = 0; t < n; ++t) figures.push_back(t % 50 == 0 ? scale : t % 50 == 1 ? 0 : scale * uniform());
    Tensor probabilities(DType::f32, n, shape_.experts);
    for (std::int64_t i = 0; i < n * shape_.experts; ++i) probabilities.data<float>()[i] = uniform();

    Routing on_gpu;
    on_gpu.top_k = shape_.top_k;
    on_gpu.probabilities = copy_to(Device::gpu, probabilities);
    on_gpu.gpu_ids = DeviceArray<std::int32_t>(std::span<const std::int32_t>(ids));
    on_gpu.gpu_weights = uploaded(weights, n, shape_.top_k);
    on_gpu.figures = uploaded(figures, kRoutingFigures, n);
    routing_.push_back(std::move(on_gpu));
    experts_.emplace_back(ids.begin(), ids.end());
    weights_.push_back(std::move(weights));
    figures_.push_back(std::move(figures));
    probabilities_.push_back(std::move(probabilities));
  }

  static Tensor uploaded(const std::vector<float>& values, std::int64_t rows, std::int64_t cols) {
    Tensor tensor(DType::f32, rows, cols, Device::gpu);
    upload(tensor.bytes(), values.data(), values.size() * sizeof(float));
    return tensor;
  }

  AccumulatorShape shape_;
  std::mt19937 random_;
  std::vector<std::uint32_t> tokens_, positions_, predicted_;
  std::vector<std::uint16_t> groups_;
  std::vector<std::int64_t> targets_;
  std::vector<float> losses_;
  std::vector<std::uint8_t> included_, of_phase_;
  std::vector<std::vector<std::uint16_t>> experts_;
  std::vector<std::vector<float>> weights_, figures_;
  std::vector<Tensor> probabilities_;
  std::vector<std::vector<double>> probability_sums_;
  std::vector<Routing> routing_;
  std::vector<LayerView> views_;
};

/// What both count of the same tokens.
class Both {
 public:
  explicit Both(const Case& test)
      : test_(test),
        expected_(test.shape, test.tables),
        beside_(test.shape, test.tables),
        counts_(test.shape, test.tables) {}

  void observe(std::int64_t n, unsigned seed) {
    RoutedTokens tokens(test_, n, seed);
    tokens.sum_probabilities();
    expected_.observe(tokens.view(true));
    beside_.observe_beside_gpu(tokens.view(false));
    counts_.observe(tokens.view(false), tokens.routing());
  }
  gpu::RoutingCounts& counts() { return counts_; }

  Accumulators take_expected(const Communicator& comm) { return expected_.take(comm); }
  Accumulators take_found(const Communicator& comm) {
    beside_.add(counts_.take());
    return beside_.take(comm);
  }

 private:
  Case test_;
  LiveAccumulators expected_, beside_;
  gpu::RoutingCounts counts_;
};

/// Every table of a record: integers are equal, and so are sums but for rounding. Returns how many numbers were
/// compared that are not 0.
std::size_t expect_equal(const Accumulators& found, const Accumulators& expected, double rounding) {
  const std::vector<Table> left = to_tables({&found}, "");
  const std::vector<Table> right = to_tables({&expected}, "");
  EXPECT_EQ(left.size(), right.size());
  std::size_t compared = 0;
  for (std::size_t i = 0; i < std::min(left.size(), right.size()); ++i) {
    EXPECT_EQ(left[i].path, right[i].path);
    const auto* sums = std::get_if<std::vector<double>>(&left[i].values);
    if (sums == nullptr) {
      EXPECT_TRUE(left[i].values == right[i].values) << left[i].path;
      if (const auto* counts = std::get_if<std::vector<std::uint64_t>>(&left[i].values))
        compared += static_cast<std::size_t>(std::ranges::count_if(*counts, [](std::uint64_t c) { return c != 0; }));
      continue;
    }
    const auto& wanted = std::get<std::vector<double>>(right[i].values);
    EXPECT_EQ(sums->size(), wanted.size()) << left[i].path;
    for (std::size_t j = 0; j < std::min(sums->size(), wanted.size()); ++j) {
      const double bound = std::isnan(wanted[j]) ? 0 : rounding * std::abs(wanted[j]);
      EXPECT_TRUE(std::isnan((*sums)[j]) == std::isnan(wanted[j]) &&
                  (std::isnan(wanted[j]) || std::abs((*sums)[j] - wanted[j]) <= bound))
          << left[i].path << " " << j << ": " << (*sums)[j] << ", not " << wanted[j];
      compared += wanted[j] != 0 && !std::isnan(wanted[j]) ? 1 : 0;
    }
  }
  return compared;
}

constexpr double kRounding = 1e-12;

TokenTableChoice kept(std::array<bool, kTokenTables> keep, std::uint64_t capacity = 0) { return {keep, capacity}; }

class GpuCounts : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (Communicator::world().size() > 1) GTEST_SKIP() << "one rank is enough";
  }
};

TEST_P(GpuCounts, AreThoseOfTheCpu) {
  Both both(GetParam());
  unsigned seed = 0;
  for (const std::int64_t n : {300, 0, 1, 255, 256, 257, 1000}) both.observe(n, ++seed);
  const Accumulators expected = both.take_expected(Communicator::self());
  const Accumulators found = both.take_found(Communicator::self());
  EXPECT_GT(expected.n_tokens(), 1000U);
  EXPECT_GT(expected.repeat_any[0], 100U);
  EXPECT_GT(expect_equal(found, expected, kRounding), 1000U);
  both.observe(500, ++seed);  // what was taken is gone
  EXPECT_GT(expect_equal(both.take_found(Communicator::self()), both.take_expected(Communicator::self()), kRounding),
            100U);
}

INSTANTIATE_TEST_SUITE_P(Shapes, GpuCounts,
                         ::testing::Values(Case{{1, 4, 1, 50}}, Case{{3, 8, 2, 50}}, Case{{2, 60, 6, 50}},
                                           Case{{2, 64, 8, 300}}, Case{{2, 300, 8, 20}},
                                           Case{{40, 5, 2, 30}},  // more layers than a launch has
                                           Case{{3, 8, 2, 50}, {}, true}, Case{{3, 8, 2, 50}, {}, false, true},
                                           Case{{2, 16, 4, 50}, {}, true, true}, Case{{33, 4, 2, 10}, {}, true, true},
                                           Case{{3, 8, 2, 50}, kept({true, false, false})},
                                           Case{{3, 8, 2, 50}, kept({false, false, false})},
                                           Case{{3, 8, 2, 50}, kept({false, true, true}), true},
                                           Case{{3, 8, 2, 50}, kept({true, true, true}, 40)},
                                           Case{{3, 8, 2, 50}, kept({true, false, true}, 40), true, true}));

TEST(GpuCountsTest, ABlockThatIsAbandonedLeavesNoTrace) {
  const Case test = {{3, 8, 2, 50}, {}, true};
  Both both(test);
  gpu::RoutingCounts block(test.shape, test.tables);
  const auto observe = [&](std::int64_t n, unsigned seed) {
    RoutedTokens tokens(test, n, seed);
    block.observe(tokens.view(false), tokens.routing());
  };
  Both kept_blocks(test);
  for (unsigned seed = 1; seed <= 3; ++seed) {
    observe(700, 10 + seed);
    block.clear();
    observe(400, seed);
    observe(1, 20 + seed);
    both.counts().absorb(block);
    kept_blocks.observe(400, seed);
    kept_blocks.observe(1, 20 + seed);
  }
  const LayerCounts found = both.counts().take();
  const LayerCounts expected = kept_blocks.counts().take();
  EXPECT_GT(expect_equal(found.sums, expected.sums, kRounding), 500U);
  EXPECT_EQ(found.groups, expected.groups);
  EXPECT_EQ(found.token_tables, expected.token_tables);
  const LayerCounts empty = block.take();  // absorbed
  EXPECT_EQ(expect_equal(empty.sums, Accumulators(test.shape), 0), 0U);
  for (const auto& layer : empty.groups) EXPECT_EQ(std::accumulate(layer.begin(), layer.end(), 0U), 0U);
}

TEST(GpuCountsTest, AreTheSameBitsEachTime) {
  const Case test = {{5, 60, 6, 50}, {}, true, true};
  std::vector<Accumulators> runs;
  for (int run = 0; run < 2; ++run) {
    Both both(test);
    both.observe(3000, 1);
    both.observe(777, 2);
    runs.push_back(both.take_found(Communicator::self()));
  }
  EXPECT_GT(expect_equal(runs[0], runs[1], 0), 1000U);
}

TEST(GpuCountsTest, OfAllRanksAreAdded) {
  const Communicator comm = Communicator::world();
  const Case test = {{3, 8, 2, 50}, {}, true};
  Both both(test);
  for (int step = 0; step < 3; ++step)  // the last rank of several brings nothing
    if (comm.size() == 1 || comm.rank() + 1 < comm.size())
      both.observe(200, static_cast<unsigned>(10 * comm.rank() + step));
  const Accumulators expected = both.take_expected(comm);
  const Accumulators found = both.take_found(comm);
  if (comm.rank() != 0) return;
  EXPECT_GT(expected.n_tokens(), 400U * static_cast<unsigned>(std::max(1, comm.size() - 1)));
  EXPECT_GT(expect_equal(found, expected, kRounding), 500U);
}

TEST(GpuCountsTest, TakeTheMemoryTheySay) {
  const AccumulatorShape shape = {2, 8, 2, 1000};
  const std::uint64_t all = gpu::RoutingCounts::bytes(shape, {});
  EXPECT_EQ(all - gpu::RoutingCounts::bytes(shape, kept({false, true, true})), 2U * 8U * 1000U * 4U);
  EXPECT_EQ(all - gpu::RoutingCounts::bytes(shape, kept({true, true, true}, 50)), 3U * 2U * 8U * 1000U * 4U);
  EXPECT_GT(gpu::RoutingCounts::step_bytes(shape, 1000), 1000U * 16U);
}

using testing_support::GoldenModel;
using testing_support::KeepAll;
using testing_support::OneRank;

/// A model on a GPU that is recorded.
class Recording {
 public:
  explicit Recording(RecordLevel level)
      : recorder_(config().facts("golden"), level, {}, {}, &one_.model().placement(), one_.model().row_bytes(),
                  ModelFlops(config()), comm_) {}

  /// A step of these sequences.
  void step(std::size_t first, std::size_t last) {
    const Batch batch = golden_.batch(first, last);
    StepTokens tokens;
    for (std::size_t w = 0; w + 1 < batch.window_offsets.size(); ++w)
      for (std::int32_t t = batch.window_offsets[w]; t < batch.window_offsets[w + 1]; ++t) {
        tokens.document.push_back(static_cast<std::uint32_t>(first + w));
        tokens.group.push_back(static_cast<std::uint16_t>(first + w));
        tokens.position.push_back(static_cast<std::uint32_t>(t - batch.window_offsets[w]));
      }
    const TokenLosses losses = one_.forward(batch, recorder_);
    recorder_.finish_step(batch, tokens, losses, one_.model().take_times());
  }
  void finish_block(std::uint64_t block) { recorder_.finish_block(block, {1, 0}); }
  RecordedBlocks take() { return recorder_.take(); }

  const GoldenModel& golden() const { return golden_; }
  OneRank& one() { return one_; }

 private:
  const ModelConfig& config() { return one_.model().config(); }

  GoldenModel golden_{"golden/mixtral"};
  Communicator comm_ = Communicator::self();
  OneRank one_{golden_.folder(), Precision::f32, Device::gpu};
  Recorder recorder_;
};

class GpuRecorder : public ::testing::Test {
 protected:
  void SetUp() override {
    if (Communicator::world().size() > 1) GTEST_SKIP() << "one rank is enough";
  }
};

/// A dispatch table's, as text: rows of one record behind those of another are the rows of both.
std::string numbers(const RecordedBlocks& recorded, const std::string& path) {
  std::string text;
  for (const Table& table : recorded.dispatch) {
    if (table.path != path) continue;
    std::visit(
        [&]<typename T>(const std::vector<T>& values) {
          if constexpr (std::is_arithmetic_v<T>)
            for (const T value : values) text += std::to_string(value) + " ";
        },
        table.values);
  }
  EXPECT_FALSE(text.empty()) << path;
  return text;
}

TEST_F(GpuRecorder, DropsABlockThatWasNotFinished) {
  Recording expected(RecordLevel::tokens);
  expected.step(0, 2);
  expected.finish_block(0);
  expected.step(2, 3);
  expected.step(3, 4);
  expected.finish_block(1);
  const RecordedBlocks want = expected.take();

  Recording stopped(RecordLevel::tokens);
  stopped.step(0, 2);
  stopped.finish_block(0);
  stopped.step(2, 3);
  const RecordedBlocks first = stopped.take();
  stopped.step(2, 3);
  stopped.step(3, 4);
  stopped.finish_block(1);
  const RecordedBlocks second = stopped.take();

  ASSERT_EQ(want.sums.size(), 1U);
  ASSERT_EQ(first.sums.size(), 1U);
  ASSERT_EQ(second.sums.size(), 1U);
  Accumulators found = first.sums[0].sums;
  found.merge(second.sums[0].sums);
  EXPECT_GT(expect_equal(found, want.sums[0].sums, kRounding), 100U);
  ASSERT_EQ(want.rows.size(), 2U);
  ASSERT_EQ(first.rows.size(), 1U);
  ASSERT_EQ(second.rows.size(), 1U);
  EXPECT_EQ(first.rows[0].id, want.rows[0].id);
  EXPECT_EQ(second.rows[0].id, want.rows[1].id);
  for (const char* path : {"/dispatch/expert_slots", "/dispatch/traffic", "/dispatch/send_ranks"})
    EXPECT_EQ(numbers(first, path) + numbers(second, path), numbers(want, path)) << path;
}

TEST_F(GpuRecorder, RowsHaveTheEntropiesAndChoicesOfTheirTokens) {
  for (const RecordLevel level : {RecordLevel::counts, RecordLevel::tokens, RecordLevel::logits}) {
    Recording recording(level);
    recording.step(0, 2);
    recording.step(2, 4);
    recording.finish_block(0);
    const RecordedBlocks recorded = recording.take();
    EXPECT_GT(recorded.sums.at(0).sums.n_tokens(), 10U);
    ASSERT_EQ(recorded.rows.size(), 1U);
    KeepAll seen;
    const Batch batch = recording.golden().batch(0, 4);
    recording.one().forward(batch, seen);  // a row's bits do not depend on its batch
    for (std::size_t l = 0; l < seen.routings.size(); ++l) {
      const TokenRows::Layer& rows = recorded.rows[0].layers.at(l);
      const Routing& routing = seen.routings[l];
      if (level == RecordLevel::counts) {
        EXPECT_TRUE(rows.entropy.empty());
        continue;
      }
      std::vector<std::uint16_t> entropy;
      for (const float value : routing.figure(RoutingFigure::entropy)) entropy.push_back(to_half_bits(value));
      EXPECT_EQ(rows.entropy, entropy);
      EXPECT_EQ(rows.expert, std::vector<std::uint16_t>(routing.ids.begin(), routing.ids.end()));
      const std::int64_t logits = level == RecordLevel::logits ? routing.logits.rows() * routing.logits.cols() : 0;
      EXPECT_EQ(rows.logits, std::vector<float>(routing.logits.data<float>(), routing.logits.data<float>() + logits));
    }
  }
}

}  // namespace
}  // namespace switchyard
