#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "pipeline/analysis/cost_model.h"
#include "pipeline/analysis/placement_search.h"

namespace switchyard {

/// A value known to lie in [low, high]; equal where it is known, NaN where nothing is.
struct Range {
  double low = 0;
  double high = 0;
};

/// Mean number of distinct places (ranks, nodes) that a token's k experts lie on, of `places` there are, when of its k
/// (k
/// - 1) / 2 pairs of experts `pairs_together` lie together on average. Pairs say it exactly for k <= 2, and for more
/// only bound it: both ends are the extremes over all mixtures of ways to split k experts over places.
Range distinct_places(int top_k, int places, double pairs_together);

/// One step of a model's experts.
struct StepCost {
  double seconds = 0;            // sum over layers of the slowest rank's
  double deviation = 0;          // standard deviation of `seconds` that the cost model's covariance gives
  double straggler_seconds = 0;  // sum over layers of slowest minus mean rank
};

/// A step of `step_tokens` tokens whose experts are chosen as often as in `layers`: every rank's slots are those of the
/// mean step, its active experts those expected of independent tokens. Steps differ, so that this is the least cost.
StepCost predicted_step(std::span<const LayerPlan> plans, std::span<const LayerDemand> layers,
                        const PlacementTask& task, int top_k, double step_tokens, const CostModel& cost);

/// A plan for each layer, by one method.
struct Placement {
  PlacementMethod method = PlacementMethod::contiguous;
  std::vector<LayerPlan> layers;
  std::vector<std::uint8_t> exact;  // [L] 1 where the plan is known to be the best by the objective
};
/// By layers, on threads; the same for any number of them.
Placement place_layers(PlacementMethod method, std::span<const LayerDemand> layers, const PlacementTask& task,
                       const ObjectiveWeights& weights, const SearchEffort& effort);

/// What a placement promises on routing like `layers`.
struct LayerFigures {
  double max_over_mean = 0;  // largest rank load over the mean
  double objective = 0;
  Range ranks_per_token, nodes_per_token;  // distinct ones that hold its experts; NaN where pairs are not known
};
struct PlacementFigures {
  std::vector<LayerFigures> layers;
  double balancedness_mean = 0;   // mean over layers of mean over largest rank load, as SGLang prints it
  double balancedness_ratio = 0;  // sum over layers of the mean over sum of the largest, as vLLM prints it
};
PlacementFigures placement_figures(std::span<const LayerPlan> plans, std::span<const LayerDemand> layers,
                                   const PlacementTask& task, const ObjectiveWeights& weights, int top_k);

}  // namespace switchyard
