#include "pipeline/analysis/placement_study.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>

#include "parallel/error.h"
#include "pipeline/analysis/placement_tables.h"

namespace switchyard {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Placement placed(std::span<const LayerDemand> layers, const PlacementTask& task, const PlacementChoice& choice) {
  return place_layers(choice.method, layers, task, choice.weights, choice.effort);
}

/// Mean over layers with slots of mean over largest rank load.
double balancedness_of(std::span<const LayerPlan> plans, std::span<const LayerDemand> layers, int ranks) {
  double sum = 0;
  double known = 0;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const std::vector<double> loads = rank_loads(plans[l], layers[l].load, ranks);
    const double all = std::accumulate(loads.begin(), loads.end(), 0.0);
    if (all == 0) continue;
    sum += all / ranks / *std::max_element(loads.begin(), loads.end());
    ++known;
  }
  return known > 0 ? sum / known : kNan;
}

/// Slots of each block, in order.
struct BlockLoads {
  std::vector<std::uint64_t> block;
  std::vector<std::string> dataset;
  std::vector<std::vector<LayerDemand>> layers;  // [B] of [L]
};

void add_slots(std::span<const std::uint32_t> slots, LayerDemand& demand) {
  for (std::size_t e = 0; e < slots.size(); ++e) demand.load[e] += slots[e];
}

std::vector<LayerDemand> no_slots(std::size_t layers, std::size_t experts) {
  return {layers, LayerDemand{std::vector<double>(experts, 0), {}}};
}

BlockLoads loads_of_blocks(const StepSlots& steps) {
  BlockLoads blocks;
  for (std::size_t s = 0; s < steps.steps(); ++s) {
    if (blocks.block.empty() || blocks.block.back() != steps.block[s]) {
      blocks.block.push_back(steps.block[s]);
      blocks.dataset.push_back(steps.datasets[s]);
      blocks.layers.push_back(no_slots(steps.layers, steps.experts));
    }
    for (std::size_t l = 0; l < steps.layers; ++l) add_slots(steps.at(s, l), blocks.layers.back()[l]);
  }
  return blocks;
}

/// Blocks [first, last) together.
std::vector<LayerDemand> sum_of_blocks(const BlockLoads& blocks, std::size_t first, std::size_t last) {
  std::vector<LayerDemand> sum = blocks.layers[first];
  for (std::size_t b = first + 1; b < last; ++b)
    for (std::size_t l = 0; l < sum.size(); ++l)
      for (std::size_t e = 0; e < sum[l].load.size(); ++e) sum[l].load[e] += blocks.layers[b][l].load[e];
  return sum;
}

/// Documents of even and of odd group, without pairs, which groups do not hold.
std::array<std::vector<LayerDemand>, 2> halves_of(const Statistics& statistics,
                                                  const std::vector<std::size_t>& datasets) {
  const auto experts = static_cast<std::size_t>(statistics.model.n_experts);
  const std::size_t n_layers = statistics.model.moe_layers.size();
  std::array<std::vector<LayerDemand>, 2> halves = {no_slots(n_layers, experts), no_slots(n_layers, experts)};
  for (const std::size_t d : datasets) {
    const SparseCounts& groups = statistics.datasets[d].accumulators.group_counts;
    for (std::size_t i = 0; i < groups.cells().size(); ++i) {
      const std::uint64_t cell = groups.cells()[i];
      const std::uint64_t group = cell / experts % kDocumentGroups;
      halves.at(group % 2)[cell / experts / kDocumentGroups].load[cell % experts] +=
          static_cast<double>(groups.counts()[i]);
    }
  }
  return halves;
}

bool has_slots(std::span<const LayerDemand> layers) {
  return std::all_of(layers.begin(), layers.end(), [](const LayerDemand& layer) {
    return std::any_of(layer.load.begin(), layer.load.end(), [](double load) { return load > 0; });
  });
}

}  // namespace

PlacementTask virtual_task(const PlacementTask& largest, int ranks, int experts) {
  PlacementTask task = largest;
  const int of_node = largest.ranks / largest.nodes;
  task.ranks = ranks;
  task.nodes = ranks % of_node == 0 ? ranks / of_node : 1;
  task.replicas = std::min(std::max(largest.replicas, ranks - experts), experts * (ranks - 1));
  if (task.experts_per_rank > 0)
    task.experts_per_rank = std::max(task.experts_per_rank, (task.physical(experts) + ranks - 1) / ranks);
  return task;
}

