#include "pipeline/experiments/ablation_results.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>

#include "pipeline/analysis/compare.h"
#include "pipeline/analysis/document_groups.h"
#include "pipeline/analysis/paired_tests.h"
#include "pipeline/analysis/resampling.h"

namespace switchyard {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr std::size_t kGroups = kDocumentGroups;

struct Score {
  const char* name;
  double ObservedScores::*member;
  const char* units;
  const char* long_name;
};
constexpr std::array<Score, 4> kScores = {{
    {"load", &ObservedScores::load, "1", "slots of the expert over all slots of the layer"},
    {"mean_weight", &ObservedScores::mean_weight, "1", "mean combine weight of the tokens that chose the expert"},
    {"reap", &ObservedScores::reap, "1", "mean of combine weight times norm of the expert's output over those tokens"},
    {"ean", &ObservedScores::ean, "1", "sum of the norms of the expert's output over those tokens"},
}};

template <typename T>
double total(const std::vector<T>& values) {
  return static_cast<double>(std::accumulate(values.begin(), values.end(), T{0}));
}

/// Groups of a category that have tokens, and how often each resample draws them.
class Resamples {
 public:
  Resamples(const CategorySums& sums, const ResamplingOptions& options) : confidence_(options.confidence) {
    for (std::size_t g = 0; g < kGroups; ++g) {
      if (sums.tokens[g] == 0) continue;
      used_.push_back(g);
      tokens_.push_back(static_cast<double>(sums.tokens[g]));
    }
    if (used_.size() < 2) return;
    times_.resize(static_cast<std::size_t>(options.bootstrap));
    drawn_tokens_.resize(times_.size());
#pragma omp parallel for
    for (std::int64_t r = 0; r < options.bootstrap; ++r) {
      const auto i = static_cast<std::size_t>(r);
      times_[i] = bootstrap_times(used_.size(), options.seed, sums.name, static_cast<std::uint64_t>(r));
      drawn_tokens_[i] = std::inner_product(tokens_.begin(), tokens_.end(), times_[i].begin(), 0.0);
    }
  }

  /// A difference a token from its sums by group: of(g).
  template <typename Of>
  Difference difference(Of&& of) const {
    std::vector<double> sums;
    for (const std::size_t g : used_) sums.push_back(of(g));
    const double all = std::accumulate(sums.begin(), sums.end(), 0.0);
    Difference found{.value = all / std::accumulate(tokens_.begin(), tokens_.end(), 0.0), .low = kNan, .high = kNan};
    if (times_.empty()) return found;
    std::vector<double> resampled;
    for (std::size_t r = 0; r < times_.size(); ++r)
      resampled.push_back(std::inner_product(sums.begin(), sums.end(), times_[r].begin(), 0.0) / drawn_tokens_[r]);
    std::sort(resampled.begin(), resampled.end());
    found.low = sorted_quantile(resampled, (1 - confidence_) / 2);
    found.high = sorted_quantile(resampled, (1 + confidence_) / 2);
    return found;
  }

