#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "parallel/expert_placement.h"

namespace switchyard {

/// Ranks of each expert of one MoE layer, [E]: one entry for each copy, distinct, ascending, at least one. A token that
/// chose an expert takes one of its copies, each equally often.
using LayerPlan = std::vector<std::vector<std::int32_t>>;

/// What experts are to be placed on: equal numbers of ranks on each node, ranks of a node being neighbours.
struct PlacementTask {
  int ranks = 1;
  int nodes = 1;
  int replicas = 0;          // copies beyond the first of all experts of a layer together
  int groups = 1;            // equal runs of experts that `eplb_hierarchical` keeps on one node
  int experts_per_rank = 0;  // most copies of a layer on one rank, for greedy and search; 0: (E + replicas) / ranks, up

  int node_of(int rank) const { return rank / (ranks / nodes); }
  int physical(int experts) const { return experts + replicas; }
  /// Most copies of a layer on one rank.
  int capacity(int experts) const {
    return experts_per_rank > 0 ? experts_per_rank : (physical(experts) + ranks - 1) / ranks;
  }
};

/// Throws UsageError naming the option that cannot be: a number below its least, nodes that do not divide ranks, groups
/// that do not divide experts, more copies than ranks can hold.
void require_possible(const PlacementTask& task, int experts);

/// A copy of an expert on a rank.
struct PlacedCopy {
  std::int32_t expert = 0;
  std::int32_t rank = 0;
};

/// The plan of the copies, in any order. Two copies of one expert on a rank, which would be one, are taken apart: one
/// of them changes places with another expert's copy elsewhere, the one nearest to it in load per copy, or else goes
/// alone to the rank with the fewest copies that lacks the expert. load: [E].
LayerPlan plan_of(std::vector<PlacedCopy> copies, std::span<const double> load, int ranks);

/// [R] load of each rank, an expert's shared equally by its copies.
std::vector<double> rank_loads(const LayerPlan& plan, std::span<const double> load, int ranks);
/// [R] copies on each rank.
std::vector<int> copies_of_ranks(const LayerPlan& plan, int ranks);

/// The same as a run takes it, and back. Every layer has as many copies.
ExpertPlacement as_placement(std::span<const LayerPlan> layers, int ranks, CopyRule rule = CopyRule::by_token);
LayerPlan as_plan(const LayerPlacement& placement);

/// The plans of a record: rank_of and logical, [layers, copies], as /dispatch/placement and /dispatch/logical. Throws
/// std::out_of_range where they are of more layers or experts, or logical is shorter.
std::vector<LayerPlan> plans_of_record(const std::vector<std::int32_t>& rank_of,
                                       const std::vector<std::uint16_t>& logical, std::size_t copies,
                                       std::size_t layers, std::size_t experts);

}  // namespace switchyard
