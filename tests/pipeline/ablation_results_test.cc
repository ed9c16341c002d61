#include "pipeline/experiments/ablation_results.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "parallel/error.h"
#include "pipeline/analysis/compare.h"
#include "pipeline/analysis/document_groups.h"
#include "pipeline/analysis/paired_tests.h"
#include "pipeline/analysis/resampling.h"
#include "pipeline/analysis/table_index.h"
#include "pipeline/experiments/ablation_sums.h"

namespace switchyard {
namespace {

TEST(McNemar, IsTheSumOfBinomialTerms) {
  int compared = 0;
  for (std::uint64_t b = 0; b < 30; ++b)
    for (std::uint64_t c = 0; c < 30; ++c) {
      const double n = static_cast<double>(b + c);
      double tail = 0;
      for (double i = 0; i <= static_cast<double>(std::min(b, c)); ++i)
        tail += std::exp(std::lgamma(n + 1) - std::lgamma(i + 1) - std::lgamma(n - i + 1) - n * std::log(2.0));
      EXPECT_NEAR(mcnemar_exact(b, c), std::min(1.0, 2 * tail), 1e-12);
      ++compared;
    }
  EXPECT_EQ(compared, 900);
  EXPECT_NEAR(mcnemar_exact(1'000'000, 1'003'000), 2 * 0.5 * std::erfc(2999 / std::sqrt(2.0 * 2'003'000)), 1e-6);
  EXPECT_EQ(mcnemar_exact(0, 0), 1);
}

TEST(RankCorrelation, EqualsHandComputedFigures) {
  EXPECT_EQ(mid_ranks(std::vector<double>{3, 1, 3, 9}), (std::vector<double>{2.5, 1, 2.5, 4}));
  const ValuePairs up = {{1, 10}, {2, 30}, {3, 20}, {4, 40}, {5, 50}};  // rank differences 0 1 1 0 0
  EXPECT_NEAR(rank_correlation(std::vector<ValuePairs>{up}), 1 - 6.0 * 2 / (5 * 24), 1e-12);
  const ValuePairs down = {{1, 1}, {2, 0}};
  EXPECT_NEAR(rank_correlation(std::vector<ValuePairs>{down}), -1, 1e-12);
  // Sums of squared deviations 10 and 0.5, of products 9 and -0.5.
  EXPECT_NEAR(rank_correlation(std::vector<ValuePairs>{up, down}), (9 - 0.5) / 10.5, 1e-12);
  EXPECT_TRUE(std::isnan(rank_correlation(std::vector<ValuePairs>{{{1, 2}, {1, 3}}})));
}

constexpr std::size_t kLayers = 2, kVariants = 3, kExperts = 4;

/// Two corpora, two blocks each; the first block's last document goes on in the second.
struct MadeUp {
  std::vector<Block> blocks;
  std::vector<WindowSums> windows;
  std::vector<std::string> categories;  // of each window of each block, in order

