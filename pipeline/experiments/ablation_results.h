#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "io/hdf5/table.h"
#include "io/routing_schema.h"
#include "pipeline/experiments/ablation.h"
#include "pipeline/experiments/ablation_sums.h"

namespace switchyard {

struct ResamplingOptions {
  int bootstrap = 1000;      // resamples of a category's groups of documents
  double confidence = 0.95;  // of intervals
  std::uint64_t seed = 0;
};

/// A difference with its percentile interval (Efron and Tibshirani, 1993, ch. 13): groups of documents are drawn with
/// replacement, the model and its changed version on the same ones. NaN interval for fewer than two groups.
struct Difference {
  double value = 0, low = 0, high = 0;
};

/// What one change did to one category. A difference above 0 says that the model was better as it is.
struct Effect {
  double accuracy = 0;             // share of tokens whose next one is the arg-max, of the changed model
  double loss = 0;                 // nats a token
  Difference accuracy_difference;  // as it is minus changed
  Difference loss_difference;      // changed minus as it is
  std::uint64_t lost = 0;          // tokens right as it is, wrong when changed
  std::uint64_t gained = 0;        // the reverse
  double p = 1;                    // mcnemar_exact of those two
  double q = 1;  // p adjusted over all changes at all layers for this category (Benjamini and Hochberg, 1995)
};

struct CategoryEffects {
  std::string name;
  std::uint64_t documents = 0, tokens = 0;
  double accuracy = 0, loss = 0;  // of the model as it is
  std::vector<Effect> effects;    // [layers, variants]
};

/// The first is "all", of all categories together. Empty where no token has a next one.
std::vector<CategoryEffects> ablation_effects(const AblationSums& sums, const ResamplingOptions& options);

/// What is known of an expert without ablating it; NaN where nothing chose it.
struct ObservedScores {
  double load = 0;         // slots of the expert over all slots of the layer
  double mean_weight = 0;  // mean combine weight of the tokens that chose it
  double reap = 0;         // mean of g ||f(x)|| over those (Lasby et al., REAP, 2025)
  double ean = 0;          // sum of ||f(x)|| over those
};
/// [layers, experts of the model].
std::vector<ObservedScores> observed_scores(const AblationSums& sums);

/// /ablation/* and, where experts are ablated one by one, /importance/*. All by layer are [MoE layers of the model], by
/// expert [experts of the model]; what was not ablated is NaN, of counts 0.
std::vector<Table> ablation_tables(const ModelFacts& model, const AblationPlan& plan,
                                   const std::vector<CategoryEffects>& categories,
                                   const std::vector<ObservedScores>& scores);
std::vector<std::pair<std::string, std::string>> ablation_group_descriptions(const AblationPlan& plan);

/// Names of the scores that importance is compared with, in the order of the dimension `score`.
std::vector<std::string> observed_score_names();
/// [scores] rank correlation with the measured difference of loss over all categories, pooled over layers [first,
/// last).
std::vector<double> score_correlations(const AblationPlan& plan, const CategoryEffects& all,
                                       const std::vector<ObservedScores>& scores, std::size_t first, std::size_t last);

}  // namespace switchyard
