#include "pipeline/analysis/cost.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <span>
#include <string>

namespace switchyard {
namespace {

/// A sum that is stored: the one place that knows its name.
struct Sum {
  const char* path;
  double Cost::*member;
  const char* units;
  const char* long_name;
};
constexpr std::array<Sum, 3> kSums = {{{"/cost/seconds", &Cost::seconds, "s", "seconds of the slowest rank"},
                                       {"/cost/rank_seconds", &Cost::rank_seconds, "s", "seconds times ranks"},
                                       {"/cost/flops", &Cost::flops, "FLOP", "model FLOP"}}};

/// Of a dataset that nobody timed, an import's, nothing is known.
double or_unknown(const Cost& cost, double sum) {
  return cost.tokens > 0 ? sum : std::numeric_limits<double>::quiet_NaN();
}

double phase_total(const Cost& cost) {
  return std::accumulate(cost.phase_seconds.begin(), cost.phase_seconds.end(), 0.0);
}

/// A figure of energy, NaN where no block's was counted.
double if_counted(const Cost& cost, double figure) {
  return cost.joules_tokens > 0 ? figure : std::numeric_limits<double>::quiet_NaN();
}

/// Tokens of each block that has a row in the tables by block.
std::vector<std::uint64_t> tokens_of_blocks(DispatchValues& dispatch) {
  const auto& step_block = dispatch.values<std::uint64_t>("block");
  const auto& step_tokens = dispatch.values<std::uint32_t>("step_tokens");
  const std::size_t n_ranks = dispatch.shape("step_tokens")[1];
  std::map<std::uint64_t, std::uint64_t> tokens;
  for (std::size_t i = 0; i < step_tokens.size(); ++i) tokens[step_block[i / n_ranks]] += step_tokens[i];
  std::vector<std::uint64_t> by_row;
  for (const std::uint64_t block : dispatch.values<std::uint64_t>("traffic_block")) by_row.push_back(tokens[block]);
  return by_row;
}

/// Blocks in which some GPU was not counted are left out, tokens and all.
void add_energy(Cost& cost, DispatchValues& dispatch) {
  if (!dispatch.contains("joules")) return;
  const auto& joules = dispatch.values<double>("joules");
  const std::size_t n_ranks = dispatch.shape("joules")[1];
  const std::vector<std::uint64_t> tokens = tokens_of_blocks(dispatch);
  for (std::size_t b = 0; b < tokens.size(); ++b) {
    const auto of_ranks = std::span(joules).subspan(b * n_ranks, n_ranks);
    const double of_block = std::accumulate(of_ranks.begin(), of_ranks.end(), 0.0);
    if (std::isnan(of_block) || tokens[b] == 0) continue;
    cost.joules += of_block;
    cost.joules_tokens += tokens[b];
    const double per_token = of_block / static_cast<double>(tokens[b]);
    cost.block_joules_low = std::min(cost.block_joules_low, per_token);
    cost.block_joules_high = std::max(cost.block_joules_high, per_token);
  }
}

}  // namespace

void Cost::add(DispatchValues& dispatch) {
  const auto& of_phases = dispatch.values<float>("seconds");
  const std::size_t n_steps = dispatch.shape("seconds")[0];
  const std::size_t n_ranks = dispatch.shape("seconds")[1];
  for (std::size_t s = 0; s < n_steps; ++s) {
    double slowest = 0;
    for (std::size_t r = 0; r < n_ranks; ++r) {
      const float* of_rank = of_phases.data() + (s * n_ranks + r) * kPhases;
      for (std::size_t p = 0; p < kPhases; ++p) phase_seconds[p] += static_cast<double>(of_rank[p]);
      slowest = std::max(slowest, std::accumulate(of_rank, of_rank + kPhases, 0.0));
    }
    seconds += slowest;
    rank_seconds += slowest * static_cast<double>(n_ranks);
  }
  for (const std::uint32_t n : dispatch.values<std::uint32_t>("step_tokens")) tokens += n;
  add_energy(*this, dispatch);
  if (!dispatch.contains("flops")) {
    flops = std::numeric_limits<double>::quiet_NaN();
    return;
  }
  for (const double f : dispatch.values<double>("flops")) flops += f;
}

void Cost::reduce_to_root(const Communicator& comm) {
  tokens = static_cast<std::uint64_t>(comm.sum(static_cast<std::int64_t>(tokens)));
  for (const Sum& sum : kSums) this->*sum.member = comm.sum(this->*sum.member);
  joules = comm.sum(joules);
  joules_tokens = static_cast<std::uint64_t>(comm.sum(static_cast<std::int64_t>(joules_tokens)));
  block_joules_low = -comm.max(-block_joules_low);
  block_joules_high = comm.max(block_joules_high);
  for (double& s : phase_seconds) s = comm.sum(s);
}

std::vector<Table> cost_tables(const std::vector<const Cost*>& datasets, std::optional<double> peak_flops) {
  std::vector<Table> tables;
  const std::uint64_t n = datasets.size();
  const auto add = [&](const char* path, const char* units, const char* long_name, auto value_of) {
    std::vector<decltype(value_of(*datasets.front()))> values;
    for (const Cost* cost : datasets) values.push_back(value_of(*cost));
    tables.push_back({path, {"dataset"}, {n}, std::move(values), units, long_name});
  };
  const auto add_phases = [&](const char* path, const char* units, const char* long_name, auto value_of) {
    std::vector<double> values;
    for (const Cost* cost : datasets)
      for (const double s : cost->phase_seconds) values.push_back(value_of(*cost, s));
    tables.push_back({path, {"dataset", "phase"}, {n, kPhases}, std::move(values), units, long_name});
  };
  add("/cost/tokens", "1", "tokens routed", [](const Cost& c) { return c.tokens; });
  for (const Sum& sum : kSums)
    add(sum.path, sum.units, sum.long_name, [&sum](const Cost& c) { return or_unknown(c, c.*sum.member); });
  add_phases("/cost/phase_seconds", "s", "seconds of all ranks by phase (/ranks/phase_name)",
             [](const Cost& c, double s) { return or_unknown(c, s); });
  add_phases("/cost/phase_share", "1", "share of all ranks' seconds by phase",
             [](const Cost& c, double s) { return s / phase_total(c); });
  add("/cost/record_share", "1", "share spent recording",
      [](const Cost& c) { return c.phase_seconds[static_cast<std::size_t>(Phase::record)] / phase_total(c); });
  add("/cost/tokens_per_second", "1/s", "tokens per second",
      [](const Cost& c) { return static_cast<double>(c.tokens) / c.seconds; });
  add("/cost/flops_per_token", "FLOP", "model FLOP per token",
      [](const Cost& c) { return c.flops / static_cast<double>(c.tokens); });
  add("/cost/flops_per_second", "FLOP/s", "model FLOP per second", [](const Cost& c) { return c.flops / c.seconds; });
  if (std::ranges::any_of(datasets, [](const Cost* c) { return c->joules_tokens > 0; })) {
    add("/cost/joules", "J", "energy of the ranks' GPUs, where all of them were counted",
        [](const Cost& c) { return if_counted(c, c.joules); });
    add("/cost/joules_tokens", "1", "tokens routed meanwhile", [](const Cost& c) { return c.joules_tokens; });
    add("/cost/joules_per_token", "J", "energy per token",
        [](const Cost& c) { return if_counted(c, c.joules / static_cast<double>(c.joules_tokens)); });
    add("/cost/joules_per_token_low", "J", "energy per token of the block that took least",
        [](const Cost& c) { return if_counted(c, c.block_joules_low); });
    add("/cost/joules_per_token_high", "J", "energy per token of the block that took most",
        [](const Cost& c) { return if_counted(c, c.block_joules_high); });
    add_phases("/cost/phase_joules_estimate", "J", "energy by phase, if all phases took the same power: an estimate",
               [](const Cost& c, double s) { return if_counted(c, c.joules * s / phase_total(c)); });
  }
  if (!peak_flops) return tables;
  add("/cost/peak_flops", "FLOP/s", "peak of a rank, as given", [&](const Cost&) { return *peak_flops; });
  add("/cost/peak_share", "1", "share of the ranks' peak",
      [&](const Cost& c) { return c.flops / (*peak_flops * c.rank_seconds); });
  return tables;
}

std::vector<Cost> from_cost_tables(const TableIndex& tables, std::size_t n_datasets) {
  std::vector<Cost> datasets(n_datasets);
  const auto& tokens = tables.values<std::uint64_t>("/cost/tokens", n_datasets);
  for (std::size_t d = 0; d < n_datasets; ++d) datasets[d].tokens = tokens[d];
  for (const Sum& sum : kSums) {
    const auto& values = tables.values<double>(sum.path, n_datasets);
    for (std::size_t d = 0; d < n_datasets; ++d) datasets[d].*sum.member = values[d];
  }
  if (tables.find("/cost/joules") != nullptr) {
    const auto& joules = tables.values<double>("/cost/joules", n_datasets);
    const auto& counted = tables.values<std::uint64_t>("/cost/joules_tokens", n_datasets);
    const auto& low = tables.values<double>("/cost/joules_per_token_low", n_datasets);
    const auto& high = tables.values<double>("/cost/joules_per_token_high", n_datasets);
    for (std::size_t d = 0; d < n_datasets; ++d) {
      if (counted[d] == 0) continue;
      datasets[d].joules = joules[d];
      datasets[d].joules_tokens = counted[d];
      datasets[d].block_joules_low = low[d];
      datasets[d].block_joules_high = high[d];
    }
  }
  const auto& phases = tables.values<double>("/cost/phase_seconds", n_datasets * kPhases);
  for (std::size_t i = 0; i < phases.size(); ++i) datasets[i / kPhases].phase_seconds[i % kPhases] = phases[i];
  return datasets;
}

std::optional<double> peak_flops_of(const TableIndex& tables) {
  if (tables.find("/cost/peak_flops") == nullptr) return std::nullopt;
  const auto& peaks = tables.values<double>("/cost/peak_flops");
  if (peaks.empty()) return std::nullopt;
  return peaks[0];
}

}  // namespace switchyard
