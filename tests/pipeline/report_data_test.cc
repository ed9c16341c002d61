#include "pipeline/analysis/report_data.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "pipeline/analysis/cost_model.h"

namespace switchyard {
namespace {

constexpr std::size_t kRanks = 4;

RankTime random_time(int layers, int experts, std::mt19937_64& random) {
  RankTime time(layers, experts);
  time.ranks = kRanks;
  time.steps = 1000;
  const std::size_t n = static_cast<std::size_t>(layers) * kRanks;
  time.slowest_steps.assign(n, 123);
  for (auto* sums : {&time.seconds.dispatch, &time.seconds.dispatch_wait, &time.seconds.experts, &time.seconds.combine,
                     &time.seconds.combine_wait, &time.straggler_by_rank})
    sums->resize(n);
  time.cost_sums.resize(kRanks * kCostSums);
  for (auto* sums : {&time.seconds.dispatch, &time.seconds.dispatch_wait, &time.seconds.experts, &time.seconds.combine,
                     &time.seconds.combine_wait, &time.straggler_by_rank, &time.straggler_seconds,
                     &time.straggler_by_expert, &time.cost_sums})
    for (double& sum : *sums) sum = static_cast<double>(random()) * 1e-19;
  return time;
}

/// Datasets with every count random, as large as those of `tokens` tokens.
Statistics random_statistics(int layers, int experts, int top_k, int n_datasets, std::uint32_t ids,
                             std::uint64_t tokens) {
  Statistics statistics;
  ModelFacts& model = statistics.model;
  model = {"mixtral", "wide", layers, 64, 100'000, {}, experts, top_k};
  for (int l = 0; l < layers; ++l) model.moe_layers.push_back(l);
  std::mt19937_64 random(1);
  for (int d = 0; d < n_datasets; ++d) {
    Accumulators a(shape_of(model));
    const auto fill = [&](std::vector<std::uint64_t>& counts, std::uint64_t mean) {
      for (std::uint64_t& count : counts) count = random() % (2 * mean) + 1;
    };
    const auto n = static_cast<std::uint64_t>(experts);
    fill(a.slot_count, tokens / n);
    fill(a.coactivation, tokens / n / n);
    fill(a.flow_top1, tokens / n / n);
    for (auto* histogram : {&a.entropy_histogram, &a.margin_histogram, &a.top_probability_histogram})
      fill(*histogram, tokens / kHistogramBins);
    a.tokens[0] = tokens;
    for (auto* moments : {&a.entropy, &a.margin, &a.top_probability})
      for (Moments& m : *moments) m = {tokens, 0.123456789, 0.0123456789 * static_cast<double>(tokens), 0, 1};
    for (int p = 0; p < 100; ++p) {
      std::vector<std::uint16_t> path(static_cast<std::size_t>(layers));
      for (std::uint16_t& expert : path) expert = static_cast<std::uint16_t>(random() % n);
      a.paths.add(path, random() % tokens + 1);
    }
    for (SparseCounts& table : a.token_tables)
      for (int l = 0; l < layers; ++l)
        for (std::uint32_t id = 0; id < ids; ++id)
          for (std::uint64_t e = id % 3; e < n; e += 3)
            table.append((static_cast<std::uint64_t>(l) * 100'000 + id * 40) * n + e,
                         random() % (tokens / ids / n) + 1);
    std::string name = "dataset ";
    name += std::to_string(d);
    statistics.datasets.push_back({name, std::move(a), RankLoad(layers, top_k), random_time(layers, experts, random)});
  }
  statistics.vocabulary.assign(100'000,
                               "\xe2\x96\x81"
                               "piece");
  return statistics;
}

std::vector<GroupedSlots> one_group_each(const Statistics& statistics) {
  std::vector<GroupedSlots> groups;
  for (const Dataset& dataset : statistics.datasets) {
    const AccumulatorShape& shape = dataset.accumulators.shape;
    GroupedSlots grouped{dataset.name, shape.layers, shape.experts, {}};
    for (int l = 0; l < shape.layers; ++l)
      for (const std::uint64_t count : dataset.accumulators.layer_counts(l))
        grouped.slots.push_back(static_cast<double>(count));
    groups.push_back(std::move(grouped));
  }
  return groups;
}

TEST(ReportData, SixtyLayersOf64ExpertsAndTenDatasetsFitFiveMegabytes) {
  const Statistics statistics = random_statistics(60, 64, 6, 10, 400, 200'000'000);
  PairDistances pair;
  pair.jensen_shannon.assign(60, {0.123456789, 0.0123, 0.1111111, 0.1333333, 0.000999, 0.00123456});
  pair.total_variation = pair.jensen_shannon;
  const std::string data = report_data(statistics, one_group_each(statistics), std::vector(45, pair), {}, {});
  constexpr std::size_t kScripts = 350'000;  // D3 and the page's own
  EXPECT_LT(data.size() + kScripts, 5'000'000U);
  const nlohmann::json page = nlohmann::json::parse(data);
  EXPECT_GT(page.at("tokens").at("id").size(), 100U);
  EXPECT_EQ(page.at("tables").at("/load/count").at("values").size(), 10U * 60 * 64);
  EXPECT_EQ(page.at("compare").at("jsd").at("q").size(), 45U * 60);
  EXPECT_EQ(page.at("tables").at("/ranks/layer_expert_seconds").at("values").size(), 10U * 60 * kRanks);
  EXPECT_FALSE(page.at("tables").contains("/ranks/straggler_by_expert"));  // would not leave room for tokens
  EXPECT_EQ(page.at("coactivation").at("scopes").size(), 1U);              // of all datasets: of each would not fit
  EXPECT_EQ(page.at("coactivation").at("pairs").at(7).size(), 64U * 63 / 2);
}

TEST(ReportData, WhatIsSelectedIsTheLargest) {
  const Statistics statistics = random_statistics(40, 64, 6, 10, 40, 1'000'000);
  const nlohmann::json page = nlohmann::json::parse(report_data(statistics, {}, {}, {}, {}));
  const auto kept = page.at("flow").at("kept").get<std::size_t>();
  ASSERT_LT(kept, 64U * 64);
  // The second scope is the first dataset; its third pair of layers.
  const nlohmann::json& edges = page.at("flow").at("edges").at(39 + 2);
  ASSERT_EQ(edges.size(), 2 * kept);
  const std::vector<std::uint64_t>& flow = statistics.datasets[0].accumulators.flow_top1;
  std::vector<std::uint64_t> counts(flow.begin() + 2 * 64 * 64, flow.begin() + 3 * 64 * 64);
  std::uint64_t least = ~std::uint64_t{0};
  for (std::size_t i = 0; i < kept; ++i) {
    const auto cell = edges.at(2 * i).get<std::size_t>();
    EXPECT_EQ(edges.at(2 * i + 1).get<std::uint64_t>(), counts.at(cell));
    least = std::min(least, counts.at(cell));
    counts.at(cell) = 0;
  }
  EXPECT_LE(*std::max_element(counts.begin(), counts.end()), least);
  EXPECT_FALSE(page.contains("compare"));
}

TEST(ReportData, ATokenThatABoundedTableKeepsInSomeLayersHasTheirLargestSum) {
  Statistics statistics = random_statistics(2, 4, 2, 1, 0, 1000);
  Accumulators& a = statistics.datasets[0].accumulators;
  SparseCounts& table = a.token_tables[0];
  const auto vocabulary = static_cast<std::uint64_t>(a.shape.vocabulary);
  const auto add = [&](std::uint64_t layer, std::uint64_t id, std::uint64_t expert, std::uint64_t count) {
    table.append((layer * vocabulary + id) * 4 + expert, count);
  };
  add(0, 3, 0, 20);
  add(0, 3, 2, 15);
  add(1, 3, 1, 40);
  add(1, 7, 0, 12);  // in no other layer
  add(1, 7, 3, 13);
  const nlohmann::json page = nlohmann::json::parse(report_data(statistics, {}, {}, {}, {}));
  const nlohmann::json& of_experts = page.at("expert_tokens").at("input");
  EXPECT_EQ(of_experts.at("total"), (nlohmann::json{{"3", 40}, {"7", 25}}));
  EXPECT_EQ(of_experts.at("layer_slots"), 65);
  EXPECT_EQ(of_experts.at("count").at(4), (nlohmann::json{7, 12}));  // layer 1, expert 0
  EXPECT_EQ(page.at("tokens").at("id"), (nlohmann::json{3, 7}));
  EXPECT_EQ(page.at("tokens").at("total"), (nlohmann::json{40, 25}));
}

}  // namespace
}  // namespace switchyard