 private:
  double confidence_;
  std::vector<std::size_t> used_;
  std::vector<double> tokens_;                     // [used]
  std::vector<std::vector<std::uint32_t>> times_;  // [resamples][used]
  std::vector<double> drawn_tokens_;               // [resamples]
};

CategoryEffects effects_of(const CategorySums& sums, const ResamplingOptions& options) {
  CategoryEffects result;
  result.name = sums.name;
  result.documents = sums.documents;
  const double tokens = total(sums.tokens);
  result.tokens = static_cast<std::uint64_t>(tokens);
  result.accuracy = total(sums.right) / tokens;
  result.loss = total(sums.loss) / tokens;
  result.effects.resize(sums.lost.size());
  const Resamples resamples(sums, options);
#pragma omp parallel for schedule(dynamic)
  for (std::size_t c = 0; c < sums.lost.size(); ++c) {
    Effect& effect = result.effects[c];
    effect.accuracy_difference =
        resamples.difference([&](std::size_t g) { return -static_cast<double>(sums.ablated_gained[c * kGroups + g]); });
    effect.loss_difference =
        resamples.difference([&](std::size_t g) { return sums.ablated_loss[c * kGroups + g] - sums.loss[g]; });
    effect.lost = sums.lost[c];
    effect.gained = sums.gained[c];
    effect.accuracy =
        (total(sums.right) + static_cast<double>(effect.gained) - static_cast<double>(effect.lost)) / tokens;
    effect.loss = result.loss + effect.loss_difference.value;
    effect.p = mcnemar_exact(effect.lost, effect.gained);
  }
  std::vector<double> p;
  for (const Effect& effect : result.effects) p.push_back(effect.p);
  const std::vector<double> q = benjamini_hochberg(p);
  for (std::size_t c = 0; c < q.size(); ++c) result.effects[c].q = q[c];
  return result;
}

/// Values by layer, expert and category of the whole model, filled where the plan has changes.
template <typename T>
class Cells {
 public:
  Cells(const ModelFacts& model, const AblationPlan& plan, std::size_t categories, T empty)
      : plan_(plan), per_expert_(plan.mode != AblationMode::flip), categories_(categories) {
    shape_ = {static_cast<std::uint64_t>(model.n_moe_layers())};
    dimensions_ = {"layer"};
    if (per_expert_) {
      shape_.push_back(static_cast<std::uint64_t>(model.n_experts));
      dimensions_.emplace_back("expert");
      experts_ = static_cast<std::size_t>(model.n_experts);
    }
    shape_.push_back(categories);
    dimensions_.emplace_back("category");
    values_.assign(shape_[0] * experts_ * categories, empty);
  }

  /// change: index into a category's effects.
  T& at(std::size_t change, std::size_t category) {
    const auto layer = static_cast<std::size_t>(plan_.layers[change / plan_.variants()]);
    const auto expert = per_expert_ ? static_cast<std::size_t>(plan_.experts[change % plan_.variants()]) : 0;
    return values_[(layer * experts_ + expert) * categories_ + category];
  }
  Table table(const std::string& path, const std::string& units, const std::string& long_name) && {
    return {path, dimensions_, shape_, std::move(values_), units, long_name};
  }