Simulation simulate(std::span<const LayerDemand> layers, int top_k, const RoutedTokens* rows,
                    const PlacementTask& largest, const PlacementChoice& choice,
                    const std::vector<std::size_t>& step_tokens, std::size_t drawn,
                    const std::optional<CostModel>& cost) {
  Simulation simulation;
  simulation.methods = {PlacementMethod::contiguous};
  if (choice.method != PlacementMethod::contiguous) simulation.methods.push_back(choice.method);
  simulation.step_tokens = step_tokens;
  const auto experts = static_cast<int>(layers.front().load.size());
  for (int ranks = 1; ranks <= largest.ranks; ranks *= 2) {
    Simulation::Machine machine{virtual_task(largest, ranks, experts), {}};
    for (const PlacementMethod method : simulation.methods) {
      PlacementChoice by_method = choice;
      by_method.method = method;
      machine.placements.push_back(why_undefined(method, machine.task, experts)
                                       ? Placement{method, {}, {}}
                                       : placed(layers, machine.task, by_method));
    }
    simulation.machines.push_back(std::move(machine));
  }
  simulation.figures.resize(simulation.methods.size() * simulation.machines.size() * step_tokens.size());
  for (std::size_t size = 0; size < step_tokens.size(); ++size) {
    const StepSlots steps = rows != nullptr ? cut_into_steps(*rows, step_tokens[size])
                                            : drawn_steps(layers, top_k, step_tokens[size], drawn, choice.effort.seed);
    simulation.steps.push_back(steps.steps());
    for (std::size_t method = 0; method < simulation.methods.size(); ++method)
      for (std::size_t m = 0; m < simulation.machines.size(); ++m) {
        const Simulation::Machine& machine = simulation.machines[m];
        const std::vector<LayerPlan>& plans = machine.placements[method].layers;
        if (plans.empty()) continue;
        Simulation::Figures& figures =
            simulation.figures[(method * simulation.machines.size() + m) * step_tokens.size() + size];
        figures.balance = balance_over_steps(steps, plans, machine.task.ranks, cost);
        if (rows != nullptr)
          figures.traffic = replay_traffic(*rows, plans, machine.task, choice.copies, step_tokens[size]);
      }
  }
  return simulation;
}

Drift placement_drift(const StepSlots& steps, const PlacementTask& task, const PlacementChoice& choice,
                      std::size_t every) {
  BlockLoads blocks = loads_of_blocks(steps);
  const std::size_t n = blocks.block.size();
  if (n <= every)
    throw UsageError("the run has " + std::to_string(n) + " blocks", "--drift",
                     "give less than that, or route with a smaller --block-tokens");
  Drift drift{blocks.block, blocks.dataset,
              std::vector<std::vector<double>>(Drift::kPolicies, std::vector<double>(n, kNan))};
  const auto balance = [&](std::size_t b, const Placement& placement) {
    return balancedness_of(placement.layers, blocks.layers[b], task.ranks);
  };
  const Placement contiguous =
      place_layers(PlacementMethod::contiguous, blocks.layers[0], task, choice.weights, choice.effort);
  const Placement fixed = placed(sum_of_blocks(blocks, 0, every), task, choice);
  Placement periodic = fixed;
  for (std::size_t b = 0; b < n; ++b) {
    drift.balancedness[Drift::contiguous][b] = balance(b, contiguous);
    drift.balancedness[Drift::oracle][b] = balance(b, placed(blocks.layers[b], task, choice));
    if (b < every) continue;
    if (b % every == 0) periodic = placed(sum_of_blocks(blocks, b - every, b), task, choice);
    drift.balancedness[Drift::fixed][b] = balance(b, fixed);
    drift.balancedness[Drift::periodic][b] = balance(b, periodic);
  }
  return drift;
}

Holdout placement_holdout(const Statistics& statistics, const std::vector<std::size_t>& datasets,
                          const PlacementTask& task, const PlacementChoice& choice,
                          const std::vector<PlacementMethod>& methods) {
  Holdout holdout;
  const auto halves = halves_of(statistics, datasets);
  if (has_slots(halves[0]) && has_slots(halves[1]))
    for (const PlacementMethod method : methods) {
      PlacementChoice by_method = choice;
      by_method.method = method;
      const Placement fitted = placed(halves[0], task, by_method);
      const Placement best = placed(halves[1], task, by_method);
      holdout.halves.push_back({method, balancedness_of(fitted.layers, halves[0], task.ranks),
                                balancedness_of(fitted.layers, halves[1], task.ranks),
                                balancedness_of(best.layers, halves[1], task.ranks)});
    }
  std::vector<std::vector<LayerDemand>> demands;
  for (const std::size_t d : datasets) demands.push_back(layer_demands(statistics, {d}));
  for (const std::vector<LayerDemand>& fit : demands) {
    const Placement placement = placed(fit, task, choice);
    std::vector<double> row;
    for (const std::vector<LayerDemand>& on : demands) row.push_back(balancedness_of(placement.layers, on, task.ranks));
    holdout.by_datasets.push_back(std::move(row));
  }
  return holdout;
}

}  // namespace switchyard
