#include "pipeline/analysis/placement_update.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "pipeline/analysis/linear_assignment.h"

namespace switchyard {
namespace {

/// [R, R] experts that a rank of the first plan and one of the second both hold.
std::vector<float> shared_experts(const LayerPlan& first, const LayerPlan& second, std::size_t ranks) {
  std::vector<float> shared(ranks * ranks, 0);
  for (std::size_t e = 0; e < first.size(); ++e)
    for (const std::int32_t a : first[e])
      for (const std::int32_t b : second[e])
        ++shared[static_cast<std::size_t>(a) * ranks + static_cast<std::size_t>(b)];
  return shared;
}

}  // namespace

LayerPlan aligned_with(const LayerPlan& plan, const LayerPlan& before, const PlacementTask& task) {
  const auto ranks = static_cast<std::size_t>(task.ranks);
  const auto nodes = static_cast<std::size_t>(task.nodes);
  const std::size_t on_node = ranks / nodes;
  const std::vector<float> shared = shared_experts(plan, before, ranks);
  std::vector<Assignment> of_nodes;  // [node of plan, node of before]: how its ranks would be renamed
  std::vector<float> kept;           // likewise: experts that stay
  for (std::size_t a = 0; a < nodes; ++a)
    for (std::size_t b = 0; b < nodes; ++b) {
      std::vector<float> gain;
      for (std::size_t i = 0; i < on_node; ++i)
        for (std::size_t j = 0; j < on_node; ++j) gain.push_back(shared[(a * on_node + i) * ranks + b * on_node + j]);
      of_nodes.push_back(assign(gain, static_cast<std::int64_t>(on_node)));
      kept.push_back(static_cast<float>(of_nodes.back().total));
    }
  const Assignment node_of = assign(kept, static_cast<std::int64_t>(nodes));
  LayerPlan renamed = plan;
  for (std::vector<std::int32_t>& of_expert : renamed) {
    for (std::int32_t& rank : of_expert) {
      const std::size_t node = static_cast<std::size_t>(rank) / on_node;
      const auto to = static_cast<std::size_t>(node_of.column_of_row[node]);
      const Assignment& within = of_nodes[node * nodes + to];
      rank = static_cast<std::int32_t>(to * on_node) + within.column_of_row[static_cast<std::size_t>(rank) % on_node];
    }
    std::ranges::sort(of_expert);
  }
  return renamed;
}

std::optional<LayerPlan> better_plan(const LayerPlan& before, const LayerDemand& demand, const PlacementTask& task,
                                     PlacementMethod method, const ObjectiveWeights& weights,
                                     const SearchEffort& effort) {
  Placement found = place_layers(method, std::span(&demand, 1), task, weights, effort);
  const double was = placement_objective(before, demand, task, weights);
  const double now = placement_objective(found.layers.front(), demand, task, weights);
  if (!(now < was * (1 - kLeastGain))) return std::nullopt;
  return aligned_with(found.layers.front(), before, task);
}

}  // namespace switchyard
