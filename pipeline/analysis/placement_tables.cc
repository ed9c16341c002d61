#include "pipeline/analysis/placement_tables.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace switchyard {
namespace {

/// Tables with the leading dimension `method`.
class MethodTables {
 public:
  MethodTables(const std::vector<MethodResult>& methods, std::vector<Table>& tables)
      : methods_(methods), tables_(tables) {}

  void by_method(const char* name, const char* units, const char* long_name,
                 const std::function<double(const MethodResult&)>& of) {
    std::vector<double> values;
    for (const MethodResult& method : methods_) values.push_back(of(method));
    tables_.push_back({path(name), {"method"}, {methods_.size()}, std::move(values), units, long_name});
  }
  void by_layer(const char* name, const char* units, const char* long_name,
                const std::function<double(const MethodResult&, std::size_t)>& of) {
    std::vector<double> values;
    const std::size_t layers = methods_.front().placement.layers.size();
    for (const MethodResult& method : methods_)
      for (std::size_t l = 0; l < layers; ++l) values.push_back(of(method, l));
    tables_.push_back(
        {path(name), {"method", "layer"}, {methods_.size(), layers}, std::move(values), units, long_name});
  }

 private:
  static std::string path(const char* name) { return std::string("/placement/") + name; }
  const std::vector<MethodResult>& methods_;
  std::vector<Table>& tables_;
};

/// The copies of a placement by (layer, physical expert), in order of (expert, rank): what a run numbers them by.
void add_plan(const Placement& placement, std::vector<Table>& tables) {
  std::vector<std::int32_t> expert;
  std::vector<std::int32_t> rank;
  for (const LayerPlan& plan : placement.layers)
    for (std::size_t e = 0; e < plan.size(); ++e)
      for (const std::int32_t r : plan[e]) {
        expert.push_back(static_cast<std::int32_t>(e));
        rank.push_back(r);
      }
  const std::uint64_t layers = placement.layers.size();
  const std::vector<std::uint64_t> shape = {layers, layers == 0 ? 0 : expert.size() / layers};
  tables.push_back({"/placement/plan_expert", {"layer", "copy"}, shape, std::move(expert), "1", "expert of each copy"});
  tables.push_back(
      {"/placement/plan_rank", {"layer", "copy"}, shape, std::move(rank), "1", "rank of each copy, chosen method"});
}

void add_balance(MethodTables& make) {
  using Member = double LayerBalance::*;
  for (const auto& [name, member, long_name] : std::initializer_list<std::tuple<const char*, Member, const char*>>{
           {"steps_balancedness_mean", &LayerBalance::balancedness_mean,
            "mean over recorded steps of (mean + 1e-5) / (max + 1e-5) of rank loads (SGLang)"},
           {"steps_balancedness_ratio", &LayerBalance::balancedness_ratio,
            "sum over recorded steps of the mean over sum of the largest rank load (vLLM, by layer)"},
           {"steps_imbalance_p50", &LayerBalance::imbalance_p50, "median over recorded steps of max / mean - 1"},
           {"steps_imbalance_p90", &LayerBalance::imbalance_p90, "quantile 0.9 of the same"},
           {"steps_imbalance_p99", &LayerBalance::imbalance_p99, "quantile 0.99 of the same"},
           {"steps_imbalance_max", &LayerBalance::imbalance_max, "largest of the same"},
           {"steps_straggler_share", &LayerBalance::straggler_share,
            "sum of slowest minus mean rank over sum of the slowest; seconds by the cost model, slots without one"}})
    make.by_layer(name, "1", long_name,
                  [m = member](const MethodResult& method, std::size_t l) { return method.balance[l].*m; });
}

void add_traffic(MethodTables& make) {
  using Member = double LayerTraffic::*;
  for (const auto& [name, member, long_name] : std::initializer_list<std::tuple<const char*, Member, const char*>>{
           {"replayed_ranks_per_token", &LayerTraffic::ranks_per_token, "distinct ranks of a token's experts, counted"},
           {"replayed_nodes_per_token", &LayerTraffic::nodes_per_token, "distinct nodes of a token's experts, counted"},
           {"replayed_remote_slots_per_token", &LayerTraffic::remote_slots_per_token,
            "slots of a token on other ranks than its own"},
           {"replayed_remote_node_slots_per_token", &LayerTraffic::remote_node_slots_per_token,
            "slots of a token on other nodes than its own"},
           {"replayed_remote_ranks_per_token", &LayerTraffic::remote_ranks_per_token,
            "distinct other ranks of a token's experts"},
           {"replayed_remote_nodes_per_token", &LayerTraffic::remote_nodes_per_token,
            "distinct other nodes of a token's experts"},
           {"replayed_received_max_over_mean", &LayerTraffic::received_max_over_mean,
            "slots that a rank receives from others in a step, largest over mean, mean over steps"}})
    make.by_layer(name, "1", long_name,
                  [m = member](const MethodResult& method, std::size_t l) { return method.traffic[l].*m; });
}

}  // namespace

std::vector<LayerDemand> layer_demands(const Statistics& statistics, const std::vector<std::size_t>& datasets) {
  const auto experts = static_cast<std::size_t>(statistics.model.n_experts);
  std::vector<LayerDemand> layers(statistics.model.moe_layers.size());
  for (std::size_t l = 0; l < layers.size(); ++l) {
    layers[l].load.assign(experts, 0);
    layers[l].pairs.assign(experts * experts, 0);
    for (const std::size_t d : datasets) {
      const Accumulators& sums = statistics.datasets[d].accumulators;
      const std::vector<std::uint64_t> counts = sums.layer_counts(static_cast<int>(l));
      for (std::size_t e = 0; e < experts; ++e) layers[l].load[e] += static_cast<double>(counts[e]);
      for (std::size_t i = 0; i < layers[l].pairs.size(); ++i)
        layers[l].pairs[i] += static_cast<double>(sums.coactivation[l * experts * experts + i]);
    }
    // Published counts have none; where pairs are counted, the diagonal holds the load.
    if (layers[l].pairs[0] != layers[l].load[0] || layers[l].pairs.back() != layers[l].load.back())
      layers[l].pairs = {};
  }
  return layers;
}

