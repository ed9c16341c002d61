#include "pipeline/analysis/rank_time.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "pipeline/analysis/cost_model.h"
#include "pipeline/analysis/rank_matrix.h"
#include "pipeline/model/step_times.h"

namespace switchyard {
namespace {

/// The one place that knows how sums by layer and rank are called.
struct Sum {
  const char* name;
  std::vector<double> RankTime::Seconds::*member;
  const char* long_name;
};
constexpr std::array<Sum, 5> kSums = {
    {{"layer_dispatch_seconds", &RankTime::Seconds::dispatch,
      "from the router's end to rows ordered by expert, without waiting, recording and shared experts"},
     {"layer_dispatch_wait_seconds", &RankTime::Seconds::dispatch_wait,
      "from the rank's coming to the dispatch to the coming of the last one"},
     {"layer_expert_seconds", &RankTime::Seconds::experts, "routed experts"},
     {"layer_combine_seconds", &RankTime::Seconds::combine,
      "from the experts' end to the weighted sum, without waiting"},
     {"layer_combine_wait_seconds", &RankTime::Seconds::combine_wait,
      "from the sending of the rank's results to that of the last rank's, as far as it waited"}}};

/// One layer of one step, by rank.
struct LayerStep {
  std::vector<double> slots, experts;  // slots, and experts with a slot
  std::vector<double> seconds;         // of the experts

