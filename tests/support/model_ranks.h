#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "pipeline/model/model.h"
#include "tests/support/golden_model.h"

namespace switchyard::testing_support {

/// Where a model runs on all ranks.
struct RanksCase {
  const char* folder;
  const char* transport;
  const char* placement;
  Precision precision;
  bool moves = false;  // experts change places before each step
  Device device = Device::cpu;
  bool overlap = false;
};

/// The same sequences on one rank alone.
struct Reference {
  KeepAll seen;
  TokenLosses losses;
};

inline void reference(const Checkpoint& checkpoint, const ModelConfig& config, ModelOptions options, const Batch& batch,
                      Reference& out) {
  const Communicator self = Communicator::self();
  const auto transport = make_transport("local", self);
  const auto placement = ExpertPlacement::contiguous(config.n_moe_layers(), config.n_experts, 1);
  Model model(checkpoint, config, placement, self, *transport, options);
  out.losses = model.forward(batch, out.seen);
}

/// Rows of `part` that differ from rows [begin, ...) of `whole`.
template <typename T>
std::int64_t different(const T* part, const T* whole, std::size_t begin, std::size_t n, std::size_t width) {
  std::int64_t count = 0;
  for (std::size_t t = 0; t < n; ++t) {
    if (std::memcmp(part + t * width, whole + (begin + t) * width, width * sizeof(T)) != 0) ++count;
  }
  return count;
}

/// "replicas": of every third expert a copy on every rank, of the next ones copies on the first and last.
inline ExpertPlacement make_placement(const std::string& name, const ModelConfig& config, int n_ranks) {
  const int n_layers = config.n_moe_layers();
  if (name == "round-robin") return ExpertPlacement::round_robin(n_layers, config.n_experts, n_ranks);
  if (name == "contiguous") return ExpertPlacement::contiguous(n_layers, config.n_experts, n_ranks);
  std::vector<LayerPlacement> layers;
  for (int layer = 0; layer < n_layers; ++layer) {
    std::vector<std::vector<std::int32_t>> ranks_of_expert;
    for (int e = 0; e < config.n_experts; ++e) {
      std::vector<std::int32_t>& ranks = ranks_of_expert.emplace_back();
      for (int rank = 0; rank < n_ranks; ++rank)
        if (e % 3 == 0 || (e % 3 == 1 && (rank == 0 || rank == n_ranks - 1)) || (e % 3 == 2 && rank == e % n_ranks))
          ranks.push_back(rank);
    }
    layers.emplace_back(ranks_of_expert, n_ranks, name == "replicas" ? CopyRule::by_token : CopyRule::local_first);
  }
  return ExpertPlacement(layers);
}

/// Takes the model to another placement at each step. Returns the experts that moved, which it checks by placements.
inline std::int64_t move_on(Model& model, std::int64_t step) {
  constexpr std::array kNames = {"round-robin", "replicas", "contiguous", "local replicas"};
  const ExpertPlacement from = model.placement();
  const int n_ranks = from.layer(0).n_ranks();
  const ExpertPlacement to = make_placement(kNames.at(static_cast<std::size_t>(step) % 4), model.config(), n_ranks);
  std::int64_t expected = 0;
  for (int layer = 0; layer < to.n_layers(); ++layer)
    for (int rank = 0; rank < n_ranks; ++rank)
      for (const std::int32_t expert : to.layer(layer).experts_of(rank))
        if (std::ranges::count(from.layer(layer).experts_of(rank), expert) == 0) ++expected;
  const ExpertMoves moves = model.move_experts(to);
  EXPECT_EQ(moves.experts, expected);
  const auto type_bytes = static_cast<std::int64_t>(model.row_bytes()) / model.config().d_model;
  EXPECT_GE(static_cast<std::int64_t>(moves.bytes),
            expected * 3 * model.config().d_model * model.config().d_ff * type_bytes);
  EXPECT_EQ(moves.bytes > 0, expected > 0);
  return moves.experts;
}

/// Collective, on all ranks of the world. Every bit of a run with experts spread over them is that of one rank alone.
inline void expect_bits_of_one_rank(const RanksCase& test) {
  const Communicator comm = Communicator::world();
  const GoldenModel golden(test.folder);
  const Checkpoint checkpoint(golden.folder());
  const ModelConfig config = ModelConfig::parse(checkpoint.config_text(), golden.folder().string());
  const Batch whole = golden.batch();
  Reference expected;
  reference(checkpoint, config, {test.precision, test.device}, whole, expected);

  const ExpertPlacement placement = make_placement(test.placement, config, comm.size());
  const auto transport = make_transport(test.transport, comm);
  ModelOptions options = {test.precision, test.device};
  options.overlap = test.overlap;
  Model model(checkpoint, config, placement, comm, *transport, options);

  // Steps take a sequence per rank, from rank 1 on: rank 0 of several brings nothing at first, and others at the end.
  const auto sequences = static_cast<std::int64_t>(whole.window_offsets.size()) - 1;
  std::int64_t tokens = 0;
  std::int64_t wrong = 0;
  std::int64_t moved = 0;
  for (std::int64_t step = 0; step * comm.size() <= sequences; ++step) {
    const std::int64_t sequence = step * comm.size() + comm.rank() - (comm.size() > 1 ? 1 : 0);
    if (test.moves) moved += move_on(model, step);
    const bool busy = sequence >= 0 && sequence < sequences;
    const auto first = static_cast<std::size_t>(busy ? sequence : sequences);
    KeepAll seen;
    const TokenLosses losses = model.forward(golden.batch(first, first + 1), seen);
    if (!busy) {
      EXPECT_TRUE(losses.loss.empty());
      continue;
    }
    const auto begin = static_cast<std::size_t>(whole.window_offsets[first]);
    const std::size_t n = losses.loss.size();
    tokens += static_cast<std::int64_t>(n);
    wrong += different(losses.loss.data(), expected.losses.loss.data(), begin, n, 1);
    wrong += different(losses.predicted.data(), expected.losses.predicted.data(), begin, n, 1);
    ASSERT_EQ(seen.routings.size(), config.moe_layers.size());
    for (std::size_t layer = 0; layer < seen.routings.size(); ++layer) {
      const Routing& got = seen.routings[layer];
      const Routing& want = expected.seen.routings[layer];
      const auto k = static_cast<std::size_t>(config.top_k);
      wrong += different(got.ids.data(), want.ids.data(), begin, n, k);
      wrong += different(got.weights.data(), want.weights.data(), begin, n, k);
      wrong += different(got.logits.data<float>(), want.logits.data<float>(), begin, n,
                         static_cast<std::size_t>(config.n_experts));
    }
    ASSERT_EQ(seen.hiddens.size(), static_cast<std::size_t>(config.n_layers));
    for (std::size_t layer = 0; layer < seen.hiddens.size(); ++layer) {
      wrong += different(seen.hiddens[layer].data(), expected.seen.hiddens[layer].data(), begin, n,
                         static_cast<std::size_t>(config.d_model));
    }
  }
  EXPECT_EQ(comm.sum(wrong), 0);
  EXPECT_EQ(comm.sum(tokens), whole.n_tokens());
  EXPECT_GT(whole.n_tokens(), 0);
  EXPECT_EQ(moved > 0, test.moves && comm.size() > 1);
  EXPECT_EQ(model.row_bytes(), static_cast<std::uint64_t>(config.d_model) * (test.precision == Precision::f32 ? 4 : 2));
}

}  // namespace switchyard::testing_support
