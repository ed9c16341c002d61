#include "pipeline/analysis/cost.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "io/routing_writer.h"
#include "pipeline/analysis/rank_load.h"
#include "pipeline/model/model_flops.h"
#include "tests/support/temp_folder.h"

namespace switchyard {
namespace {

/// What two ranks did in some steps: slots of each rank's one expert by step and layer, seconds by step and rank.
struct Steps {
  std::uint64_t n_layers = 0;
  std::vector<std::uint32_t> slots;   // [step, layer, expert]
  std::vector<float> expert_seconds;  // [step, rank]
  std::vector<std::uint32_t> tokens;  // [step, rank]
  std::vector<double> flops;          // [step]; empty: not recorded
  std::vector<double> joules = {};    // [block, rank], a block a step; empty: not recorded
};

/// A committed segment whose /dispatch says so, opened again.
RoutingReader segment_of(const Steps& steps, const std::filesystem::path& out) {
  const std::uint64_t n = steps.expert_seconds.size() / 2;
  const std::uint64_t n_layers = steps.n_layers;
  std::vector<float> seconds(n * 2 * kPhases, 0);
  for (std::size_t i = 0; i < n * 2; ++i) {
    seconds[i * kPhases + static_cast<std::size_t>(Phase::experts)] = steps.expert_seconds[i];
    seconds[i * kPhases + static_cast<std::size_t>(Phase::record)] = 0.5F;
  }
  std::vector<std::int32_t> placement;
  for (std::uint64_t l = 0; l < n_layers; ++l) placement.insert(placement.end(), {0, 1});
  const std::uint64_t n_blocks = steps.joules.empty() ? 1 : n;
  std::vector<std::uint64_t> blocks(n);
  std::iota(blocks.rbegin(), blocks.rend(), 7);  // later ones first: rows are told by their number
  SegmentContents contents;
  contents.tables = {
      {"/dispatch/seconds", {"step", "rank", "phase"}, {n, 2, kPhases}, seconds, "s", "time"},
      {"/dispatch/step_tokens", {"step", "rank"}, {n, 2}, steps.tokens, "1", "tokens"},
      {"/dispatch/block",
       {"step"},
       {n},
       steps.joules.empty() ? std::vector<std::uint64_t>(n, 0) : blocks,
       "1",
       "block"},
      {"/dispatch/row_bytes", {"scalar"}, {1}, std::vector<std::uint64_t>{8}, "byte", "size of a row"},
      {"/dispatch/expert_slots", {"step", "layer", "physical_expert"}, {n, n_layers, 2}, steps.slots, "1", "slots"},
      {"/dispatch/placement", {"layer", "physical_expert"}, {n_layers, 2}, placement, "1", "rank"},
      {"/dispatch/traffic",
       {"block", "layer", "source_rank", "expert_rank"},
       {n_blocks, n_layers, 2, 2},
       std::vector<std::uint64_t>(n_blocks * n_layers * 4, 0),
       "1",
       "slots"},
      {"/dispatch/send_ranks",
       {"block", "layer", "ranks_reached"},
       {n_blocks, n_layers, 2},
       std::vector<std::uint64_t>(n_blocks * n_layers * 2, 0),
       "1",
       "tokens"}};
  if (!steps.flops.empty())
    contents.tables.push_back({"/dispatch/flops", {"step"}, {n}, steps.flops, "FLOP", "operations"});
  if (!steps.joules.empty()) {
    std::ranges::sort(blocks);
    contents.tables.push_back({"/dispatch/traffic_block", {"block"}, {n}, blocks, "1", "block"});
    contents.tables.push_back({"/dispatch/joules", {"block", "rank"}, {n, 2}, steps.joules, "J", "energy"});
  }
  std::vector<int> layers(n_layers);
  for (std::size_t l = 0; l < n_layers; ++l) layers[l] = static_cast<int>(l);
  const ModelFacts model{"mixtral", "m", static_cast<int>(n_layers), 4, 10, layers, 2, 1};
  const SegmentEntry entry = commit_segment(out, 0, model, contents, {RecordLevel::counts}, "{}", Communicator::self());
  return RoutingReader(out / entry.file);
}

void add_to(auto& figures, const RoutingReader& segment, auto... more) {
  DispatchValues dispatch(segment);
  figures.add(dispatch, more...);
}

double value_at(const std::vector<Table>& tables, const std::string& path, std::size_t i = 0) {
  for (const Table& table : tables)
    if (table.path == path) return std::get<std::vector<double>>(table.values).at(i);
  ADD_FAILURE() << "there is no " << path;
  return 0;
}

TEST(ModelFlops, EqualACountByHand) {
  ModelConfig c;
  c.n_layers = 3;
  c.d_model = 8;
  c.d_ff = 20;
  c.n_heads = 4;
  c.n_kv_heads = 2;
  c.head_dim = 6;
  c.vocabulary = 50;
  c.moe_layers = {0, 1, 2};
  c.n_experts = 5;
  c.top_k = 2;
  // Multiply-adds of a token: q 8 x 24, k and v 8 x 12 each, out 24 x 8; router 8 x 5; 2 experts of 3 x 8 x 20; head.
  const double token = 2.0 * (3 * (8 * 24 + 2 * 8 * 12 + 24 * 8 + 8 * 5 + 2 * 3 * 8 * 20) + 8 * 50);
  const double key = 2.0 * 3 * (24 + 24);  // score and weighted value, 4 heads of 6
  const std::vector<std::uint32_t> positions = {0, 1, 2, 0};
  EXPECT_EQ(ModelFlops(c).of(positions), 4 * token + (1 + 2 + 3 + 1) * key);
  EXPECT_EQ(ModelFlops(c).mean(5), token + 3 * key);
  c.sliding_window = 2;
  EXPECT_EQ(ModelFlops(c).of(positions), 4 * token + (1 + 2 + 2 + 1) * key);
  c.sliding_window = 0;
  c.moe_layers = {1, 2};  // behind a dense one, each with shared experts
  c.dense_d_ff = 70;
  c.shared_d_ff = 33;
  const double mixed =
      2.0 * (3 * (8 * 24 + 2 * 8 * 12 + 24 * 8) + 2 * (8 * 5 + 2 * 3 * 8 * 20 + 3 * 8 * 33) + 3 * 8 * 70 + 8 * 50);
  EXPECT_EQ(ModelFlops(c).of(std::vector<std::uint32_t>{0}), mixed + key);
  c.shared_d_ff = 0;
  c.moe_layers = {};
  c.n_experts = c.top_k = c.d_ff = 0;
  c.dense_d_ff = 20;
  const double dense = 2.0 * (3 * (8 * 24 + 2 * 8 * 12 + 24 * 8 + 3 * 8 * 20) + 8 * 50);
  EXPECT_EQ(ModelFlops(c).of(std::vector<std::uint32_t>{0}), dense + key);
}

TEST(Cost, AddsUpOverSegments) {
  const testing::TempFolder a;
  const testing::TempFolder b;
  Cost cost;
  // Steps of 3 + .5 and 2 + .5 seconds of the slower rank; then one of 1 + .5.
  add_to(cost, segment_of({1, {5, 5, 6, 4}, {1, 3, 2, 1}, {5, 5, 4, 6}, {1e9, 2e9}}, a.path()));
  add_to(cost, segment_of({1, {1, 1}, {1, 1}, {2, 0}, {4e9}}, b.path()));
  const auto tables = cost_tables({&cost}, 1e9);
  EXPECT_EQ(cost.tokens, 22U);
  EXPECT_EQ(value_at(tables, "/cost/seconds"), 7.5);
  EXPECT_EQ(value_at(tables, "/cost/rank_seconds"), 15);
  EXPECT_EQ(value_at(tables, "/cost/flops"), 7e9);
  EXPECT_DOUBLE_EQ(value_at(tables, "/cost/tokens_per_second"), 22 / 7.5);
  EXPECT_DOUBLE_EQ(value_at(tables, "/cost/flops_per_token"), 7e9 / 22);
  EXPECT_DOUBLE_EQ(value_at(tables, "/cost/flops_per_second"), 7e9 / 7.5);
  EXPECT_DOUBLE_EQ(value_at(tables, "/cost/peak_share"), 7.0 / 15);
  EXPECT_DOUBLE_EQ(value_at(tables, "/cost/record_share"), 3.0 / 12);
  EXPECT_DOUBLE_EQ(value_at(tables, "/cost/phase_share", static_cast<std::size_t>(Phase::experts)), 9.0 / 12);

  const TableIndex index(tables);
  const Cost again = from_cost_tables(index, 1).at(0);
  EXPECT_EQ(again.tokens, cost.tokens);
  EXPECT_EQ(again.seconds, cost.seconds);
  EXPECT_EQ(again.rank_seconds, cost.rank_seconds);
  EXPECT_EQ(again.flops, cost.flops);
  EXPECT_EQ(again.phase_seconds, cost.phase_seconds);
  EXPECT_EQ(peak_flops_of(index), 1e9);
}

TEST(Cost, WhatIsNotKnownIsAbsentNotZero) {
  const testing::TempFolder folder;
  Cost cost;
  add_to(cost, segment_of({1, {1, 1}, {1, 1}, {2, 0}, {}}, folder.path()));
  const auto tables = cost_tables({&cost}, std::nullopt);
  EXPECT_TRUE(std::isnan(value_at(tables, "/cost/flops")));
  EXPECT_TRUE(std::isnan(value_at(tables, "/cost/flops_per_token")));
  EXPECT_EQ(value_at(tables, "/cost/tokens_per_second"), 2 / 1.5);
  for (const Table& table : tables) EXPECT_NE(table.path.substr(0, 10), "/cost/peak") << table.path;
}

TEST(Cost, EnergyIsOfBlocksWhoseGpusWereAllCounted) {
  const double unknown = std::numeric_limits<double>::quiet_NaN();
  const testing::TempFolder a;
  const testing::TempFolder b;
  const testing::TempFolder c;
  const std::vector<std::uint32_t> slots = {1, 1, 1, 1, 1, 1};
  Cost cost;
  // Three blocks, of 16, 8 and 3 tokens: counted on both ranks, on one rank for both, on one of two GPUs.
  add_to(cost,
         segment_of({1, slots, {1, 1, 1, 1, 1, 1}, {1, 2, 3, 5, 7, 9}, {}, {30, 12, 20, 0, unknown, 5}}, a.path()));
  add_to(cost, segment_of({1, {1, 1}, {1, 1}, {50, 50}, {}}, b.path()));  // of a machine without a counter
  EXPECT_EQ(cost.joules, 62);
  EXPECT_EQ(cost.joules_tokens, 24U);
  EXPECT_EQ(cost.tokens, 127U);
  Cost unknown_cost;
  add_to(unknown_cost, segment_of({1, {1, 1}, {1, 1}, {2, 0}, {}}, c.path()));
  const auto tables = cost_tables({&unknown_cost, &cost}, std::nullopt);
  EXPECT_TRUE(std::isnan(value_at(tables, "/cost/joules", 0)));
  EXPECT_EQ(value_at(tables, "/cost/joules", 1), 62);
  EXPECT_TRUE(std::isnan(value_at(tables, "/cost/joules_per_token", 0)));
  EXPECT_DOUBLE_EQ(value_at(tables, "/cost/joules_per_token", 1), 62.0 / 24);
  EXPECT_DOUBLE_EQ(value_at(tables, "/cost/joules_per_token_low", 1), 20.0 / 8);
  EXPECT_DOUBLE_EQ(value_at(tables, "/cost/joules_per_token_high", 1), 42.0 / 16);
  for (const char* bound : {"/cost/joules_per_token_low", "/cost/joules_per_token_high"})
    EXPECT_TRUE(std::isnan(value_at(tables, bound, 0)));
  // 8 s of experts and of 4 s of recording.
  EXPECT_DOUBLE_EQ(value_at(tables, "/cost/phase_joules_estimate", kPhases + static_cast<std::size_t>(Phase::experts)),
                   62.0 * 8 / 12);
  const std::vector<Cost> again = from_cost_tables(TableIndex(tables), 2);
  EXPECT_EQ(again[0].joules_tokens, 0U);
  EXPECT_EQ(again[0].joules, 0);
  EXPECT_EQ(again[1].joules_tokens, 24U);
  EXPECT_EQ(again[1].joules, 62);
  EXPECT_EQ(again[1].block_joules_low, cost.block_joules_low);
  EXPECT_EQ(again[1].block_joules_high, cost.block_joules_high);
  for (const Table& table : cost_tables({&unknown_cost}, std::nullopt))
    EXPECT_EQ(table.path.find("joules"), std::string::npos) << table.path;
}

TEST(RankLoad, BalancednessBothWays) {
  const testing::TempFolder a;
  const testing::TempFolder b;
  RankLoad steps(1, 1);
  add_to(steps, segment_of({1, {4, 0, 1, 1}, {1, 1, 1, 1}, {2, 2, 1, 1}, {}}, a.path()), 0);
  EXPECT_NEAR(value_at(rank_tables({&steps}), "/ranks/balancedness_mean"), (0.5 + 1) / 2, 1e-5);
  EXPECT_DOUBLE_EQ(value_at(rank_tables({&steps}), "/ranks/balancedness_ratio"), (2.0 + 1) / (4 + 1));

  // Layers of 2:1 and 1:2: 0.75 each, not the 1 that slots summed over layers would give.
  RankLoad layers(2, 1);
  add_to(layers, segment_of({2, {2, 1, 1, 2}, {1, 1}, {2, 1}, {}}, b.path()), 0);
  for (const std::size_t l : {0U, 1U}) {
    EXPECT_NEAR(value_at(rank_tables({&layers}), "/ranks/balancedness_mean", l), 0.75, 1e-5);
    EXPECT_DOUBLE_EQ(value_at(rank_tables({&layers}), "/ranks/balancedness_ratio", l), 0.75);
  }
}

}  // namespace
}  // namespace switchyard
