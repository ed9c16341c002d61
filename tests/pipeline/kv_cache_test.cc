// Run on 1 to 4 ranks: token by token over a cache, every bit must be that of whole sequences.
#include <gtest/gtest.h>

#include <cstring>
#include <ostream>

#include "parallel/error.h"
#include "pipeline/model/model.h"
#include "tests/support/golden_model.h"

namespace switchyard {
namespace {

using testing_support::GoldenModel;
using testing_support::KeepAll;

struct Case {
  const char* folder;
  Precision precision;
};

std::ostream& operator<<(std::ostream& out, const Case& test) {
  return out << test.folder << (test.precision == Precision::f32 ? " f32" : " bf16");
}

class CacheTest : public ::testing::TestWithParam<Case> {};

/// The next `most` tokens of this rank's sequences from `begin` on, each sequence `s` of a cache.
Batch part_of(const Batch& whole, const std::vector<std::size_t>& mine, std::int32_t begin, std::int32_t most,
              std::vector<std::size_t>& rows) {
  Batch part;
  part.window_offsets = {0};
  rows.clear();
  for (std::size_t s = 0; s < mine.size(); ++s) {
    const std::int32_t first = whole.window_offsets[mine[s]] + begin;
    const std::int32_t last = std::min(whole.window_offsets[mine[s] + 1], first + most);
    if (first >= last) continue;
    for (std::int32_t t = first; t < last; ++t) {
      part.tokens.push_back(whole.tokens[static_cast<std::size_t>(t)]);
      part.targets.push_back(whole.targets[static_cast<std::size_t>(t)]);
      rows.push_back(static_cast<std::size_t>(t));
    }
    part.window_offsets.push_back(static_cast<std::int32_t>(part.tokens.size()));
    part.sequence.push_back(static_cast<std::int32_t>(s));
    part.start.push_back(begin);
  }
  return part;
}

/// Rows of `part` that differ from the rows of `whole` that they are.
template <typename T>
std::int64_t different(const T* part, const T* whole, const std::vector<std::size_t>& rows, std::size_t width) {
  std::int64_t count = 0;
  for (std::size_t i = 0; i < rows.size(); ++i)
    count += std::memcmp(part + i * width, whole + rows[i] * width, width * sizeof(T)) != 0 ? 1 : 0;
  return count;
}

TEST_P(CacheTest, EveryBitIsThatOfWholeSequences) {
  const Case test = GetParam();
  if (test.precision == Precision::bf16 && best_precision() != Precision::bf16) GTEST_SKIP() << "no bf16";
  const Communicator comm = Communicator::world();
  const GoldenModel golden(test.folder);
  const Checkpoint checkpoint(golden.folder());
  const ModelConfig config = ModelConfig::parse(checkpoint.config_text(), golden.folder().string());
  const auto placement = ExpertPlacement::contiguous(config.n_moe_layers(), config.n_experts, comm.size());
  const auto transport = make_transport("mpi", comm);
  Model model(checkpoint, config, placement, comm, *transport, {test.precision});

  const Batch whole = golden.batch();
  KeepAll expected;
  const TokenLosses losses = model.forward(whole, expected);
  const std::size_t sequences = whole.window_offsets.size() - 1;
  std::vector<std::size_t> mine;
  std::vector<std::int64_t> lengths;
  std::int32_t longest = 0;
  for (std::size_t s = 0; s < sequences; ++s) {
    const std::int32_t length = whole.window_offsets[s + 1] - whole.window_offsets[s];
    longest = std::max(longest, length);
    if (s % static_cast<std::size_t>(comm.size()) != static_cast<std::size_t>(comm.rank())) continue;
    mine.push_back(s);
    lengths.push_back(length);
  }
  ASSERT_GT(longest, 32);

  std::int64_t wrong = 0;
  std::int64_t tokens = 0;
  KvCache cache = model.make_cache(lengths);
  for (std::int32_t begin = 0; begin < longest; begin += begin == 0 ? 5 : 1) {
    std::vector<std::size_t> rows;
    const Batch part = part_of(whole, mine, begin, begin == 0 ? 5 : 1, rows);
    KeepAll seen;
    Tensor x = model.embed(part);
    model.run_layers(x, part, 0, config.n_layers, seen, &cache);
    const TokenLosses of_part = model.head(x, part);
    tokens += part.n_tokens();
    wrong += different(of_part.loss.data(), losses.loss.data(), rows, 1);
    wrong += different(of_part.predicted.data(), losses.predicted.data(), rows, 1);
    for (std::size_t layer = 0; layer < expected.hiddens.size(); ++layer)
      wrong += different(seen.hiddens[layer].data(), expected.hiddens[layer].data(), rows,
                         static_cast<std::size_t>(config.d_model));
    for (std::size_t layer = 0; layer < expected.routings.size(); ++layer) {
      const Routing& got = seen.routings[layer];
      const Routing& want = expected.routings[layer];
      wrong += different(got.ids.data(), want.ids.data(), rows, static_cast<std::size_t>(config.top_k));
      wrong += different(got.weights.data(), want.weights.data(), rows, static_cast<std::size_t>(config.top_k));
      wrong += different(got.logits.data<float>(), want.logits.data<float>(), rows,
                         static_cast<std::size_t>(config.n_experts));
    }
  }
  EXPECT_EQ(comm.sum(wrong), 0);
  EXPECT_EQ(comm.sum(tokens), whole.n_tokens());
  EXPECT_EQ(expected.routings.size(), config.moe_layers.size());
  EXPECT_EQ(expected.hiddens.size(), static_cast<std::size_t>(config.n_layers));
}

// At bf16 the products of some engines may depend on their number of keys; with these models they do not.
INSTANTIATE_TEST_SUITE_P(
    All, CacheTest,
    ::testing::Values(Case{"golden/mixtral", Precision::f32}, Case{"golden/mistral", Precision::f32},
                      Case{"golden/mistral_swa", Precision::f32}, Case{"golden/deepseek", Precision::f32},
                      Case{"golden/grok1", Precision::f32}, Case{"golden/mixtral", Precision::bf16},
                      Case{"data/demo", Precision::f32}, Case{"data/demo", Precision::bf16}));

TEST(Cache, TokensBeyondItsRoomAreRefused) {
  const Communicator comm = Communicator::self();
  const GoldenModel golden("golden/mixtral");
  const Checkpoint checkpoint(golden.folder());
  const ModelConfig config = ModelConfig::parse(checkpoint.config_text(), golden.folder().string());
  const auto placement = ExpertPlacement::contiguous(config.n_moe_layers(), config.n_experts, 1);
  const auto transport = make_transport("local", comm);
  Model model(checkpoint, config, placement, comm, *transport, {Precision::f32});
  KvCache cache = model.make_cache(std::vector<std::int64_t>{3});
  Batch batch{.tokens = {3, 4}, .window_offsets = {0, 2}, .targets = {4, -1}, .sequence = {0}, .start = {2}};
  KeepAll seen;
  Tensor x = model.embed(batch);
  EXPECT_THROW(model.run_layers(x, batch, 0, 1, seen, &cache), Error);
  batch.start = {1};
  EXPECT_NO_THROW(model.run_layers(x, batch, 0, 1, seen, &cache));
  batch.sequence = {1};
  EXPECT_THROW(model.run_layers(x, batch, 0, 1, seen, &cache), Error);
}

TEST(Cache, BytesAreThoseOfKeysAndValues) {
  ModelConfig config;
  config.n_layers = 3;
  config.n_kv_heads = 2;
  config.head_dim = 12;
  // 2 sequences of at most 100 tokens together, each filled up by at most 63.
  EXPECT_EQ(KvCache::bytes(config, 2, 100, DType::bf16), (100U + 2 * 63U) * 3 * 2 * 2 * 12 * 2);
}

}  // namespace
}  // namespace switchyard