std::optional<CostModel> cost_model_of(const TableIndex& tables, const std::vector<std::size_t>& datasets) {
  const std::string path = "/ranks/cost_model";
  if (tables.find(path) == nullptr) return std::nullopt;
  const auto& terms = tables.values<double>(path);
  const auto& covariance = tables.values<double>(path + "_covariance", terms.size() * 3);
  const auto& r_squared = tables.values<double>(path + "_r_squared", terms.size() / 3);
  std::optional<std::size_t> best;
  for (const std::size_t d : datasets)
    if (d < r_squared.size() && r_squared[d] >= kLeastRSquared && (!best || r_squared[d] > r_squared[*best])) best = d;
  if (!best) return std::nullopt;
  CostModel cost{terms[3 * *best], terms[3 * *best + 1], terms[3 * *best + 2], {}, r_squared[*best]};
  std::copy_n(covariance.begin() + static_cast<std::ptrdiff_t>(9 * *best), 9, cost.covariance.begin());
  return cost;
}

std::vector<Table> method_tables(const std::vector<MethodResult>& methods, std::size_t chosen, int ranks,
                                 const std::vector<LayerDemand>& layers, const std::vector<double>& least_load) {
  std::vector<Table> tables;
  std::vector<std::string> names;
  std::vector<std::uint8_t> exact;
  std::vector<double> rank_load;
  for (const MethodResult& method : methods) {
    names.emplace_back(to_string(method.placement.method));
    exact.insert(exact.end(), method.placement.exact.begin(), method.placement.exact.end());
    for (std::size_t l = 0; l < layers.size(); ++l)
      for (const double load : rank_loads(method.placement.layers[l], layers[l].load, ranks)) rank_load.push_back(load);
  }
  const std::uint64_t n = methods.size();
  const std::uint64_t n_layers = layers.size();
  tables.push_back({"/placement/method_name", {"method"}, {n}, std::move(names), "1", "name of the method"});
  tables.push_back({"/placement/chosen",
                    {},
                    {},
                    std::vector<std::uint32_t>{static_cast<std::uint32_t>(chosen)},
                    "1",
                    "method whose plan is kept"});
  tables.push_back({"/placement/exact",
                    {"method", "layer"},
                    {n, n_layers},
                    std::move(exact),
                    "1",
                    "1: no plan has a smaller objective"});
  tables.push_back({"/placement/rank_load",
                    {"method", "layer", "rank"},
                    {n, n_layers, static_cast<std::uint64_t>(ranks)},
                    std::move(rank_load),
                    "1",
                    "slots of each rank's experts, over all that the placement is fitted on"});
  tables.push_back({"/placement/least_max_over_mean",
                    {"layer"},
                    {n_layers},
                    least_load,
                    "1",
                    "no plan's largest rank load over the mean is below"});
  add_plan(methods[chosen].placement, tables);

  MethodTables make(methods, tables);
  make.by_method("balancedness_mean", "1", "mean over layers of mean over largest rank load (SGLang)",
                 [](const MethodResult& m) { return m.figures.balancedness_mean; });
  make.by_method("balancedness_ratio", "1", "sum over layers of mean over sum of largest rank load (vLLM)",
                 [](const MethodResult& m) { return m.figures.balancedness_ratio; });
  make.by_layer("max_over_mean", "1", "largest rank load over the mean",
                [](const MethodResult& m, std::size_t l) { return m.figures.layers[l].max_over_mean; });
  make.by_layer("objective", "1", "what search makes small",
                [](const MethodResult& m, std::size_t l) { return m.figures.layers[l].objective; });
  const bool pairs = std::any_of(layers.begin(), layers.end(), [](const LayerDemand& l) { return !l.pairs.empty(); });
  if (pairs) {
    make.by_layer("ranks_per_token_low", "1", "distinct ranks of a token's experts, at least",
                  [](const MethodResult& m, std::size_t l) { return m.figures.layers[l].ranks_per_token.low; });
    make.by_layer("ranks_per_token_high", "1", "distinct ranks of a token's experts, at most",
                  [](const MethodResult& m, std::size_t l) { return m.figures.layers[l].ranks_per_token.high; });
    make.by_layer("nodes_per_token_low", "1", "distinct nodes of a token's experts, at least",
                  [](const MethodResult& m, std::size_t l) { return m.figures.layers[l].nodes_per_token.low; });
    make.by_layer("nodes_per_token_high", "1", "distinct nodes of a token's experts, at most",
                  [](const MethodResult& m, std::size_t l) { return m.figures.layers[l].nodes_per_token.high; });
  }
  if (methods.front().step) {
    make.by_method("step_seconds", "s", "predicted seconds of a step's experts, slowest rank of each layer",
                   [](const MethodResult& m) { return m.step->seconds; });
    make.by_method("step_seconds_std", "s", "standard deviation of the same, of the cost model's",
                   [](const MethodResult& m) { return m.step->deviation; });
    make.by_method("straggler_seconds", "s", "predicted sum over layers of slowest minus mean rank",
                   [](const MethodResult& m) { return m.step->straggler_seconds; });
  }
  if (!methods.front().balance.empty()) add_balance(make);
  if (!methods.front().traffic.empty()) add_traffic(make);
  return tables;
}

}  // namespace switchyard