 private:
  const AblationPlan& plan_;
  bool per_expert_;
  std::size_t categories_;
  std::size_t experts_ = 1;
  std::vector<std::uint64_t> shape_;
  std::vector<std::string> dimensions_;
  std::vector<T> values_;
};

/// A table of one figure of every change and category.
template <typename T, typename Of>
Table effect_table(const ModelFacts& model, const AblationPlan& plan, const std::vector<CategoryEffects>& categories,
                   T empty, const std::string& name, const std::string& units, const std::string& long_name, Of&& of) {
  Cells<T> cells(model, plan, categories.size(), empty);
  for (std::size_t c = 0; c < categories.size(); ++c)
    for (std::size_t i = 0; i < categories[c].effects.size(); ++i) cells.at(i, c) = of(categories[c].effects[i]);
  return std::move(cells).table("/ablation/" + name, units, long_name);
}

std::vector<Table> effect_tables(const ModelFacts& model, const AblationPlan& plan,
                                 const std::vector<CategoryEffects>& categories) {
  std::vector<Table> tables;
  const auto add = [&](const std::string& name, const std::string& units, const std::string& long_name, auto&& of) {
    tables.push_back(effect_table(model, plan, categories, kNan, name, units, long_name, of));
  };
  const auto add_count = [&](const std::string& name, const std::string& long_name, std::uint64_t Effect::*count) {
    tables.push_back(effect_table(model, plan, categories, std::uint64_t{0}, name, "1", long_name,
                                  [&](const Effect& effect) { return effect.*count; }));
  };
  add("accuracy", "1", "share of tokens whose next one is the arg-max, of the changed model",
      [](const Effect& effect) { return effect.accuracy; });
  add("loss", "nats", "mean loss of the changed model", [](const Effect& effect) { return effect.loss; });
  for (const auto& [name, units, about, member] :
       {std::tuple("accuracy_difference", "1", "accuracy as it is minus changed", &Effect::accuracy_difference),
        std::tuple("loss_difference", "nats", "mean loss changed minus as it is", &Effect::loss_difference)}) {
    const std::string long_name = about;
    add(name, units, long_name, [member = member](const Effect& effect) { return (effect.*member).value; });
    add(std::string(name) + "_low", units, long_name + ": lower end of its interval over documents",
        [member = member](const Effect& effect) { return (effect.*member).low; });
    add(std::string(name) + "_high", units, long_name + ": upper end of its interval over documents",
        [member = member](const Effect& effect) { return (effect.*member).high; });
  }
  add_count("lost", "tokens right as it is, wrong when changed", &Effect::lost);
  add_count("gained", "tokens wrong as it is, right when changed", &Effect::gained);
  add("mcnemar_p", "1", "p-value of McNemar's exact test of lost and gained",
      [](const Effect& effect) { return effect.p; });
  add("mcnemar_q", "1", "p adjusted over all changes at all layers of a category",
      [](const Effect& effect) { return effect.q; });
  return tables;
}

/// /importance/rank: 1 is the expert of a layer whose change costs most.
Table rank_table(const ModelFacts& model, const AblationPlan& plan, const std::vector<CategoryEffects>& categories) {
  Cells<double> cells(model, plan, categories.size(), kNan);
  const std::size_t variants = plan.variants();
  for (std::size_t c = 0; c < categories.size(); ++c)
    for (std::size_t begin = 0; begin < categories[c].effects.size(); begin += variants) {
      std::vector<double> gain;  // the most costly first
      for (std::size_t v = 0; v < variants; ++v)
        gain.push_back(-categories[c].effects[begin + v].loss_difference.value);
      const std::vector<double> ranks = mid_ranks(gain);
      for (std::size_t v = 0; v < variants; ++v) cells.at(begin + v, c) = ranks[v];
    }
  return std::move(cells).table("/importance/rank", "1",
                                "place of the expert in its layer by loss difference, from 1, the most costly");
}

std::vector<Table> importance_tables(const ModelFacts& model, const AblationPlan& plan,
                                     const std::vector<CategoryEffects>& categories,
                                     const std::vector<ObservedScores>& scores) {
  const auto layers = static_cast<std::uint64_t>(model.n_moe_layers());
  const auto experts = static_cast<std::uint64_t>(model.n_experts);
  std::vector<Table> tables = {rank_table(model, plan, categories)};
  for (const Score& score : kScores) {
    std::vector<double> values(layers * experts, kNan);
    for (std::size_t i = 0; i < scores.size(); ++i)
      values[static_cast<std::size_t>(plan.layers[i / experts]) * experts + i % experts] = scores[i].*score.member;
    tables.push_back({std::string("/importance/") + score.name,
                      {"layer", "expert"},
                      {layers, experts},
                      std::move(values),
                      score.units,
                      score.long_name});
  }
  std::vector<double> correlation(layers * kScores.size(), kNan);
  for (std::size_t l = 0; l < plan.layers.size(); ++l) {
    const std::vector<double> of_layer = score_correlations(plan, categories.front(), scores, l, l + 1);
    std::ranges::copy(of_layer, correlation.begin() + static_cast<std::ptrdiff_t>(plan.layers[l]) *
                                                          static_cast<std::ptrdiff_t>(kScores.size()));
  }
  tables.push_back(
      {"/importance/score", {"score"}, {kScores.size()}, observed_score_names(), "1", "name of the score"});
  tables.push_back({"/importance/correlation",
                    {"layer", "score"},
                    {layers, kScores.size()},
                    std::move(correlation),
                    "1",
                    "Spearman's rank correlation of the score with loss_difference over the layer's ablated experts"});
  tables.push_back({"/importance/pooled_correlation",
                    {"score"},
                    {kScores.size()},
                    score_correlations(plan, categories.front(), scores, 0, plan.layers.size()),
                    "1",
                    "the same over all layers, ranks taken within each"});
  return tables;
}

}  // namespace

std::vector<CategoryEffects> ablation_effects(const AblationSums& sums, const ResamplingOptions& options) {
  std::vector<CategoryEffects> all;
  if (sums.categories().empty()) return all;
  all.push_back(effects_of(all_together(sums), options));
  if (all.front().tokens == 0) return {};
  for (const CategorySums& category : sums.categories()) all.push_back(effects_of(category, options));
  return all;
}

