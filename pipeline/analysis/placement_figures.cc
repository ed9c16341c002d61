#include "pipeline/analysis/placement_figures.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "pipeline/analysis/metrics.h"

namespace switchyard {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

double pairs_of(double n) { return n * (n - 1) / 2; }

/// A way to split experts over places: how many pairs it puts together, and how many places it needs.
struct Split {
  double pairs = 0;
  double places = 0;
};

/// The largest value at x of mixtures of the points, or the smallest for sign -1.
double extreme_at(double x, const std::vector<Split>& splits, double sign) {
  double extreme = -std::numeric_limits<double>::infinity();
  for (const Split& a : splits)
    for (const Split& b : splits) {
      if (a.pairs > x || b.pairs < x) continue;
      const double share = b.pairs > a.pairs ? (x - a.pairs) / (b.pairs - a.pairs) : 0;
      extreme = std::max(extreme, sign * (a.places + share * (b.places - a.places)));
    }
  return sign * extreme;
}

}  // namespace

Range distinct_places(int top_k, int places, double pairs_together) {
  std::vector<Split> splits;
  for (int n = 1; n <= std::min(top_k, places); ++n) {
    const int larger = top_k % n;  // places with one more, when experts spread evenly
    const int least = top_k / n;
    splits.push_back({larger * pairs_of(least + 1) + (n - larger) * pairs_of(least), static_cast<double>(n)});
    splits.push_back({pairs_of(top_k - n + 1), static_cast<double>(n)});
  }
  const auto by_pairs = [](const Split& a, const Split& b) { return a.pairs < b.pairs; };
  const auto [least, most] = std::minmax_element(splits.begin(), splits.end(), by_pairs);
  const double x = std::clamp(pairs_together, least->pairs, most->pairs);
  return {extreme_at(x, splits, -1), extreme_at(x, splits, 1)};
}

StepCost predicted_step(std::span<const LayerPlan> plans, std::span<const LayerDemand> layers,
                        const PlacementTask& task, int top_k, double step_tokens, const CostModel& cost) {
  StepCost step;
  std::array<double, 3> slowest{};  // sum over layers of the slowest rank's (1, slots, active experts)
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const double slots = std::accumulate(layers[l].load.begin(), layers[l].load.end(), 0.0);
    if (slots == 0) continue;
    const double scale = step_tokens * top_k / slots;
    std::vector<double> load = rank_loads(plans[l], layers[l].load, task.ranks);
    std::vector<double> active(load.size(), 0);
    for (std::size_t e = 0; e < plans[l].size(); ++e)
      for (const std::int32_t rank : plans[l][e]) {
        const double chosen = layers[l].load[e] * top_k / slots / static_cast<double>(plans[l][e].size());
        active[static_cast<std::size_t>(rank)] += 1 - std::pow(1 - std::min(1.0, chosen), step_tokens);
      }
    std::vector<double> seconds;
    for (std::size_t r = 0; r < load.size(); ++r)
      seconds.push_back(std::max(0.0, cost.intercept + cost.per_slot * load[r] * scale + cost.per_expert * active[r]));
    const auto last = static_cast<std::size_t>(std::max_element(seconds.begin(), seconds.end()) - seconds.begin());
    step.seconds += seconds[last];
    step.straggler_seconds +=
        seconds[last] - std::accumulate(seconds.begin(), seconds.end(), 0.0) / static_cast<double>(seconds.size());
    slowest[0] += 1;
    slowest[1] += load[last] * scale;
    slowest[2] += active[last];
  }
  double variance = 0;
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t j = 0; j < 3; ++j) variance += slowest[i] * cost.covariance[i * 3 + j] * slowest[j];
  step.deviation = std::sqrt(std::max(0.0, variance));
  return step;
}

Placement place_layers(PlacementMethod method, std::span<const LayerDemand> layers, const PlacementTask& task,
                       const ObjectiveWeights& weights, const SearchEffort& effort) {
  Placement placement{method, std::vector<LayerPlan>(layers.size()), std::vector<std::uint8_t>(layers.size(), 0)};
#pragma omp parallel for schedule(dynamic, 1)
  for (std::size_t l = 0; l < layers.size(); ++l) {
    if (method != PlacementMethod::search) {
      placement.layers[l] = place_by(method, layers[l].load, task);
      continue;
    }
    SearchResult found = search_placement(layers[l], task, weights, effort);
    placement.layers[l] = std::move(found.plan);
    placement.exact[l] = found.exact ? 1 : 0;
  }
  return placement;
}

PlacementFigures placement_figures(std::span<const LayerPlan> plans, std::span<const LayerDemand> layers,
                                   const PlacementTask& task, const ObjectiveWeights& weights, int top_k) {
  PlacementFigures figures;
  double means = 0;
  double largest = 0;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const std::vector<double> loads = rank_loads(plans[l], layers[l].load, task.ranks);
    const double mean = std::accumulate(loads.begin(), loads.end(), 0.0) / task.ranks;
    const double most = *std::max_element(loads.begin(), loads.end());
    LayerFigures layer{
        most / mean, placement_objective(plans[l], layers[l], task, weights), {kNan, kNan}, {kNan, kNan}};
    if (!layers[l].pairs.empty()) {
      const PairsTogether together = pairs_together(plans[l], layers[l], task);
      layer.ranks_per_token = distinct_places(top_k, task.ranks, together.on_rank * pairs_of(top_k));
      layer.nodes_per_token = distinct_places(top_k, task.nodes, together.on_node * pairs_of(top_k));
    }
    figures.layers.push_back(layer);
    figures.balancedness_mean += balancedness(loads) / static_cast<double>(layers.size());
    means += mean;
    largest += most;
  }
  figures.balancedness_ratio = means / largest;
  return figures;
}

}  // namespace switchyard
