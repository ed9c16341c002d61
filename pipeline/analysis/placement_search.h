#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pipeline/analysis/placement_methods.h"
#include "pipeline/analysis/placement_plan.h"

namespace switchyard {

/// What is known of a layer's routing.
struct LayerDemand {
  std::vector<double> load;   // [E] slots
  std::vector<double> pairs;  // [E, E] tokens that chose both, symmetric; empty: not known. The diagonal says nothing
  std::vector<double> steps = {};  // [S, E] slots by step, of some or all steps that ranks wait for one another in, for
                                   // search to balance; empty: `load` is the only one
};

/// How much traffic counts beside balance.
struct ObjectiveWeights {
  double ranks = 0.1;
  double nodes = 0.3;
};

/// Of a token's two experts, the share of pairs whose copies lie on one rank, or on one node, when each copy of an
/// expert is taken equally often and independently of the other's: sum_ij N_ij P_ij / sum_ij N_ij, P_ij the share of
/// pairs of copies that lie together. 0 without pairs.
struct PairsTogether {
  double on_rank = 0;
  double on_node = 0;
};
PairsTogether pairs_together(const LayerPlan& plan, const LayerDemand& demand, const PlacementTask& task);

/// What `search` makes small: sum over steps of the largest rank load over the sum of the mean, plus weights.ranks
/// times the share of pairs apart by rank, plus weights.nodes times that by node. The latter two are 0 where pairs are
/// not known.
double placement_objective(const LayerPlan& plan, const LayerDemand& demand, const PlacementTask& task,
                           const ObjectiveWeights& weights);

/// No plan of the task makes the first term of the objective smaller: least_largest_load of each step.
double least_balance(const LayerDemand& demand, const PlacementTask& task);

struct SearchEffort {
  std::uint64_t exact_nodes = 200'000;  // of the branch-and-bound tree, after which it gives up; 0: not tried
  std::uint64_t seed = 0;
};

struct SearchResult {
  LayerPlan plan;
  double objective = 0;
  bool exact = false;  // no plan of the task has a smaller objective
};

/// A plan of small objective: from the best of the other methods, moves of a copy to another rank, changes of place of
/// two copies and, with replicas, of a copy into one of another expert, each taken when it lowers the objective (or, at
/// the same objective, the sum of squared rank loads of all steps); then the same again after random changes of place,
/// of a fixed seed. Where branch and bound over all plans of a layer of at most 24 experts, 16 ranks and 8 replicas
/// ends within its nodes, the result is the best there is.
SearchResult search_placement(const LayerDemand& demand, const PlacementTask& task, const ObjectiveWeights& weights,
                              const SearchEffort& effort);

}  // namespace switchyard
