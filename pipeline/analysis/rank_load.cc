#include "pipeline/analysis/rank_load.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <type_traits>

#include "pipeline/analysis/metrics.h"
#include "pipeline/analysis/rank_matrix.h"
#include "pipeline/model/step_times.h"

namespace switchyard {
namespace {

/// When each step was: kUnitsPerBlock units for every block, of which its steps take equal parts. Depends on the
/// blocks alone, so that segments of a restarted run line up.
std::vector<std::uint64_t> times_of_steps(const std::vector<std::uint64_t>& block, std::uint64_t first_block) {
  std::vector<std::uint64_t> times(block.size());
  for (std::size_t begin = 0; begin < block.size();) {
    std::size_t end = begin;
    while (end < block.size() && block[end] == block[begin]) ++end;
    for (std::size_t s = begin; s < end; ++s)
      times[s] =
          (block[s] - first_block) * RankLoad::kUnitsPerBlock + (s - begin) * RankLoad::kUnitsPerBlock / (end - begin);
    begin = end;
  }
  return times;
}

}  // namespace

RankLoad::RankLoad(int n_layers, int k)
    : layers(n_layers),
      top_k(k),
      layer_steps(static_cast<std::size_t>(n_layers), 0),
      balancedness_sum(layer_steps.size(), 0),
      mean_sum(layer_steps.size(), 0),
      max_sum(layer_steps.size(), 0),
      imbalance_histogram(layer_steps.size() * kImbalanceBins, 0),
      imbalance_max(layer_steps.size(), 0),
      local_slots(layer_steps.size(), 0),
      remote_slots(layer_steps.size(), 0),
      send_ranks(layer_steps.size() * (static_cast<std::size_t>(k) + 1), 0),
      phase_seconds(kPhases, 0) {}

/// For at least so many ranks, and a series that holds times below `units_of_time`.
void RankLoad::make_room(std::size_t n_ranks, std::uint64_t units_of_time) {
  if (n_ranks > ranks) {
    traffic = widened(traffic, ranks, n_ranks, n_ranks);
    series = widened(series, ranks, kSeriesBins, n_ranks);
    ranks = n_ranks;
  }
  for (; series_units * kSeriesBins < units_of_time; series_units *= 2) {
    for (std::size_t bin = 0; bin < kSeriesBins; ++bin)
      for (std::size_t r = 0; r < ranks; ++r) {
        const std::uint64_t slots = series[bin * ranks + r];
        series[bin * ranks + r] = 0;
        series[bin / 2 * ranks + r] += slots;
      }
  }
}

void RankLoad::add(DispatchValues& dispatch, std::uint64_t first_block) {
  const auto& seconds = dispatch.values<float>("seconds");
  const std::size_t n_steps = dispatch.shape("seconds")[0];
  const std::size_t n_ranks = dispatch.shape("seconds")[1];
  constexpr auto kExperts = static_cast<std::size_t>(Phase::experts);
  for (std::size_t s = 0; s < n_steps; ++s) {
    double slowest_step = 0;
    double slowest_experts = 0;
    double sum_experts = 0;
    for (std::size_t r = 0; r < n_ranks; ++r) {
      const float* of_rank = seconds.data() + (s * n_ranks + r) * kPhases;
      double total = 0;
      for (std::size_t p = 0; p < kPhases; ++p) {
        phase_seconds[p] += static_cast<double>(of_rank[p]);
        total += static_cast<double>(of_rank[p]);
      }
      slowest_step = std::max(slowest_step, total);
      slowest_experts = std::max(slowest_experts, static_cast<double>(of_rank[kExperts]));
      sum_experts += static_cast<double>(of_rank[kExperts]);
    }
    step_seconds += slowest_step;
    straggler_seconds += slowest_experts - sum_experts / static_cast<double>(n_ranks);
  }
  steps += n_steps;
  row_bytes = dispatch.values<std::uint64_t>("row_bytes").at(0);
  if (layers == 0) return;

  const auto& slots = dispatch.values<std::uint32_t>("expert_slots");
  const auto& placement = dispatch.values<std::int32_t>("placement");
  const std::size_t n_experts = dispatch.shape("expert_slots")[2];
  const auto n_layers = static_cast<std::size_t>(layers);
  const std::vector<std::uint64_t> times = times_of_steps(dispatch.values<std::uint64_t>("block"), first_block);
  make_room(n_ranks, times.empty() ? 0 : times.back() + 1);
  std::vector<double> load(n_ranks);  // of one step and layer
  for (std::size_t s = 0; s < n_steps; ++s)
    for (std::size_t l = 0; l < n_layers; ++l) {
      std::fill(load.begin(), load.end(), 0.0);
      for (std::size_t e = 0; e < n_experts; ++e)
        load[static_cast<std::size_t>(placement[l * n_experts + e])] += slots[(s * n_layers + l) * n_experts + e];
      const double mean = std::accumulate(load.begin(), load.end(), 0.0) / static_cast<double>(n_ranks);
      const double largest = *std::max_element(load.begin(), load.end());
      if (largest == 0) continue;
      std::uint64_t* bin = series.data() + times[s] / series_units * ranks;
      for (std::size_t r = 0; r < n_ranks; ++r) bin[r] += static_cast<std::uint64_t>(load[r]);
      ++layer_steps[l];
      balancedness_sum[l] += balancedness(load);
      mean_sum[l] += mean;
      max_sum[l] += largest;
      const double imbalance = largest / mean - 1;
      const auto imbalance_bin = std::min<std::size_t>(
          kImbalanceBins - 1, static_cast<std::size_t>(imbalance / kImbalanceHigh * kImbalanceBins));
      ++imbalance_histogram[l * kImbalanceBins + imbalance_bin];
      imbalance_max[l] = std::max(imbalance_max[l], imbalance);
    }
  const auto& sent = dispatch.values<std::uint64_t>("traffic");
  for (std::size_t i = 0; i < sent.size(); ++i) {
    const std::size_t expert_rank = i % n_ranks;
    const std::size_t source_rank = i / n_ranks % n_ranks;
    const std::size_t layer = i / (n_ranks * n_ranks) % n_layers;
    (expert_rank == source_rank ? local_slots : remote_slots)[layer] += sent[i];
    traffic[source_rank * ranks + expert_rank] += sent[i];
  }
  const auto& reached = dispatch.values<std::uint64_t>("send_ranks");
  for (std::size_t i = 0; i < reached.size(); ++i) send_ranks[i % send_ranks.size()] += reached[i];
}

void RankLoad::reduce_to_root(const Communicator& comm) {
  make_room(static_cast<std::size_t>(comm.max(static_cast<std::int64_t>(ranks))),
            kSeriesBins * static_cast<std::uint64_t>(comm.max(static_cast<std::int64_t>(series_units))));
  for (auto* counts : {&layer_steps, &imbalance_histogram, &local_slots, &remote_slots, &send_ranks, &traffic, &series})
    comm.sum_to_root(*counts);
  for (auto* sums : {&balancedness_sum, &mean_sum, &max_sum, &phase_seconds}) comm.sum_to_root(*sums);
  const std::vector<double> all = comm.gather_v<double>(imbalance_max);
  for (std::size_t i = 0; i < all.size(); ++i)
    imbalance_max[i % layer_steps.size()] = std::max(imbalance_max[i % layer_steps.size()], all[i]);
  steps = static_cast<std::uint64_t>(comm.sum(static_cast<std::int64_t>(steps)));
  row_bytes = static_cast<std::uint64_t>(comm.max(static_cast<std::int64_t>(row_bytes)));
  straggler_seconds = comm.sum(straggler_seconds);
  step_seconds = comm.sum(step_seconds);
}

std::vector<Table> rank_tables(const std::vector<const RankLoad*>& datasets) {
  std::vector<Table> tables;
  if (datasets.empty()) return tables;
  const std::uint64_t n_datasets = datasets.size();
  const auto n_layers = static_cast<std::uint64_t>(datasets.front()->layers);
  const auto add = [&](const std::string& name, std::vector<std::string> dimensions, std::vector<std::uint64_t> shape,
                       const char* units, const char* long_name, auto value_of) {
    using Value = typename decltype(value_of(*datasets.front()))::value_type;
    std::vector<Value> values;
    for (const RankLoad* load : datasets) {
      const std::vector<Value> of_dataset = value_of(*load);
      values.insert(values.end(), of_dataset.begin(), of_dataset.end());
    }
    dimensions.insert(dimensions.begin(), "dataset");
    shape.insert(shape.begin(), n_datasets);
    tables.push_back({"/ranks/" + name, std::move(dimensions), std::move(shape), std::move(values), units, long_name});
  };
  // Without a step, as of an import, nothing is known.
  const auto known = [](const RankLoad& r, std::vector<double> values) {
    if (r.steps == 0) std::fill(values.begin(), values.end(), std::numeric_limits<double>::quiet_NaN());
    return values;
  };
  const auto ratio = [](const std::vector<double>& a, const auto& b) {
    std::vector<double> quotients;
    for (std::size_t i = 0; i < a.size(); ++i) quotients.push_back(a[i] / static_cast<double>(b[i]));
    return quotients;
  };
  add("steps", {}, {}, "1", "steps (dispatches of each layer)",
      [](const RankLoad& r) { return std::vector<std::uint64_t>{r.steps}; });
  add("seconds", {"phase"}, {kPhases}, "s", "seconds of all ranks by phase",
      [&](const RankLoad& r) { return known(r, r.phase_seconds); });
  add("step_seconds", {}, {}, "s", "sum over steps of the slowest rank's seconds",
      [&](const RankLoad& r) { return known(r, {r.step_seconds}); });
  add("straggler_seconds", {}, {}, "s", "sum over steps of slowest minus mean rank's seconds in the expert phase",
      [&](const RankLoad& r) { return known(r, {r.straggler_seconds}); });
  add("straggler_share", {}, {}, "1", "straggler_seconds over step_seconds",
      [](const RankLoad& r) { return std::vector<double>{r.straggler_seconds / r.step_seconds}; });
  tables.push_back({"/ranks/phase_name",
                    {"phase"},
                    {kPhases},
                    std::vector<std::string>(kPhaseNames.begin(), kPhaseNames.end()),
                    "1",
                    "names of the phases"});
  add("row_bytes", {}, {}, "byte", "size of one dispatched row",
      [](const RankLoad& r) { return std::vector<std::uint64_t>{r.row_bytes}; });
  if (n_layers == 0) return tables;
  std::size_t n_ranks = 0;
  for (const RankLoad* load : datasets) n_ranks = std::max(n_ranks, load->ranks);
  if (n_ranks > 0) {
    add("traffic", {"source_rank", "expert_rank"}, {n_ranks, n_ranks}, "1",
        "slots of all layers from the rank of their token to the rank of their expert",
        [=](const RankLoad& r) { return widened(r.traffic, r.ranks, n_ranks, n_ranks); });
    add("series", {"time_bin", "expert_rank"}, {RankLoad::kSeriesBins, n_ranks}, "1",
        "slots of all layers by the rank of their expert, over the corpus from its beginning",
        [=](const RankLoad& r) { return widened(r.series, r.ranks, RankLoad::kSeriesBins, n_ranks); });
    add("series_units", {}, {}, "1", "units of time in a bin of `series`: the 64 of a block share its steps equally",
        [](const RankLoad& r) { return std::vector<std::uint64_t>{r.series_units}; });
  }
  add("layer_steps", {"layer"}, {n_layers}, "1", "steps with at least one slot",
      [](const RankLoad& r) { return r.layer_steps; });
  add("balancedness_sum", {"layer"}, {n_layers}, "1", "sum over steps of (mean + 1e-5) / (max + 1e-5)",
      [](const RankLoad& r) { return r.balancedness_sum; });
  add("imbalance_histogram", {"layer", "imbalance_bin"}, {n_layers, RankLoad::kImbalanceBins}, "1",
      "steps by max / mean - 1 of the ranks' slots, equal bins on [0, 8], larger ones in the last",
      [](const RankLoad& r) { return r.imbalance_histogram; });
  add("balancedness_mean", {"layer"}, {n_layers}, "1",
      "mean over steps of (mean + 1e-5) / (max + 1e-5) of the ranks' slots (SGLang)",
      [&](const RankLoad& r) { return ratio(r.balancedness_sum, r.layer_steps); });
  add("balancedness_ratio", {"layer"}, {n_layers}, "1",
      "sum over steps of the ranks' mean over sum of their largest load (vLLM, by layer)",
      [&](const RankLoad& r) { return ratio(r.mean_sum, r.max_sum); });
  add("mean_slots", {"layer"}, {n_layers}, "1", "sum over steps of the ranks' mean load in slots",
      [](const RankLoad& r) { return r.mean_sum; });
  add("max_slots", {"layer"}, {n_layers}, "1", "sum over steps of the ranks' largest load in slots",
      [](const RankLoad& r) { return r.max_sum; });
  add("imbalance_max", {"layer"}, {n_layers}, "1", "largest max / mean - 1 of a step",
      [&](const RankLoad& r) { return known(r, r.imbalance_max); });
  for (const auto& [name, q] :
       {std::pair<const char*, double>{"imbalance_p50", 0.5}, {"imbalance_p90", 0.9}, {"imbalance_p99", 0.99}})
    add(name, {"layer"}, {n_layers}, "1",
        "quantile over steps of max / mean - 1 of the ranks' slots (TensorRT-LLM), resolution 1/64",
        [&, quantile = q](const RankLoad& r) {
          std::vector<double> values;
          for (std::size_t l = 0; l < r.layer_steps.size(); ++l)
            values.push_back(std::min(
                r.imbalance_max[l],
                histogram_quantile(
                    std::span(r.imbalance_histogram).subspan(l * RankLoad::kImbalanceBins, RankLoad::kImbalanceBins), 0,
                    RankLoad::kImbalanceHigh, quantile)));
          return known(r, std::move(values));
        });
  add("local_slots", {"layer"}, {n_layers}, "1", "slots whose expert is on the token's own rank",
      [](const RankLoad& r) { return r.local_slots; });
  add("remote_slots", {"layer"}, {n_layers}, "1", "slots sent to another rank",
      [](const RankLoad& r) { return r.remote_slots; });
  add("remote_bytes", {"layer"}, {n_layers}, "byte", "bytes of those slots' rows, one way", [](const RankLoad& r) {
    std::vector<std::uint64_t> bytes;
    for (const std::uint64_t slots : r.remote_slots) bytes.push_back(slots * r.row_bytes);
    return bytes;
  });
  add("send_ranks", {"layer", "ranks_reached"}, {n_layers, static_cast<std::uint64_t>(datasets.front()->top_k) + 1},
      "1", "tokens by the number of distinct ranks that hold their experts",
      [](const RankLoad& r) { return r.send_ranks; });
  return tables;
}

std::vector<RankLoad> from_rank_tables(const TableIndex& tables, std::size_t n_datasets, int n_layers, int top_k) {
  std::vector<RankLoad> datasets(n_datasets, RankLoad(n_layers, top_k));
  // Each dataset's part of a table fills a member that the constructor has given its size.
  const auto read = [&](const std::string& name, auto member) {
    using Column = std::remove_reference_t<decltype(datasets.front().*member)>;
    const std::size_t n = n_datasets == 0 ? 0 : (datasets.front().*member).size();
    const Column& values = tables.values<typename Column::value_type>("/ranks/" + name, n * n_datasets);
    for (std::size_t d = 0; d < n_datasets; ++d)
      std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(d * n), n, (datasets[d].*member).begin());
  };
  const auto read_one = [&](const std::string& name, auto member) {
    using Value = std::remove_reference_t<decltype(datasets.front().*member)>;
    const std::vector<Value>& values = tables.values<Value>("/ranks/" + name, n_datasets);
    for (std::size_t d = 0; d < n_datasets; ++d) datasets[d].*member = values[d];
  };
  read_one("steps", &RankLoad::steps);
  read_one("step_seconds", &RankLoad::step_seconds);
  read_one("straggler_seconds", &RankLoad::straggler_seconds);
  read_one("row_bytes", &RankLoad::row_bytes);
  read("seconds", &RankLoad::phase_seconds);
  if (n_layers == 0) return datasets;
  read("layer_steps", &RankLoad::layer_steps);
  read("balancedness_sum", &RankLoad::balancedness_sum);
  read("mean_slots", &RankLoad::mean_sum);
  read("max_slots", &RankLoad::max_sum);
  read("imbalance_histogram", &RankLoad::imbalance_histogram);
  read("imbalance_max", &RankLoad::imbalance_max);
  read("local_slots", &RankLoad::local_slots);
  read("remote_slots", &RankLoad::remote_slots);
  read("send_ranks", &RankLoad::send_ranks);
  if (tables.find("/ranks/traffic") == nullptr) return datasets;  // no ranks routed them
  for (RankLoad& load : datasets) load.make_room(tables.at("/ranks/traffic").shape.back(), 0);
  read("traffic", &RankLoad::traffic);
  read("series", &RankLoad::series);
  read_one("series_units", &RankLoad::series_units);
  return datasets;
}

}  // namespace switchyard
