#include "pipeline/analysis/placement_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "parallel/error.h"

namespace switchyard {
namespace {

void require_at_least(int least, int value, const char* option) {
  if (value < least) throw UsageError("is " + std::to_string(value), option, "give at least " + std::to_string(least));
}

/// Copies while two of one expert may lie on one rank.
class Untangler {
 public:
  Untangler(std::vector<PlacedCopy> copies, std::span<const double> load, int ranks)
      : copies_(std::move(copies)),
        ranks_(static_cast<std::size_t>(ranks)),
        held_(load.size() * ranks_, 0),
        copies_of_rank_(ranks_, 0),
        share_(load.begin(), load.end()) {
    std::vector<double> n_copies(load.size(), 0);
    for (const PlacedCopy& copy : copies_) {
      ++held(copy.expert, copy.rank);
      ++copies_of_rank_[static_cast<std::size_t>(copy.rank)];
      ++n_copies[static_cast<std::size_t>(copy.expert)];
    }
    for (std::size_t e = 0; e < load.size(); ++e) share_[e] /= std::max(1.0, n_copies[e]);
  }

  std::vector<PlacedCopy> untangled() {
    for (std::size_t i = 0; i < copies_.size(); ++i)
      if (held(copies_[i].expert, copies_[i].rank) > 1) take_away(i);
    return std::move(copies_);
  }

 private:
  int& held(std::int32_t expert, std::int32_t rank) {
    return held_[static_cast<std::size_t>(expert) * ranks_ + static_cast<std::size_t>(rank)];
  }
  void move(std::size_t copy, std::int32_t rank) {
    --held(copies_[copy].expert, copies_[copy].rank);
    --copies_of_rank_[static_cast<std::size_t>(copies_[copy].rank)];
    copies_[copy].rank = rank;
    ++held(copies_[copy].expert, rank);
    ++copies_of_rank_[static_cast<std::size_t>(rank)];
  }
  void take_away(std::size_t twin) {
    const PlacedCopy here = copies_[twin];
    std::size_t best = copies_.size();
    double least = std::numeric_limits<double>::infinity();
    for (std::size_t other = 0; other < copies_.size(); ++other) {
      const PlacedCopy& there = copies_[other];
      const double change =
          std::abs(share_[static_cast<std::size_t>(here.expert)] - share_[static_cast<std::size_t>(there.expert)]);
      if (change < least && held(here.expert, there.rank) == 0 && held(there.expert, here.rank) == 0) {
        best = other;
        least = change;
      }
    }
    if (best < copies_.size()) {
      const std::int32_t rank = copies_[best].rank;
      move(best, here.rank);
      move(twin, rank);
      return;
    }
    std::int32_t emptiest = -1;
    for (std::int32_t rank = 0; rank < static_cast<std::int32_t>(ranks_); ++rank)
      if (held(here.expert, rank) == 0 && (emptiest < 0 || copies_of_rank_[static_cast<std::size_t>(rank)] <
                                                               copies_of_rank_[static_cast<std::size_t>(emptiest)]))
        emptiest = rank;
    if (emptiest < 0) throw Error("expert " + std::to_string(here.expert) + " has more copies than there are ranks");
    move(twin, emptiest);
  }

  std::vector<PlacedCopy> copies_;
  std::size_t ranks_;
  std::vector<int> held_;  // [E, R] copies of an expert on a rank
  std::vector<int> copies_of_rank_;
  std::vector<double> share_;  // [E] load of each copy
};

}  // namespace

void require_possible(const PlacementTask& task, int experts) {
  require_at_least(1, task.ranks, "--ranks");
  require_at_least(1, task.nodes, "--nodes");
  require_at_least(0, task.replicas, "--replicas");
  require_at_least(1, task.groups, "--groups");
  require_at_least(0, task.experts_per_rank, "--experts-per-rank");
  const std::string of_ranks = std::to_string(task.ranks) + " ranks";
  if (task.ranks % task.nodes != 0)
    throw UsageError(of_ranks + " on " + std::to_string(task.nodes) + " nodes are not equally many on each", "--nodes",
                     "give a number that divides --ranks");
  if (experts % task.groups != 0)
    throw UsageError(std::to_string(experts) + " experts do not make " + std::to_string(task.groups) + " equal groups",
                     "--groups", "give a number that divides the experts");
  const std::int64_t copies = std::int64_t{experts} + task.replicas;
  if (copies > std::int64_t{experts} * task.ranks)
    throw UsageError(std::to_string(copies) + " copies of " + std::to_string(experts) + " experts on " + of_ranks +
                         ": a rank would hold two of one expert",
                     "--replicas", "give at most " + std::to_string(std::int64_t{experts} * (task.ranks - 1)));
  if (copies > std::int64_t{task.capacity(experts)} * task.ranks)
    throw UsageError(std::to_string(copies) + " copies do not fit " + of_ranks + " of " +
                         std::to_string(task.experts_per_rank) + " experts",
                     "--experts-per-rank", "give at least " + std::to_string((copies + task.ranks - 1) / task.ranks));
}

LayerPlan plan_of(std::vector<PlacedCopy> copies, std::span<const double> load, int ranks) {
  LayerPlan plan(load.size());
  for (const PlacedCopy& copy : Untangler(std::move(copies), load, ranks).untangled())
    plan[static_cast<std::size_t>(copy.expert)].push_back(copy.rank);
  for (std::vector<std::int32_t>& of_expert : plan) std::sort(of_expert.begin(), of_expert.end());
  return plan;
}

std::vector<double> rank_loads(const LayerPlan& plan, std::span<const double> load, int ranks) {
  std::vector<double> loads(static_cast<std::size_t>(ranks), 0);
  for (std::size_t e = 0; e < plan.size(); ++e)
    for (const std::int32_t rank : plan[e])
      loads[static_cast<std::size_t>(rank)] += load[e] / static_cast<double>(plan[e].size());
  return loads;
}

std::vector<int> copies_of_ranks(const LayerPlan& plan, int ranks) {
  std::vector<int> copies(static_cast<std::size_t>(ranks), 0);
  for (const std::vector<std::int32_t>& of_expert : plan)
    for (const std::int32_t rank : of_expert) ++copies[static_cast<std::size_t>(rank)];
  return copies;
}

ExpertPlacement as_placement(std::span<const LayerPlan> layers, int ranks, CopyRule rule) {
  std::vector<LayerPlacement> placements;
  for (const LayerPlan& plan : layers) placements.emplace_back(plan, ranks, rule);
  return ExpertPlacement(std::move(placements));
}

LayerPlan as_plan(const LayerPlacement& placement) {
  LayerPlan plan;
  for (int e = 0; e < placement.n_experts(); ++e) {
    const auto ranks = placement.ranks_of(e);
    plan.emplace_back(ranks.begin(), ranks.end());
  }
  return plan;
}

std::vector<LayerPlan> plans_of_record(const std::vector<std::int32_t>& rank_of,
                                       const std::vector<std::uint16_t>& logical, std::size_t copies,
                                       std::size_t layers, std::size_t experts) {
  std::vector<LayerPlan> plans(layers, LayerPlan(experts));
  for (std::size_t i = 0; i < rank_of.size(); ++i) plans.at(i / copies).at(logical.at(i)).push_back(rank_of[i]);
  return plans;
}

}  // namespace switchyard
