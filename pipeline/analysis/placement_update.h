#pragma once

#include <optional>

#include "pipeline/analysis/placement_figures.h"
#include "pipeline/analysis/placement_plan.h"

namespace switchyard {

/// The same plan with its ranks renamed, those of a node staying together, so that as many copies as possible lie where
/// `before` has them: neither balance nor traffic changes, and no renaming moves fewer experts (linear assignment of
/// the ranks of each pair of nodes, then of the nodes).
LayerPlan aligned_with(const LayerPlan& plan, const LayerPlan& before, const PlacementTask& task);

/// A layer's plan for what was routed lately, aligned with `before`; none where its objective is not at least
/// kLeastGain, a share, below that of `before` on the same demand: experts stay for less.
inline constexpr double kLeastGain = 0.01;
std::optional<LayerPlan> better_plan(const LayerPlan& before, const LayerDemand& demand, const PlacementTask& task,
                                     PlacementMethod method, const ObjectiveWeights& weights,
                                     const SearchEffort& effort);

}  // namespace switchyard