std::vector<ObservedScores> observed_scores(const AblationSums& sums) {
  std::vector<ObservedScores> scores;
  for (std::size_t i = 0; i < sums.use().size(); ++i) {
    const auto layer = sums.use().begin() + static_cast<std::ptrdiff_t>(i / sums.experts() * sums.experts());
    const std::uint64_t slots =
        std::accumulate(layer, layer + static_cast<std::ptrdiff_t>(sums.experts()), std::uint64_t{0},
                        [](std::uint64_t sum, const ExpertUse& use) { return sum + use.count; });
    const ExpertUse& use = sums.use()[i];
    const auto count = static_cast<double>(use.count);
    scores.push_back({.load = count / static_cast<double>(slots),
                      .mean_weight = use.weight / count,
                      .reap = use.weighted_norm / count,
                      .ean = use.norm});
  }
  return scores;
}

std::vector<std::string> observed_score_names() {
  std::vector<std::string> names;
  for (const Score& score : kScores) names.emplace_back(score.name);
  return names;
}

std::vector<double> score_correlations(const AblationPlan& plan, const CategoryEffects& all,
                                       const std::vector<ObservedScores>& scores, std::size_t first, std::size_t last) {
  const std::size_t experts = scores.size() / plan.layers.size();
  std::vector<double> correlations;
  for (const Score& score : kScores) {
    std::vector<ValuePairs> strata;
    for (std::size_t l = first; l < last; ++l) {
      strata.emplace_back();
      for (std::size_t v = 0; v < plan.variants(); ++v) {
        const double of_expert = scores[l * experts + static_cast<std::size_t>(plan.experts[v])].*score.member;
        if (!std::isnan(of_expert))
          strata.back().emplace_back(of_expert, all.effects[l * plan.variants() + v].loss_difference.value);
      }
    }
    correlations.push_back(rank_correlation(strata));
  }
  return correlations;
}

std::vector<Table> ablation_tables(const ModelFacts& model, const AblationPlan& plan,
                                   const std::vector<CategoryEffects>& categories,
                                   const std::vector<ObservedScores>& scores) {
  const std::uint64_t n = categories.size();
  std::vector<std::string> names;
  std::vector<std::uint64_t> documents;
  std::vector<std::uint64_t> tokens;
  std::vector<double> accuracy;
  std::vector<double> loss;
  for (const CategoryEffects& category : categories) {
    names.push_back(category.name);
    documents.push_back(category.documents);
    tokens.push_back(category.tokens);
    accuracy.push_back(category.accuracy);
    loss.push_back(category.loss);
  }
  std::vector<Table> tables;
  tables.push_back({"/ablation/category", {"category"}, {n}, std::move(names), "1", "name; the first is all of them"});
  tables.push_back({"/ablation/documents", {"category"}, {n}, std::move(documents), "1", "documents"});
  tables.push_back({"/ablation/tokens", {"category"}, {n}, std::move(tokens), "1", "tokens that have a next one"});
  tables.push_back({"/ablation/baseline_accuracy",
                    {"category"},
                    {n},
                    std::move(accuracy),
                    "1",
                    "share of tokens whose next one is the arg-max, of the model as it is"});
  tables.push_back(
      {"/ablation/baseline_loss", {"category"}, {n}, std::move(loss), "nats", "mean loss of the model as it is"});
  for (Table& table : effect_tables(model, plan, categories)) tables.push_back(std::move(table));
  if (plan.mode != AblationMode::flip)
    for (Table& table : importance_tables(model, plan, categories, scores)) tables.push_back(std::move(table));
  return tables;
}

std::vector<std::pair<std::string, std::string>> ablation_group_descriptions(const AblationPlan& plan) {
  std::vector<std::pair<std::string, std::string>> groups = {
      {"/ablation", plan.mode == AblationMode::flip
                        ? "what the model loses when every token's k-th expert of a layer is its runner-up instead"
                        : "what the model loses without an expert, by layer, expert and category of text"}};
  if (plan.mode != AblationMode::flip)
    groups.emplace_back("/importance",
                        "experts ranked by what the model loses without them, beside what is known "
                        "without ablating them");
  return groups;
}

}  // namespace switchyard
