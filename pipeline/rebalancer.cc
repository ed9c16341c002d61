#include "pipeline/rebalancer.h"

#include <chrono>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "parallel/error.h"
#include "pipeline/analysis/placement_update.h"
#include "pipeline/analysis/table_index.h"

namespace switchyard {
namespace {

constexpr std::size_t kFittedSteps = 64;  // evenly spaced, of those since the last time

/// Nodes of equally many neighbouring ranks, or one node of all.
int even_nodes(const NodeMap& nodes) {
  const std::size_t ranks = nodes.node_of_rank.size();
  const std::size_t n = nodes.names.size();
  if (n == 0 || ranks % n != 0) return 1;
  for (std::size_t r = 0; r < ranks; ++r)
    if (nodes.node_of_rank[r] != r / (ranks / n)) return 1;
  return static_cast<int>(n);
}

std::vector<LayerPlan> plans_of(const ExpertPlacement& placement) {
  std::vector<LayerPlan> plans;
  for (int layer = 0; layer < placement.n_layers(); ++layer) plans.push_back(as_plan(placement.layer(layer)));
  return plans;
}

double balancedness_mean(const StepSlots& steps, std::span<const LayerPlan> plans, int ranks) {
  return mean_over_layers(balance_over_steps(steps, plans, ranks, std::nullopt)).balancedness_mean;
}

bool have_somewhere_to_go(const ExpertPlacement& experts) {
  return experts.n_layers() > 0 && experts.layer(0).n_ranks() > 1;
}

}  // namespace

PlacementTask rebalance_task(const RebalanceOptions& options, const ExpertPlacement& placement, const NodeMap& nodes) {
  if (options.every == 0 || !have_somewhere_to_go(placement)) return {};
  const LayerPlacement& layer = placement.layer(0);
  const int n_experts = layer.n_experts();
  const PlacementTask task = {
      .ranks = layer.n_ranks(), .nodes = even_nodes(nodes), .replicas = layer.n_physical() - n_experts};
  require_possible(task, n_experts);
  if (const auto why = why_undefined(options.method, task, n_experts))
    throw UsageError(std::string(to_string(options.method)) + " is not defined here: " + *why, "--rebalance-method",
                     "give another method");
  return task;
}

Rebalancer::Rebalancer(Model& model, const RebalanceOptions& options, const NodeMap& nodes, const Communicator& comm)
    : model_(model), options_(options), task_(rebalance_task(options, model.placement(), nodes)), comm_(comm) {
  if (!have_somewhere_to_go(model.placement())) options_.every = 0;
}

void Rebalancer::add(const RecordedBlocks& recorded) {
  if (options_.every == 0 || comm_.rank() != 0) return;
  steps_.layers = static_cast<std::size_t>(model_.placement().n_layers());
  steps_.experts = static_cast<std::size_t>(model_.config().n_experts);
  const TableIndex tables(recorded.dispatch);
  add_slots(tables.values<std::uint32_t>("/dispatch/expert_slots"), tables.values<std::uint16_t>("/dispatch/logical"),
            steps_);
  const std::size_t cells = steps_.experts * steps_.experts;
  pairs_.resize(steps_.layers, std::vector<double>(cells, 0));
  for (const PhaseSums& phase : recorded.sums)
    for (std::size_t l = 0; l < steps_.layers; ++l)
      for (std::size_t i = 0; i < cells; ++i)
        pairs_[l][i] += static_cast<double>(phase.sums.coactivation[l * cells + i]);
}

/// Rank 0's demands on every rank.
std::vector<LayerDemand> Rebalancer::shared_demands() {
  std::vector<LayerDemand> demands(static_cast<std::size_t>(model_.placement().n_layers()));
  if (comm_.rank() == 0) {
    for (std::size_t l = 0; l < demands.size(); ++l) {
      demands[l].load.assign(steps_.experts, 0);
      for (std::size_t s = 0; s < steps_.steps(); ++s)
        for (std::size_t e = 0; e < steps_.experts; ++e) demands[l].load[e] += steps_.at(s, l)[e];
      demands[l].pairs = pairs_[l];
    }
    add_steps(steps_, kFittedSteps, demands);
  }
  for (LayerDemand& demand : demands) {
    demand.load = comm_.broadcast(std::move(demand.load));
    demand.pairs = comm_.broadcast(std::move(demand.pairs));
    demand.steps = comm_.broadcast(std::move(demand.steps));
  }
  return demands;
}

/// Layer l is fitted by rank l mod R; all get all plans.
std::vector<LayerPlan> Rebalancer::fitted(const std::vector<LayerPlan>& before,
                                          const std::vector<LayerDemand>& demands) const {
  const auto ranks = static_cast<std::size_t>(comm_.size());
  const auto me = static_cast<std::size_t>(comm_.rank());
  std::vector<LayerPlan> plans = before;
#pragma omp parallel for schedule(dynamic, 1)
  for (std::size_t l = me; l < plans.size(); l += ranks)
    if (auto better = better_plan(before[l], demands[l], task_, options_.method, {}, options_.effort))
      plans[l] = std::move(*better);

  std::vector<std::int32_t> mine;  // of each expert of each of my layers: its copies, then their ranks
  for (std::size_t l = me; l < plans.size(); l += ranks)
    for (const std::vector<std::int32_t>& of_expert : plans[l]) {
      mine.push_back(static_cast<std::int32_t>(of_expert.size()));
      mine.insert(mine.end(), of_expert.begin(), of_expert.end());
    }
  const std::vector<std::int32_t> all = comm_.all_gather_v<std::int32_t>(mine);
  auto next = all.begin();
  for (std::size_t owner = 0; owner < ranks; ++owner)
    for (std::size_t l = owner; l < plans.size(); l += ranks)
      for (std::vector<std::int32_t>& of_expert : plans[l]) {
        const std::int32_t copies = *next++;
        of_expert.assign(next, next + copies);
        next += copies;
      }
  return plans;
}

Rebalanced Rebalancer::rebalance() {
  const auto start = std::chrono::steady_clock::now();
  const std::vector<LayerPlan> before = plans_of(model_.placement());
  const std::vector<LayerPlan> after = fitted(before, shared_demands());
  Rebalanced done;
  done.moves = model_.move_experts(as_placement(after, task_.ranks, model_.placement().layer(0).rule()));
  if (comm_.rank() == 0) {
    done.balancedness_before = balancedness_mean(steps_, before, task_.ranks);
    done.balancedness_after = balancedness_mean(steps_, after, task_.ranks);
  }
  blocks_ = 0;
  steps_.slots.clear();
  pairs_.clear();
  done.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return done;
}

}  // namespace switchyard
