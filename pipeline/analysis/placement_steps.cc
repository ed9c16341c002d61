#include "pipeline/analysis/placement_steps.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "io/routing_reader.h"
#include "parallel/error.h"
#include "pipeline/analysis/corpus_segments.h"
#include "pipeline/analysis/dispatch_values.h"
#include "pipeline/analysis/metrics.h"
#include "pipeline/analysis/resampling.h"

namespace switchyard {
namespace {

constexpr std::uint64_t kRowsAtOnce = 1 << 16;

void add_dispatch(const RoutingReader& segment, const std::string& corpus, StepSlots& steps) {
  DispatchValues dispatch(segment);
  const auto& block = dispatch.values<std::uint64_t>("block");
  steps.block.insert(steps.block.end(), block.begin(), block.end());
  steps.datasets.insert(steps.datasets.end(), block.size(), corpus);
  add_slots(dispatch.values<std::uint32_t>("expert_slots"), dispatch.values<std::uint16_t>("logical"), steps);
}

/// [E] slots dealt by a layer's load.
void draw_slots(const LayerDemand& demand, std::uint64_t slots, std::mt19937_64& random, std::uint32_t* drawn) {
  double mass = std::accumulate(demand.load.begin(), demand.load.end(), 0.0);
  for (std::size_t e = 0; e < demand.load.size() && slots > 0 && mass > 0; ++e) {
    const double p = std::clamp(demand.load[e] / mass, 0.0, 1.0);
    const std::uint64_t here =
        e + 1 == demand.load.size() ? slots : std::binomial_distribution<std::uint64_t>(slots, p)(random);
    drawn[e] = static_cast<std::uint32_t>(here);
    slots -= here;
    mass -= demand.load[e];
  }
}

/// Seconds of each rank by the cost model, of one step and layer.
std::vector<double> rank_seconds(std::span<const std::uint32_t> slots, const LayerPlan& plan,
                                 std::span<const double> loads, const CostModel& cost) {
  std::vector<double> seconds(loads.size(), cost.intercept);
  for (std::size_t r = 0; r < loads.size(); ++r) seconds[r] += cost.per_slot * loads[r];
  for (std::size_t e = 0; e < plan.size(); ++e)
    for (std::size_t c = 0; c < plan[e].size() && c < slots[e]; ++c)  // fewer slots than copies: not all are used
      seconds[static_cast<std::size_t>(plan[e][c])] += cost.per_expert;
  for (double& s : seconds) s = std::max(0.0, s);  // a line fitted to larger loads may be below at small ones
  return seconds;
}

double mean_of(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

LayerBalance balance_of_layer(const StepSlots& steps, std::size_t layer, const LayerPlan& plan, int ranks,
                              const std::optional<CostModel>& cost) {
  LayerBalance balance;
  std::vector<double> imbalance;
  double means = 0;
  double largest = 0;
  double waited = 0;
  double slowest = 0;
  for (std::size_t s = 0; s < steps.steps(); ++s) {
    const std::span<const std::uint32_t> slots = steps.at(s, layer);
    const std::vector<double> loads = rank_loads(plan, std::vector<double>(slots.begin(), slots.end()), ranks);
    const double mean = mean_of(loads);
    if (mean == 0) continue;
    const double most = *std::max_element(loads.begin(), loads.end());
    balance.balancedness_mean += balancedness(loads);
    means += mean;
    largest += most;
    imbalance.push_back(most / mean - 1);
    const std::vector<double> seconds = cost ? rank_seconds(slots, plan, loads, *cost) : loads;
    const double last = *std::max_element(seconds.begin(), seconds.end());
    waited += last - mean_of(seconds);
    slowest += last;
  }
  if (imbalance.empty()) {
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    return {kNan, kNan, kNan, kNan, kNan, kNan, kNan};
  }
  std::sort(imbalance.begin(), imbalance.end());
  balance.balancedness_mean /= static_cast<double>(imbalance.size());
  balance.balancedness_ratio = means / largest;
  balance.imbalance_p50 = sorted_quantile(imbalance, 0.5);
  balance.imbalance_p90 = sorted_quantile(imbalance, 0.9);
  balance.imbalance_p99 = sorted_quantile(imbalance, 0.99);
  balance.imbalance_max = imbalance.back();
  balance.straggler_share = slowest > 0 ? waited / slowest : 0;  // by a cost model, small steps may take no time
  return balance;
}

/// Counts distinct places of one token after another.
class DistinctCounter {
 public:
  explicit DistinctCounter(int places) : last_token_(static_cast<std::size_t>(places), kNone) {}
  /// Whether the place was not met for this token before.
  bool is_new(std::uint64_t token, std::int32_t place) {
    return std::exchange(last_token_[static_cast<std::size_t>(place)], token) != token;
  }

 private:
  static constexpr std::uint64_t kNone = ~std::uint64_t{0};
  std::vector<std::uint64_t> last_token_;
};

LayerTraffic traffic_of_layer(std::span<const std::uint16_t> experts, std::size_t top_k,
                              const LayerPlacement& placement, const PlacementTask& task, std::size_t step_tokens) {
  const std::size_t tokens = experts.size() / top_k;
  const auto ranks = static_cast<std::uint64_t>(task.ranks);
  std::uint64_t distinct_ranks = 0;
  std::uint64_t distinct_nodes = 0;
  std::uint64_t remote_slots = 0;
  std::uint64_t remote_node_slots = 0;
  std::uint64_t remote_ranks = 0;
  std::uint64_t remote_nodes = 0;
  double received = 0;
  std::size_t steps = 0;
  DistinctCounter rank_counter(task.ranks);
  DistinctCounter node_counter(task.nodes);
  std::vector<std::uint64_t> of_rank(ranks);
  for (std::size_t first = 0; first < tokens; first += step_tokens) {
    const std::size_t n = std::min(step_tokens, tokens - first);
    std::fill(of_rank.begin(), of_rank.end(), 0);
    std::uint64_t sent = 0;
    std::int32_t source = 0;
    std::int64_t of_source = 0;  // number of the token on its rank
    for (std::size_t t = first; t < first + n; ++t, ++of_source) {
      if (const auto here = static_cast<std::int32_t>((t - first) * ranks / n); here != source) {
        source = here;
        of_source = 0;
      }
      const int source_node = task.node_of(source);
      for (std::size_t j = 0; j < top_k; ++j) {
        const std::int32_t rank = placement.rank_of(placement.physical_for(experts[t * top_k + j], of_source, source));
        const int node = task.node_of(rank);
        const bool remote = rank != source;
        remote_node_slots += node != source_node ? 1 : 0;
        if (remote) {
          ++sent;
          ++of_rank[static_cast<std::size_t>(rank)];
        }
        if (rank_counter.is_new(t, rank)) {
          ++distinct_ranks;
          remote_ranks += remote ? 1 : 0;
        }
        if (node_counter.is_new(t, node)) {
          ++distinct_nodes;
          remote_nodes += node != source_node ? 1 : 0;
        }
      }
    }
    remote_slots += sent;
    if (sent == 0) continue;
    ++steps;
    received +=
        static_cast<double>(*std::max_element(of_rank.begin(), of_rank.end()) * ranks) / static_cast<double>(sent);
  }
  const auto per_token = [&](std::uint64_t sum) { return static_cast<double>(sum) / static_cast<double>(tokens); };
  return {per_token(distinct_ranks),
          per_token(distinct_nodes),
          per_token(remote_slots),
          per_token(remote_node_slots),
          per_token(remote_ranks),
          per_token(remote_nodes),
          steps > 0 ? received / static_cast<double>(steps) : std::numeric_limits<double>::quiet_NaN()};
}

/// The mean of each figure over layers where it is known.
template <typename Figures, std::size_t N>
Figures mean_of_figures(std::span<const Figures> layers, const std::array<double Figures::*, N>& members) {
  Figures mean;
  for (double Figures::*member : members) {
    double sum = 0;
    double known = 0;
    for (const Figures& layer : layers)
      if (!std::isnan(layer.*member)) {
        sum += layer.*member;
        ++known;
      }
    mean.*member = sum / known;
  }
  return mean;
}

}  // namespace

void add_slots(std::span<const std::uint32_t> slots, std::span<const std::uint16_t> logical, StepSlots& steps) {
  const std::size_t physical = logical.size() / steps.layers;
  const std::size_t before = steps.slots.size();
  steps.slots.resize(before + slots.size() / physical * steps.experts, 0);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const std::size_t expert = logical[i % logical.size()];
    steps.slots[before + i / physical * steps.experts + expert] += slots[i];
  }
}

StepSlots recorded_steps(const std::filesystem::path& run, const std::optional<std::string>& corpus) {
  StepSlots steps;
  const CorpusSegments segments = segments_of(run, corpus);
  for (std::size_t s = 0; s < segments.files.size(); ++s) {
    const RoutingReader segment(segments.files[s]);
    steps.layers = segment.model().moe_layers.size();
    steps.experts = static_cast<std::size_t>(segment.model().n_experts);
    if (!segment.contains("/dispatch"))
      throw Error("holds no steps: no ranks routed it", run.string(), "give a run of `switchyard route`");
    add_dispatch(segment, segments.corpora[s], steps);
  }
  return steps;
}

void add_steps(const StepSlots& steps, std::size_t most, std::vector<LayerDemand>& layers) {
  const std::size_t kept = std::min(most, steps.steps());
  for (std::size_t l = 0; l < layers.size(); ++l)
    for (std::size_t i = 0; i < kept; ++i) {
      const std::span<const std::uint32_t> slots = steps.at(i * steps.steps() / kept, l);
      if (std::any_of(slots.begin(), slots.end(), [](std::uint32_t n) { return n > 0; }))
        layers[l].steps.insert(layers[l].steps.end(), slots.begin(), slots.end());
    }
}

RoutedTokens read_routed_tokens(const std::filesystem::path& run, const std::optional<std::string>& corpus,
                                std::uint64_t most) {
  RoutedTokens routed;
  TokenRows rows;
  for (const std::filesystem::path& file : segments_of(run, corpus).files) {
    const RoutingReader segment(file);
    if (segment.level() == RecordLevel::counts)
      throw Error("holds no token rows", run.string(), "route with --record tokens");
    const ModelFacts& model = segment.model();
    routed.top_k = model.top_k;
    routed.n_experts = static_cast<std::size_t>(model.n_experts);
    routed.experts.resize(model.moe_layers.size());
    for (std::uint64_t first = 0; first < segment.n_rows() && routed.tokens() < most; first += rows.size()) {
      segment.read_rows(first, std::min({kRowsAtOnce, segment.n_rows() - first, most - routed.tokens()}), rows);
      for (std::size_t l = 0; l < rows.layers.size(); ++l)
        routed.experts[l].insert(routed.experts[l].end(), rows.layers[l].expert.begin(), rows.layers[l].expert.end());
    }
    if (routed.tokens() >= most) break;
  }
  return routed;
}

StepSlots cut_into_steps(const RoutedTokens& routed, std::size_t step_tokens) {
  StepSlots steps{routed.experts.size(), routed.n_experts, {}, {}, {}};
  const auto k = static_cast<std::size_t>(routed.top_k);
  step_tokens = std::min(step_tokens, routed.tokens());
  const std::size_t n_steps = step_tokens == 0 ? 0 : routed.tokens() / step_tokens;
  steps.slots.assign(n_steps * steps.layers * steps.experts, 0);
  for (std::size_t l = 0; l < steps.layers; ++l)
    for (std::size_t i = 0; i < n_steps * step_tokens * k; ++i)
      ++steps.slots[(i / (step_tokens * k) * steps.layers + l) * steps.experts + routed.experts[l][i]];
  return steps;
}

StepSlots drawn_steps(std::span<const LayerDemand> layers, int top_k, std::uint64_t step_tokens, std::size_t steps,
                      std::uint64_t seed) {
  StepSlots drawn{layers.size(), layers.empty() ? 0 : layers.front().load.size(), {}, {}, {}};
  drawn.slots.assign(steps * drawn.layers * drawn.experts, 0);
  for (std::size_t l = 0; l < layers.size(); ++l) {
    std::mt19937_64 random = random_stream(seed, "steps", l);
    for (std::size_t s = 0; s < steps; ++s)
      draw_slots(layers[l], step_tokens * static_cast<std::uint64_t>(top_k), random,
                 drawn.slots.data() + (s * drawn.layers + l) * drawn.experts);
  }
  return drawn;
}

std::vector<LayerBalance> balance_over_steps(const StepSlots& steps, std::span<const LayerPlan> plans, int ranks,
                                             const std::optional<CostModel>& cost) {
  std::vector<LayerBalance> layers(steps.layers);
#pragma omp parallel for schedule(dynamic, 1)
  for (std::size_t l = 0; l < layers.size(); ++l) layers[l] = balance_of_layer(steps, l, plans[l], ranks, cost);
  return layers;
}

LayerBalance mean_over_layers(std::span<const LayerBalance> layers) {
  return mean_of_figures(
      layers, std::array{&LayerBalance::balancedness_mean, &LayerBalance::balancedness_ratio,
                         &LayerBalance::imbalance_p50, &LayerBalance::imbalance_p90, &LayerBalance::imbalance_p99,
                         &LayerBalance::imbalance_max, &LayerBalance::straggler_share});
}

std::vector<LayerTraffic> replay_traffic(const RoutedTokens& routed, std::span<const LayerPlan> plans,
                                         const PlacementTask& task, CopyRule rule, std::size_t step_tokens) {
  std::vector<LayerTraffic> layers(routed.experts.size());
#pragma omp parallel for schedule(dynamic, 1)
  for (std::size_t l = 0; l < layers.size(); ++l)
    layers[l] = traffic_of_layer(routed.experts[l], static_cast<std::size_t>(routed.top_k),
                                 LayerPlacement(plans[l], task.ranks, rule), task, step_tokens);
  return layers;
}

LayerTraffic mean_over_layers(std::span<const LayerTraffic> layers) {
  return mean_of_figures(
      layers,
      std::array{&LayerTraffic::ranks_per_token, &LayerTraffic::nodes_per_token, &LayerTraffic::remote_slots_per_token,
                 &LayerTraffic::remote_node_slots_per_token, &LayerTraffic::remote_ranks_per_token,
                 &LayerTraffic::remote_nodes_per_token, &LayerTraffic::received_max_over_mean});
}

}  // namespace switchyard
