#include "pipeline/analysis/placement_study_tables.h"

#include <array>
#include <limits>
#include <tuple>

namespace switchyard {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// A figure of every method, machine, step size and layer; NaN where it is not known.
template <typename Figures>
Table simulated(const Simulation& simulation, const char* name, const char* long_name, double Figures::*member,
                const std::vector<Figures> Simulation::Figures::*of) {
  const std::size_t layers = simulation.figures.front().balance.size();
  std::vector<double> values;
  for (const Simulation::Figures& figures : simulation.figures)
    for (std::size_t l = 0; l < layers; ++l) values.push_back((figures.*of).empty() ? kNan : (figures.*of)[l].*member);
  return {std::string("/simulation/") + name,
          {"method", "machine", "step_size", "layer"},
          {simulation.methods.size(), simulation.machines.size(), simulation.step_tokens.size(), layers},
          std::move(values),
          "1",
          long_name};
}

}  // namespace

std::vector<Table> simulation_tables(const Simulation& simulation) {
  std::vector<Table> tables;
  const auto of_machines = [&](const char* name, const char* long_name, int PlacementTask::*member) {
    std::vector<std::uint32_t> values;
    for (const Simulation::Machine& machine : simulation.machines)
      values.push_back(static_cast<std::uint32_t>(machine.task.*member));
    tables.push_back({std::string("/simulation/") + name,
                      {"machine"},
                      {simulation.machines.size()},
                      std::move(values),
                      "1",
                      long_name});
  };
  of_machines("ranks", "virtual ranks", &PlacementTask::ranks);
  of_machines("nodes", "virtual nodes", &PlacementTask::nodes);
  of_machines("replicas", "copies of experts beyond the first, in each layer", &PlacementTask::replicas);
  const auto of_sizes = [&](const char* name, const char* long_name, const std::vector<std::size_t>& values) {
    tables.push_back({std::string("/simulation/") + name,
                      {"step_size"},
                      {values.size()},
                      std::vector<std::uint64_t>(values.begin(), values.end()),
                      "1",
                      long_name});
  };
  of_sizes("step_tokens", "tokens of a step, of all ranks", simulation.step_tokens);
  of_sizes("steps", "steps of that size", simulation.steps);
  std::vector<std::string> names;
  for (const PlacementMethod method : simulation.methods) names.emplace_back(to_string(method));
  tables.push_back(
      {"/simulation/method_name", {"method"}, {names.size()}, std::move(names), "1", "name of the method"});

  using Balance = double LayerBalance::*;
  for (const auto& [name, long_name, member] : std::initializer_list<std::tuple<const char*, const char*, Balance>>{
           {"balancedness_mean", "mean over steps of mean over largest rank load (SGLang)",
            &LayerBalance::balancedness_mean},
           {"balancedness_ratio", "sum over steps of mean over sum of largest rank load (vLLM)",
            &LayerBalance::balancedness_ratio},
           {"imbalance_p50", "median over steps of max / mean - 1 of rank loads", &LayerBalance::imbalance_p50},
           {"imbalance_p90", "quantile 0.9 of the same", &LayerBalance::imbalance_p90},
           {"imbalance_p99", "quantile 0.99 of the same", &LayerBalance::imbalance_p99},
           {"imbalance_max", "largest of the same", &LayerBalance::imbalance_max},
           {"straggler_share", "sum of slowest minus mean rank over sum of the slowest; slots without a cost model",
            &LayerBalance::straggler_share}})
    tables.push_back(simulated(simulation, name, long_name, member, &Simulation::Figures::balance));
  if (simulation.figures.front().traffic.empty()) return tables;
  using Traffic = double LayerTraffic::*;
  for (const auto& [name, long_name, member] : std::initializer_list<std::tuple<const char*, const char*, Traffic>>{
           {"ranks_per_token", "distinct ranks of a token's experts", &LayerTraffic::ranks_per_token},
           {"nodes_per_token", "distinct nodes of a token's experts", &LayerTraffic::nodes_per_token},
           {"remote_slots_per_token", "slots of a token on other ranks", &LayerTraffic::remote_slots_per_token},
           {"remote_ranks_per_token", "distinct other ranks of a token's experts",
            &LayerTraffic::remote_ranks_per_token},
           {"remote_nodes_per_token", "distinct other nodes of a token's experts",
            &LayerTraffic::remote_nodes_per_token},
           {"received_max_over_mean", "slots that a rank receives from others in a step, largest over mean",
            &LayerTraffic::received_max_over_mean}})
    tables.push_back(simulated(simulation, name, long_name, member, &Simulation::Figures::traffic));
  return tables;
}

std::vector<Table> drift_tables(const Drift& drift) {
  const std::uint64_t n = drift.block.size();
  std::vector<double> values;
  for (const std::vector<double>& policy : drift.balancedness)
    values.insert(values.end(), policy.begin(), policy.end());
  return {{"/drift/policy_name",
           {"policy"},
           {kDriftPolicies.size()},
           std::vector<std::string>(kDriftPolicies.begin(), kDriftPolicies.end()),
           "1",
           "when experts are placed"},
          {"/drift/block", {"block"}, {n}, drift.block, "1", "number of the block in the run"},
          {"/drift/block_dataset", {"block"}, {n}, drift.dataset, "1", "corpus of the block"},
          {"/drift/balancedness",
           {"policy", "block"},
           {kDriftPolicies.size(), n},
           std::move(values),
           "1",
           "mean over layers of mean over largest rank load of the block's slots"}};
}

std::vector<Table> holdout_tables(const Holdout& holdout, const std::vector<std::string>& datasets) {
  std::vector<Table> tables;
  if (!holdout.halves.empty()) {
    const std::uint64_t n = holdout.halves.size();
    std::vector<std::string> names;
    for (const Holdout::Method& method : holdout.halves) names.emplace_back(to_string(method.method));
    tables.push_back({"/holdout/method_name", {"method"}, {n}, std::move(names), "1", "name of the method"});
    using Member = double Holdout::Method::*;
    for (const auto& [name, long_name, member] : std::initializer_list<std::tuple<const char*, const char*, Member>>{
             {"predicted", "balancedness on the half of the documents that the plan is fitted on",
              &Holdout::Method::predicted},
             {"held_out", "balancedness of that plan on the other half", &Holdout::Method::held_out},
             {"best", "balancedness on the other half of a plan fitted on it", &Holdout::Method::best}}) {
      std::vector<double> values;
      for (const Holdout::Method& method : holdout.halves) values.push_back(method.*member);
      tables.push_back({std::string("/holdout/") + name, {"method"}, {n}, std::move(values), "1", long_name});
    }
  }
  const std::uint64_t n = datasets.size();
  tables.push_back({"/holdout/dataset_name", {"dataset"}, {n}, datasets, "1", "name of the dataset"});
  std::vector<double> values;
  for (const std::vector<double>& row : holdout.by_datasets) values.insert(values.end(), row.begin(), row.end());
  tables.push_back({"/holdout/by_datasets",
                    {"dataset", "dataset2"},
                    {n, n},
                    std::move(values),
                    "1",
                    "balancedness on dataset2 of the chosen method's plan fitted on dataset"});
  return tables;
}

}  // namespace switchyard