  MadeUp() {
    auto random = [engine = std::mt19937(7)]() mutable { return static_cast<std::uint32_t>(engine()); };
    std::uint64_t document = 0;
    std::string category;
    for (std::uint64_t corpus = 0; corpus < 2; ++corpus)
      for (int b = 0; b < 2; ++b) {
        Block block;
        block.corpus = corpus;
        WindowSums sums;
        const auto add_window = [&] {
          block.windows.push_back({.document = document - 1, .group = document_group(std::to_string(document))});
          sums.baseline.push_back({static_cast<double>(random() % 1000) / 7, 50 + random() % 50, random() % 50});
          for (std::size_t i = 0; i < kLayers * kVariants; ++i)
            sums.ablated.push_back({static_cast<double>(random() % 1000) / 6, random() % 9, random() % 5});
          for (std::size_t i = 0; i < kLayers * kExperts; ++i)
            sums.use.push_back({random() % 20, static_cast<double>(random() % 20) / 3,
                                static_cast<double>(random() % 20) / 5, static_cast<double>(random() % 20) / 9});
          categories.push_back(category);
        };
        if (b == 1) add_window();
        for (int d = 0; d < 30; ++d) {
          DocumentRow row;
          row.id = std::to_string(++document);
          row.category = corpus == 1 && d % 3 == 0 ? "" : d % 2 == 0 ? "even" : "odd";
          category = row.category.empty() ? "second" : (corpus == 0 ? "first/" : "second/") + row.category;
          block.documents.push_back(row);
          for (int w = 0; w < 1 + d % 2; ++w) add_window();
        }
        blocks.push_back(std::move(block));
        windows.push_back(std::move(sums));
      }
  }
};

AblationSums empty_sums() { return {kLayers, kVariants, kExperts, {"first", "second"}}; }

TEST(AblationSums, AddUpByCategoryAndGroup) {
  const MadeUp made;
  AblationSums sums = empty_sums();
  for (std::size_t b = 0; b < made.blocks.size(); ++b) {
    sums.add(made.blocks[b], made.windows[b]);
    AblationSums again = empty_sums();  // as after a restart
    again.from_json(nlohmann::json::from_cbor(nlohmann::json::to_cbor(sums.to_json())));
    EXPECT_EQ(again.to_json(), sums.to_json());
    sums = std::move(again);
  }
  std::vector<std::string> names;
  std::uint64_t documents = 0;
  for (const CategorySums& category : sums.categories()) {
    names.push_back(category.name);
    documents += category.documents;
    std::vector<double> loss(kDocumentGroups, 0);
    std::vector<double> ablated(kDocumentGroups, 0);
    std::uint64_t lost = 0;
    std::size_t at = 0;
    std::size_t windows = 0;
    for (std::size_t b = 0; b < made.blocks.size(); ++b)
      for (std::size_t w = 0; w < made.blocks[b].windows.size(); ++w, ++at) {
        if (made.categories[at] != category.name) continue;
        const std::size_t group = made.blocks[b].windows[w].group;
        loss[group] += made.windows[b].baseline[w].loss;
        ablated[group] += made.windows[b].ablated[w * kLayers * kVariants + 4].loss;
        lost += made.windows[b].ablated[w * kLayers * kVariants + 4].lost;
        ++windows;
      }
    EXPECT_GT(windows, 10U);
    EXPECT_EQ(category.loss, loss);
    EXPECT_TRUE(std::equal(ablated.begin(), ablated.end(), category.ablated_loss.begin() + 4 * kDocumentGroups));
    EXPECT_EQ(category.lost[4], lost);
  }
  EXPECT_EQ(names, (std::vector<std::string>{"first/even", "first/odd", "second", "second/odd", "second/even"}));
  EXPECT_EQ(documents, 120U);
  EXPECT_EQ(all_together(sums).documents, 120U);
}

AblationSums made_up_sums(const MadeUp& made) {
  AblationSums sums = empty_sums();
  for (std::size_t b = 0; b < made.blocks.size(); ++b) sums.add(made.blocks[b], made.windows[b]);
  return sums;
}

TEST(AblationEffects, EqualFiguresMadeTheLongWay) {
  const MadeUp made;
  const AblationSums sums = made_up_sums(made);
  const ResamplingOptions options{.bootstrap = 40, .confidence = 0.9, .seed = 5};
  const std::vector<CategoryEffects> effects = ablation_effects(sums, options);
  ASSERT_EQ(effects.size(), sums.categories().size() + 1);
  EXPECT_EQ(effects[0].name, "all");
  std::size_t compared = 0;
  for (std::size_t c = 0; c < effects.size(); ++c) {
    // Groups with tokens, from the windows.
    std::vector<double> tokens(kDocumentGroups, 0);
    std::vector<double> loss(kDocumentGroups, 0);
    std::vector<double> right(kDocumentGroups, 0);
    std::vector<std::vector<double>> ablated(kLayers * kVariants, std::vector<double>(kDocumentGroups, 0));
    std::vector<std::vector<double>> ablated_right = ablated;
    std::vector<std::uint64_t> lost(kLayers * kVariants, 0);
    std::vector<std::uint64_t> gained = lost;
    std::size_t at = 0;
    for (std::size_t b = 0; b < made.blocks.size(); ++b)
      for (std::size_t w = 0; w < made.blocks[b].windows.size(); ++w, ++at) {
        if (c > 0 && made.categories[at] != effects[c].name) continue;
        const std::size_t g = made.blocks[b].windows[w].group;
        const WindowScore& score = made.windows[b].baseline[w];
        tokens[g] += static_cast<double>(score.tokens);
        loss[g] += score.loss;
        right[g] += static_cast<double>(score.right);
        for (std::size_t i = 0; i < lost.size(); ++i) {
          const AblatedScore& change = made.windows[b].ablated[w * lost.size() + i];
          ablated[i][g] += change.loss;
          ablated_right[i][g] += static_cast<double>(score.right + change.gained) - change.lost;
          lost[i] += change.lost;
          gained[i] += change.gained;
        }
      }
    std::vector<std::size_t> used;
    for (std::size_t g = 0; g < tokens.size(); ++g)
      if (tokens[g] > 0) used.push_back(g);
    const auto mean = [&](const std::vector<double>& values, const std::vector<std::uint32_t>& times) {
      double sum = 0;
      double n = 0;
      for (std::size_t i = 0; i < used.size(); ++i) {
        sum += times[i] * values[used[i]];
        n += times[i] * tokens[used[i]];
      }
      return sum / n;
    };
    const std::vector<std::uint32_t> once(used.size(), 1);
    EXPECT_NEAR(effects[c].loss, mean(loss, once), 1e-12);
    EXPECT_NEAR(effects[c].accuracy, mean(right, once), 1e-12);
    std::vector<double> p;
    for (std::size_t i = 0; i < lost.size(); ++i) {
      const Effect& effect = effects[c].effects[i];
      EXPECT_NEAR(effect.loss, mean(ablated[i], once), 1e-12);
      EXPECT_NEAR(effect.accuracy, mean(ablated_right[i], once), 1e-12);
      EXPECT_NEAR(effect.loss_difference.value, mean(ablated[i], once) - mean(loss, once), 1e-12);
      EXPECT_NEAR(effect.accuracy_difference.value, mean(right, once) - mean(ablated_right[i], once), 1e-12);
      std::vector<double> loss_differences;
      std::vector<double> accuracy_differences;
      for (std::uint64_t r = 0; r < 40; ++r) {
        const auto times = bootstrap_times(used.size(), 5, effects[c].name, r);
        loss_differences.push_back(mean(ablated[i], times) - mean(loss, times));
        accuracy_differences.push_back(mean(right, times) - mean(ablated_right[i], times));
      }
      std::ranges::sort(loss_differences);
      std::ranges::sort(accuracy_differences);
      EXPECT_NEAR(effect.loss_difference.low, sorted_quantile(loss_differences, 0.05), 1e-10);
      EXPECT_NEAR(effect.loss_difference.high, sorted_quantile(loss_differences, 0.95), 1e-10);
      EXPECT_NEAR(effect.accuracy_difference.low, sorted_quantile(accuracy_differences, 0.05), 1e-10);
      EXPECT_NEAR(effect.accuracy_difference.high, sorted_quantile(accuracy_differences, 0.95), 1e-10);
      EXPECT_EQ(effect.lost, lost[i]);
      EXPECT_EQ(effect.gained, gained[i]);
      p.push_back(mcnemar_exact(lost[i], gained[i]));
      ++compared;
    }
    const std::vector<double> q = benjamini_hochberg(p);
    for (std::size_t i = 0; i < q.size(); ++i) EXPECT_EQ(effects[c].effects[i].q, q[i]);
  }
  EXPECT_EQ(compared, 36U);
}

TEST(AblationTables, StandAtTheirLayersAndExperts) {
  const MadeUp made;
  const AblationSums sums = made_up_sums(made);
  const AblationPlan plan{.mode = AblationMode::drop, .layers = {0, 2}, .experts = {0, 1, 3}};
  ModelFacts model;
  model.moe_layers = {0, 1, 3};
  model.n_experts = static_cast<int>(kExperts);
  const std::vector<CategoryEffects> effects = ablation_effects(sums, {.bootstrap = 20});
  const std::vector<ObservedScores> scores = observed_scores(sums);
  const std::vector<Table> tables = ablation_tables(model, plan, effects, scores);
  const TableIndex index(tables);
  const auto& differences = index.values<double>("/ablation/loss_difference", 3 * 4 * 6);
  const auto& lost = index.values<std::uint64_t>("/ablation/lost", 3 * 4 * 6);
  const auto& rank = index.values<double>("/importance/rank", 3 * 4 * 6);
  const auto& load = index.values<double>("/importance/load", 3 * 4);
  std::size_t there = 0;
  for (std::size_t layer = 0; layer < 3; ++layer)
    for (std::size_t expert = 0; expert < 4; ++expert)
      for (std::size_t c = 0; c < 6; ++c) {
        const std::size_t cell = (layer * 4 + expert) * 6 + c;
        if (layer == 1 || expert == 2) {
          EXPECT_TRUE(std::isnan(differences[cell]));
          EXPECT_TRUE(std::isnan(rank[cell]));
          EXPECT_EQ(lost[cell], 0U);
          continue;
        }
        const std::size_t first = layer / 2 * kVariants;
        const Effect& effect = effects[c].effects[first + (expert == 3 ? 2 : expert)];
        EXPECT_EQ(differences[cell], effect.loss_difference.value);
        EXPECT_EQ(lost[cell], effect.lost);
        double worse = 1;
        for (std::size_t v = 0; v < kVariants; ++v)
          worse += effects[c].effects[first + v].loss_difference.value > effect.loss_difference.value ? 1 : 0;
        EXPECT_EQ(rank[cell], worse);
        ++there;
      }
  EXPECT_EQ(there, 2U * 3 * 6);
  EXPECT_NEAR(load[0] + load[1] + load[2] + load[3], 1, 1e-12);
  EXPECT_TRUE(std::isnan(load[4]));
  const auto& correlation = index.values<double>("/importance/correlation", 3 * 4);
  ValuePairs pairs;
  for (const std::size_t e : {0U, 1U, 3U})
    pairs.emplace_back(sums.use()[kExperts + e].weight / static_cast<double>(sums.use()[kExperts + e].count),
                       differences[(2 * 4 + e) * 6]);
  EXPECT_NEAR(correlation[2 * 4 + 1], rank_correlation(std::vector<ValuePairs>{pairs}), 1e-12);
  EXPECT_TRUE(std::isnan(correlation[4]));
}

}  // namespace
}  // namespace switchyard