  explicit LayerStep(std::size_t n_ranks) : slots(n_ranks, 0), experts(n_ranks, 0), seconds(n_ranks, 0) {}
};

}  // namespace

RankTime::RankTime(int n_layers, int n_experts)
    : layers(n_layers),
      experts(n_experts),
      straggler_seconds(static_cast<std::size_t>(n_layers), 0),
      straggler_by_expert(static_cast<std::size_t>(n_layers) * static_cast<std::size_t>(n_experts), 0) {}

void RankTime::make_room(std::size_t n_ranks) {
  if (n_ranks <= ranks) return;
  const auto n_layers = static_cast<std::size_t>(layers);
  for (const Sum& sum : kSums) seconds.*sum.member = widened(seconds.*sum.member, ranks, n_layers, n_ranks);
  straggler_by_rank = widened(straggler_by_rank, ranks, n_layers, n_ranks);
  slowest_steps = widened(slowest_steps, ranks, n_layers, n_ranks);
  cost_sums.resize(n_ranks * kCostSums, 0);
  ranks = n_ranks;
}

void RankTime::add(DispatchValues& dispatch) {
  if (layers == 0 || !dispatch.contains("layer_end")) return;
  const auto& ends = dispatch.values<float>("layer_end");
  const auto& begins = dispatch.values<double>("step_begin");
  const auto& slots = dispatch.values<std::uint32_t>("expert_slots");
  const auto& placement = dispatch.values<std::int32_t>("placement");
  const auto& logical = dispatch.values<std::uint16_t>("logical");
  const std::size_t n_steps = dispatch.shape("layer_end")[0];
  const std::size_t n_ranks = dispatch.shape("layer_end")[2];
  const std::size_t n_physical = dispatch.shape("expert_slots")[2];
  const auto n_layers = static_cast<std::size_t>(layers);
  make_room(n_ranks);
  steps += n_steps;
  for (const double uncertainty : dispatch.values<double>("clock_uncertainty"))
    clock_uncertainty = std::max(clock_uncertainty, uncertainty);

  for (std::size_t s = 0; s < n_steps; ++s)
    for (std::size_t l = 0; l < n_layers; ++l) {
      const std::size_t row = s * n_layers + l;
      const float* of_layer = ends.data() + row * n_ranks * kLayerParts;
      // On the common clock, less the first rank's begin: what is left keeps its digits.
      const auto end_of = [&](std::size_t r, Part part) {
        return begins[s * n_ranks + r] - begins[s * n_ranks] +
               static_cast<double>(of_layer[r * kLayerParts + static_cast<std::size_t>(part)]);
      };
      const auto length_of = [&](std::size_t r, Part part) {
        const float* end = of_layer + r * kLayerParts + static_cast<std::size_t>(part);
        return static_cast<double>(end[0]) - static_cast<double>(end[-1]);
      };
      double last_come = end_of(0, Part::router);
      double last_sent = end_of(0, Part::scatter);
      for (std::size_t r = 1; r < n_ranks; ++r) {
        last_come = std::max(last_come, end_of(r, Part::router));
        last_sent = std::max(last_sent, end_of(r, Part::scatter));
      }

      LayerStep step(n_ranks);
      const std::uint32_t* of_experts = slots.data() + row * n_physical;
      const std::int32_t* rank_of = placement.data() + l * n_physical;
      for (std::size_t p = 0; p < n_physical; ++p) {
        const auto r = static_cast<std::size_t>(rank_of[p]);
        step.slots[r] += of_experts[p];
        step.experts[r] += of_experts[p] > 0 ? 1 : 0;
      }
      for (std::size_t r = 0; r < n_ranks; ++r) {
        const std::size_t cell = l * ranks + r;
        const double dispatch_wait = last_come - end_of(r, Part::router);
        const double combine_wait = std::min(last_sent - end_of(r, Part::scatter), length_of(r, Part::combine_wait));
        step.seconds[r] = length_of(r, Part::experts);
        seconds.dispatch_wait[cell] += dispatch_wait;
        seconds.dispatch[cell] += length_of(r, Part::dispatch) + length_of(r, Part::dispatch_wait) +
                                  length_of(r, Part::group) - dispatch_wait;
        seconds.experts[cell] += step.seconds[r];
        seconds.combine_wait[cell] += combine_wait;
        seconds.combine[cell] +=
            length_of(r, Part::scatter) + length_of(r, Part::combine_wait) + length_of(r, Part::combine) - combine_wait;
        add_measurement(CostSums(cost_sums.data() + r * kCostSums, kCostSums), step.slots[r], step.experts[r],
                        step.seconds[r]);
      }

      if (std::accumulate(step.slots.begin(), step.slots.end(), 0.0) == 0) continue;
      const auto slowest = static_cast<std::size_t>(std::ranges::max_element(step.seconds) - step.seconds.begin());
      const double mean = std::accumulate(step.seconds.begin(), step.seconds.end(), 0.0) / static_cast<double>(n_ranks);
      const double excess = step.seconds[slowest] - mean;
      straggler_seconds[l] += excess;
      straggler_by_rank[l * ranks + slowest] += excess;
      ++slowest_steps[l * ranks + slowest];
      if (step.slots[slowest] == 0) continue;
      for (std::size_t p = 0; p < n_physical; ++p)
        if (static_cast<std::size_t>(rank_of[p]) == slowest)
          straggler_by_expert[l * static_cast<std::size_t>(experts) + logical[l * n_physical + p]] +=
              excess * of_experts[p] / step.slots[slowest];
    }
}

void RankTime::reduce_to_root(const Communicator& comm) {
  make_room(static_cast<std::size_t>(comm.max(static_cast<std::int64_t>(ranks))));
  steps = static_cast<std::uint64_t>(comm.sum(static_cast<std::int64_t>(steps)));
  clock_uncertainty = comm.max(clock_uncertainty);
  comm.sum_to_root(slowest_steps);
  for (const Sum& sum : kSums) comm.sum_to_root(seconds.*sum.member);
  for (auto* sums : {&straggler_seconds, &straggler_by_rank, &straggler_by_expert, &cost_sums}) comm.sum_to_root(*sums);
}

std::vector<Table> rank_time_tables(const std::vector<const RankTime*>& datasets) {
  std::vector<Table> tables;
  std::size_t n_ranks = 0;
  for (const RankTime* time : datasets) n_ranks = std::max(n_ranks, time->ranks);
  if (n_ranks == 0) return tables;
  const std::uint64_t n_datasets = datasets.size();
  const auto n_layers = static_cast<std::size_t>(datasets.front()->layers);
  const auto n_experts = static_cast<std::uint64_t>(datasets.front()->experts);
  const auto add = [&](const std::string& name, std::vector<std::string> dimensions, std::vector<std::uint64_t> shape,
                       const char* units, const char* long_name, auto value_of) {
    decltype(value_of(*datasets.front())) values;
    for (const RankTime* time : datasets) {
      const auto of_dataset = value_of(*time);
      values.insert(values.end(), of_dataset.begin(), of_dataset.end());
    }
    dimensions.insert(dimensions.begin(), "dataset");
    shape.insert(shape.begin(), n_datasets);
    tables.push_back({"/ranks/" + name, std::move(dimensions), std::move(shape), std::move(values), units, long_name});
  };
  const auto wide = [&](const RankTime& time, const auto& matrix) {
    return widened(matrix, time.ranks, n_layers, n_ranks);
  };
  add("timed_steps", {}, {}, "1", "steps whose parts were timed",
      [](const RankTime& t) { return std::vector<std::uint64_t>{t.steps}; });
  add("clock_uncertainty", {}, {}, "s", "that a rank's clock was brought to rank 0's with, the largest",
      [](const RankTime& t) { return std::vector<double>{t.clock_uncertainty}; });
  for (const Sum& sum : kSums)
    add(sum.name, {"layer", "rank"}, {n_layers, n_ranks}, "s", sum.long_name,
        [&](const RankTime& t) { return wide(t, t.seconds.*sum.member); });
  add("layer_straggler_seconds", {"layer"}, {n_layers}, "s",
      "sum over steps of slowest minus mean rank's seconds of the experts",
      [](const RankTime& t) { return t.straggler_seconds; });
  add("slowest_steps", {"layer", "rank"}, {n_layers, n_ranks}, "1", "steps in which the rank's experts took longest",
      [&](const RankTime& t) { return wide(t, t.slowest_steps); });
  add("straggler_by_rank", {"layer", "rank"}, {n_layers, n_ranks}, "s",
      "layer_straggler_seconds by the rank that was the slowest",
      [&](const RankTime& t) { return wide(t, t.straggler_by_rank); });
  add("straggler_by_expert", {"layer", "expert"}, {n_layers, n_experts}, "s",
      "the same, shared among the slowest rank's experts in proportion to their slots",
      [](const RankTime& t) { return t.straggler_by_expert; });
  add("cost_sums", {"rank", "cost_sum"}, {n_ranks, kCostSums}, "1",
      "over layers and steps, of slots s, experts with a slot e and seconds t of the experts: sums of 1, s, e, t, ss, "
      "se, ee, "
      "st, et, tt",
      [&](const RankTime& t) {
        std::vector<double> sums = t.cost_sums;
        sums.resize(n_ranks * kCostSums, 0);
        return sums;
      });

  const auto of_rank = [](const RankTime& t, std::size_t r) {
    return CostSumsView(t.cost_sums.data() + r * kCostSums, kCostSums);
  };
  const auto pooled = [&](const RankTime& t) {
    std::array<double, kCostSums> sums{};
    for (std::size_t i = 0; i < t.cost_sums.size(); ++i) sums[i % kCostSums] += t.cost_sums[i];
    return fit_cost_model(sums);
  };
  const auto by_rank = [&](const RankTime& t, auto values_of) {
    std::vector<double> values;
    const std::array<double, kCostSums> none{};
    for (std::size_t r = 0; r < n_ranks; ++r)
      for (const double value : values_of(r < t.ranks ? of_rank(t, r) : CostSumsView(none))) values.push_back(value);
    return values;
  };
  const char* const terms =
      "seconds of a rank's experts in a layer of a step: intercept, for each slot, for each expert "
      "with a slot; least squares";
  add("cost_model", {"term"}, {3}, "s", terms, [&](const RankTime& t) {
    const CostModel model = pooled(t);
    return std::vector<double>{model.intercept, model.per_slot, model.per_expert};
  });
  add("cost_model_covariance", {"term", "term2"}, {3, 3}, "s2", "covariance of the three", [&](const RankTime& t) {
    const CostModel model = pooled(t);
    return std::vector<double>(model.covariance.begin(), model.covariance.end());
  });
  add("cost_model_r_squared", {}, {}, "1", "share of the seconds' variance that the model explains",
      [&](const RankTime& t) { return std::vector<double>{pooled(t).r_squared}; });
  add("cost_model_of_rank", {"rank", "term"}, {n_ranks, 3}, "s", "the same model fitted to each rank alone",
      [&](const RankTime& t) {
        return by_rank(t, [](CostSumsView sums) {
          const CostModel model = fit_cost_model(sums);
          return std::array{model.intercept, model.per_slot, model.per_expert};
        });
      });
  add("cost_model_of_rank_r_squared", {"rank"}, {n_ranks}, "1", "share of the rank's variance that its model explains",
      [&](const RankTime& t) {
        return by_rank(t, [](CostSumsView sums) { return std::array{fit_cost_model(sums).r_squared}; });
      });
  add("slots_seconds_correlation", {"rank"}, {n_ranks}, "1",
      "Pearson's correlation of the rank's seconds with its slots, over layers and steps", [&](const RankTime& t) {
        return by_rank(t, [](CostSumsView sums) { return std::array{slots_seconds_correlation(sums)}; });
      });
  return tables;
}

std::vector<RankTime> from_rank_time_tables(const TableIndex& tables, std::size_t n_datasets, int n_layers,
                                            int n_experts) {
  std::vector<RankTime> datasets(n_datasets, RankTime(n_layers, n_experts));
  if (tables.find("/ranks/cost_sums") == nullptr) return datasets;
  const std::size_t n_ranks = tables.at("/ranks/cost_sums").shape.at(1);
  for (RankTime& time : datasets) time.make_room(n_ranks);
  const auto read = [&](const std::string& name, auto member_of) {
    using Column = std::remove_reference_t<decltype(member_of(datasets.front()))>;
    const std::size_t n = n_datasets == 0 ? 0 : member_of(datasets.front()).size();
    const Column& values = tables.values<typename Column::value_type>("/ranks/" + name, n * n_datasets);
    for (std::size_t d = 0; d < n_datasets; ++d)
      std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(d * n), n, member_of(datasets[d]).begin());
  };
  for (const Sum& sum : kSums)
    read(sum.name, [&](RankTime& t) -> std::vector<double>& { return t.seconds.*sum.member; });
  read(
      "layer_straggler_seconds", [](RankTime & t) -> auto& { return t.straggler_seconds; });
  read(
      "slowest_steps", [](RankTime & t) -> auto& { return t.slowest_steps; });
  read(
      "straggler_by_rank", [](RankTime & t) -> auto& { return t.straggler_by_rank; });
  read(
      "straggler_by_expert", [](RankTime & t) -> auto& { return t.straggler_by_expert; });
  read(
      "cost_sums", [](RankTime & t) -> auto& { return t.cost_sums; });
  const auto& steps = tables.values<std::uint64_t>("/ranks/timed_steps", n_datasets);
  const auto& uncertainty = tables.values<double>("/ranks/clock_uncertainty", n_datasets);
  for (std::size_t d = 0; d < n_datasets; ++d) {
    datasets[d].steps = steps[d];
    datasets[d].clock_uncertainty = uncertainty[d];
  }
  return datasets;
}

}  // namespace switchyard
