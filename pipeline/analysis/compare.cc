#include "pipeline/analysis/compare.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "io/routing_schema.h"
#include "io/stats_file.h"
#include "parallel/error.h"
#include "pipeline/analysis/dataset_names.h"
#include "pipeline/analysis/document_groups.h"
#include "pipeline/analysis/metrics.h"
#include "pipeline/analysis/resampling.h"
#include "pipeline/analysis/statistics.h"
#include "pipeline/analysis/table_index.h"

namespace switchyard {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

bool groups_add_up(const Accumulators& a) {
  const auto experts = static_cast<std::uint64_t>(a.shape.experts);
  std::vector<std::uint64_t> sums(static_cast<std::size_t>(a.shape.layers) * experts, 0);  // [L, E]
  for (std::size_t i = 0; i < a.group_counts.cells().size(); ++i) {
    const std::uint64_t cell = a.group_counts.cells()[i];
    sums[cell / experts / kDocumentGroups * experts + cell % experts] += a.group_counts.counts()[i];
  }
  for (int l = 0; l < a.shape.layers; ++l) {
    const std::vector<std::uint64_t> counts = a.layer_counts(l);
    if (!std::equal(counts.begin(), counts.end(), sums.begin() + static_cast<std::ptrdiff_t>(l) * a.shape.experts))
      return false;
  }
  return true;
}

std::vector<GroupedSlots> datasets_of(const std::filesystem::path& file) {
  const std::vector<Table> tables = read_tables(file, std::string(kStatsFormat));
  const TableIndex index(tables, "", file.string());
  for (const char* path : {"/load/count", "/groups/indptr"})
    static_cast<void>(index.at(path));  // of dense models, of old records
  std::vector<GroupedSlots> datasets;
  for (const Dataset& stored : from_statistics_tables(tables, file.string()).datasets) {
    if (!groups_add_up(stored.accumulators))
      index.fail("/groups", "the groups of dataset " + stored.name + " do not add up to its slots");
    datasets.push_back(grouped_slots(stored));
  }
  return datasets;
}

/// Shares of each layer: slots [L, E] -> usage [L, E]; 0 where a layer has no slot.
template <typename To>
void to_usage(std::span<const double> slots, std::size_t experts, To* usage) {
  for (std::size_t begin = 0; begin < slots.size(); begin += experts) {
    const auto layer = slots.subspan(begin, experts);
    const double sum = std::accumulate(layer.begin(), layer.end(), 0.0);
    for (std::size_t e = 0; e < experts; ++e) usage[begin + e] = static_cast<To>(sum > 0 ? layer[e] / sum : 0.0);
  }
}

std::vector<double> total_slots(const GroupedSlots& dataset) {
  std::vector<double> sums(dataset.row(), 0);
  for (std::size_t i = 0; i < dataset.slots.size(); ++i) sums[i % sums.size()] += dataset.slots[i];
  return sums;
}

using Metric = double (*)(std::span<const double>, std::span<const double>);
constexpr std::array<Metric, 2> kMetrics = {jensen_shannon, total_variation};

/// [L] a metric of two usages [L, E].
std::vector<double> by_layer(Metric metric, std::span<const double> a, std::span<const double> b, std::size_t experts) {
  std::vector<double> distances;
  for (std::size_t begin = 0; begin < a.size(); begin += experts)
    distances.push_back(metric(a.subspan(begin, experts), b.subspan(begin, experts)));
  return distances;
}

/// Fills bias, low and high from resampled distances.
void add_interval(Distance& distance, std::vector<double> resampled, double confidence) {
  if (resampled.empty()) {
    distance.bias = distance.low = distance.high = kNan;
    return;
  }
  const double mean = std::accumulate(resampled.begin(), resampled.end(), 0.0) / static_cast<double>(resampled.size());
  std::sort(resampled.begin(), resampled.end());
  distance.bias = mean - distance.value;
  distance.low = std::max(0.0, 2 * distance.value - sorted_quantile(resampled, (1 + confidence) / 2));
  distance.high = std::max(0.0, 2 * distance.value - sorted_quantile(resampled, (1 - confidence) / 2));
}

/// [metrics][L] permutations whose distance is at least the observed one.
std::array<std::vector<std::uint64_t>, 2> permute(const GroupedSlots& a, const GroupedSlots& b,
                                                  const std::array<std::vector<double>, 2>& observed,
                                                  const CompareOptions& options) {
  constexpr double kRounding = 1e-12;  // the observed deal, met again, may differ by the order of its sums
  const std::size_t row = a.row();
  const auto experts = static_cast<std::size_t>(a.experts);
  const std::size_t n = a.groups() + b.groups();
  const std::size_t dealt = std::min(a.groups(), b.groups());  // the smaller heap is summed, the other is the rest
  const auto group = [&](std::size_t g) {
    return g < a.groups() ? a.slots.data() + g * row : b.slots.data() + (g - a.groups()) * row;
  };
  std::vector<double> all = total_slots(a);
  const std::vector<double> of_b = total_slots(b);
  std::transform(all.begin(), all.end(), of_b.begin(), all.begin(), std::plus<>());

  std::array<std::vector<std::uint64_t>, 2> at_least;
  for (auto& counts : at_least) counts.assign(static_cast<std::size_t>(a.layers), 0);
#pragma omp parallel
  {
    std::array<std::vector<std::uint64_t>, 2> mine = {std::vector<std::uint64_t>(at_least[0].size(), 0),
                                                      std::vector<std::uint64_t>(at_least[0].size(), 0)};
    std::vector<std::size_t> order(n);
    std::vector<double> heap(row);
    std::vector<double> rest(row);
    std::vector<double> heap_usage(row);
    std::vector<double> rest_usage(row);
#pragma omp for schedule(dynamic, 8)
    for (int permutation = 0; permutation < options.permutations; ++permutation) {
      std::mt19937_64 random =
          random_stream(options.seed, a.name + '\n' + b.name, static_cast<std::uint64_t>(permutation));
      std::iota(order.begin(), order.end(), std::size_t{0});
      std::fill(heap.begin(), heap.end(), 0.0);
      for (std::size_t i = 0; i < dealt; ++i) {
        std::swap(order[i], order[i + random_below(n - i, random)]);
        const double* slots = group(order[i]);
        for (std::size_t cell = 0; cell < row; ++cell) heap[cell] += slots[cell];
      }
      std::transform(all.begin(), all.end(), heap.begin(), rest.begin(), std::minus<>());
      to_usage<double>(heap, experts, heap_usage.data());
      to_usage<double>(rest, experts, rest_usage.data());
      for (std::size_t m = 0; m < kMetrics.size(); ++m) {
        const std::vector<double> distances = by_layer(kMetrics[m], heap_usage, rest_usage, experts);
        for (std::size_t l = 0; l < distances.size(); ++l)
          mine[m][l] += distances[l] >= observed[m][l] - kRounding ? 1 : 0;
      }
    }
#pragma omp critical
    for (std::size_t m = 0; m < kMetrics.size(); ++m)
      std::transform(at_least[m].begin(), at_least[m].end(), mine[m].begin(), at_least[m].begin(), std::plus<>());
  }
  return at_least;
}

}  // namespace

GroupedSlots grouped_slots(const Dataset& stored) {
  const Accumulators& a = stored.accumulators;
  GroupedSlots dataset{stored.name, a.shape.layers, a.shape.experts, {}};
  const auto layers = static_cast<std::size_t>(a.shape.layers);
  const auto experts = static_cast<std::size_t>(a.shape.experts);
  std::vector<double> all(kDocumentGroups * dataset.row(), 0);  // [groups, L, E]
  for (std::size_t i = 0; i < a.group_counts.cells().size(); ++i) {
    const std::uint64_t cell = a.group_counts.cells()[i];
    const std::uint64_t layer = cell / experts / kDocumentGroups;
    const std::uint64_t group = cell / experts % kDocumentGroups;
    all[(group * layers + layer) * experts + cell % experts] = static_cast<double>(a.group_counts.counts()[i]);
  }
  for (std::size_t g = 0; g < kDocumentGroups; ++g) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(g * dataset.row());
    const auto end = begin + static_cast<std::ptrdiff_t>(dataset.row());
    if (std::any_of(begin, end, [](double slots) { return slots > 0; }))
      dataset.slots.insert(dataset.slots.end(), begin, end);
  }
  return dataset;
}

std::vector<GroupedSlots> read_grouped_slots(const std::vector<std::filesystem::path>& files) {
  std::vector<GroupedSlots> datasets;
  std::vector<NamedSource> sources;
  for (const std::filesystem::path& file : files) {
    sources.push_back({file, {}});
    for (GroupedSlots& dataset : datasets_of(file)) {
      sources.back().datasets.push_back(dataset.name);
      datasets.push_back(std::move(dataset));
      if (datasets.back().row() != datasets[0].row() || datasets.back().layers != datasets[0].layers)
        throw Error("is of a model with " + std::to_string(datasets.back().layers) + " MoE layers and " +
                        std::to_string(datasets.back().experts) + " experts, the others have " +
                        std::to_string(datasets[0].layers) + " and " + std::to_string(datasets[0].experts),
                    file.string(), "compare models of one shape");
    }
  }
  const std::vector<std::string> names = dataset_names(sources);
  for (std::size_t d = 0; d < names.size(); ++d) {
    if (std::find(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(d), names[d]) !=
        names.begin() + static_cast<std::ptrdiff_t>(d))
      throw Error("two datasets are named " + names[d], "",
                  "name each file once, or give their folders different names");
    datasets[d].name = names[d];
  }
  return datasets;
}

std::vector<float> bootstrap_usage(const GroupedSlots& dataset, const CompareOptions& options) {
  const std::size_t n = dataset.groups();
  const std::size_t row = dataset.row();
  if (n < 2) return {};
  std::vector<float> usage_of(static_cast<std::size_t>(options.bootstrap) * row);
#pragma omp parallel for schedule(dynamic, 8)
  for (int resample = 0; resample < options.bootstrap; ++resample) {
    const std::vector<std::uint32_t> times =
        bootstrap_times(n, options.seed, dataset.name, static_cast<std::uint64_t>(resample));
    std::vector<double> sums(row, 0);
    for (std::size_t g = 0; g < n; ++g) {
      if (times[g] == 0) continue;
      for (std::size_t cell = 0; cell < row; ++cell) sums[cell] += times[g] * dataset.slots[g * row + cell];
    }
    to_usage(sums, static_cast<std::size_t>(dataset.experts),
             usage_of.data() + static_cast<std::size_t>(resample) * row);
  }
  return usage_of;
}

PairDistances compare_pair(const GroupedSlots& a, const GroupedSlots& b, std::span<const float> a_usage,
                           std::span<const float> b_usage, const CompareOptions& options) {
  const auto experts = static_cast<std::size_t>(a.experts);
  const std::size_t row = a.row();
  std::vector<double> usage_a(row);
  std::vector<double> usage_b(row);
  to_usage<double>(total_slots(a), experts, usage_a.data());
  to_usage<double>(total_slots(b), experts, usage_b.data());
  std::array<std::vector<double>, 2> observed;
  for (std::size_t m = 0; m < kMetrics.size(); ++m) observed[m] = by_layer(kMetrics[m], usage_a, usage_b, experts);

  // Resampled distances, [metrics][L][resamples].
  const std::size_t resamples = std::min(a_usage.size(), b_usage.size()) / std::max<std::size_t>(row, 1);
  std::array<std::vector<std::vector<double>>, 2> resampled;
  for (auto& of_metric : resampled) of_metric.resize(static_cast<std::size_t>(a.layers));
  for (std::size_t r = 0; r < resamples; ++r) {
    const std::vector<double> of_a(a_usage.begin() + static_cast<std::ptrdiff_t>(r * row),
                                   a_usage.begin() + static_cast<std::ptrdiff_t>((r + 1) * row));
    const std::vector<double> of_b(b_usage.begin() + static_cast<std::ptrdiff_t>(r * row),
                                   b_usage.begin() + static_cast<std::ptrdiff_t>((r + 1) * row));
    for (std::size_t m = 0; m < kMetrics.size(); ++m) {
      const std::vector<double> distances = by_layer(kMetrics[m], of_a, of_b, experts);
      for (std::size_t l = 0; l < distances.size(); ++l) resampled[m][l].push_back(distances[l]);
    }
  }
  const bool testable = a.groups() >= 2 && b.groups() >= 2;
  const auto at_least = testable ? permute(a, b, observed, options) : std::array<std::vector<std::uint64_t>, 2>{};

  PairDistances result;
  const std::array<std::vector<Distance>*, 2> outputs = {&result.jensen_shannon, &result.total_variation};
  for (std::size_t m = 0; m < kMetrics.size(); ++m) {
    std::vector<double> p;
    for (std::size_t l = 0; l < observed[m].size(); ++l) {
      Distance distance{.value = observed[m][l]};
      add_interval(distance, std::move(resampled[m][l]), options.confidence);
      distance.p = testable ? (1 + static_cast<double>(at_least[m][l])) / (1 + options.permutations) : kNan;
      p.push_back(distance.p);
      outputs[m]->push_back(distance);
    }
    const std::vector<double> q = benjamini_hochberg(p);
    for (std::size_t l = 0; l < q.size(); ++l) (*outputs[m])[l].q = q[l];
  }
  return result;
}

std::vector<double> benjamini_hochberg(std::span<const double> p) {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < p.size(); ++i)
    if (!std::isnan(p[i])) order.push_back(i);
  std::sort(order.begin(), order.end(), [&](std::size_t i, std::size_t j) { return p[i] < p[j]; });
  std::vector<double> adjusted(p.size(), kNan);
  double least = 1;
  for (std::size_t rank = order.size(); rank-- > 0;) {
    least = std::min(least, p[order[rank]] * static_cast<double>(order.size()) / static_cast<double>(rank + 1));
    adjusted[order[rank]] = least;
  }
  return adjusted;
}

double total_variation(std::span<const double> p, std::span<const double> q) {
  double sum = 0;
  for (std::size_t i = 0; i < p.size(); ++i) sum += std::abs(p[i] - q[i]);
  return sum / 2;
}

std::vector<Table> pooled_tables(const std::vector<GroupedSlots>& datasets) {
  const std::size_t row = datasets.front().row();
  const auto experts = static_cast<std::size_t>(datasets.front().experts);
  const auto n_layers = static_cast<std::uint64_t>(datasets.front().layers);
  std::vector<std::vector<double>> slots;
  std::vector<double> pooled(row, 0);
  for (const GroupedSlots& dataset : datasets) {
    slots.push_back(total_slots(dataset));
    std::transform(pooled.begin(), pooled.end(), slots.back().begin(), pooled.begin(), std::plus<>());
  }
  std::vector<double> pooled_usage(row);
  to_usage<double>(pooled, experts, pooled_usage.data());
  std::vector<double> ratio;
  for (const std::vector<double>& of_dataset : slots) {
    std::vector<double> usage_of(row);
    to_usage<double>(of_dataset, experts, usage_of.data());
    std::transform(usage_of.begin(), usage_of.end(), pooled_usage.begin(), std::back_inserter(ratio), std::divides<>());
  }
  std::vector<double> information;
  std::vector<double> bias;
  for (std::size_t l = 0; l < n_layers; ++l) {
    std::vector<std::uint64_t> table;  // [datasets, E]
    for (const std::vector<double>& of_dataset : slots)
      for (std::size_t e = 0; e < experts; ++e)
        table.push_back(static_cast<std::uint64_t>(of_dataset[l * experts + e]));
    information.push_back(mutual_information(table, datasets.size(), experts));
    bias.push_back(miller_madow_bias(table, datasets.size(), experts));
  }
  std::vector<Table> tables;
  tables.push_back({"/specialisation/usage_ratio",
                    {"dataset", "layer", "expert"},
                    {datasets.size(), n_layers, experts},
                    std::move(ratio),
                    "1",
                    "usage of the expert on the dataset over its usage on all datasets pooled"});
  tables.push_back({"/specialisation/pooled_usage",
                    {"layer", "expert"},
                    {n_layers, experts},
                    std::move(pooled_usage),
                    "1",
                    "usage on all datasets pooled"});
  tables.push_back({"/dataset_information/mutual_information",
                    {"layer"},
                    {n_layers},
                    std::move(information),
                    "nats",
                    "mutual information of expert and dataset, over slots (plug-in)"});
  tables.push_back({"/dataset_information/mutual_information_bias",
                    {"layer"},
                    {n_layers},
                    std::move(bias),
                    "nats",
                    "Miller-Madow correction to subtract"});
  return tables;
}

std::vector<Table> distance_tables(const std::vector<GroupedSlots>& datasets, const std::vector<PairDistances>& pairs) {
  struct Column {
    const char* suffix;
    double Distance::*member;
    const char* long_name;  // behind the metric's name
  };
  constexpr std::array<Column, 6> kColumns = {{{"", &Distance::value, ""},
                                               {"_bias", &Distance::bias, ": mean of the resamples minus the value"},
                                               {"_low", &Distance::low, ": lower end of the interval"},
                                               {"_high", &Distance::high, ": upper end of the interval"},
                                               {"_p", &Distance::p, ": p-value of the permutation test"},
                                               {"_q", &Distance::q, ": p adjusted over layers"}}};
  const std::size_t n = datasets.size();
  const auto n_layers = static_cast<std::size_t>(datasets.front().layers);
  std::vector<Table> tables;
  for (const auto& [name, units, about, member] :
       {std::tuple("jsd", "nats", "Jensen-Shannon divergence of usage", &PairDistances::jensen_shannon),
        std::tuple("tv", "1", "total variation of usage", &PairDistances::total_variation)}) {
    for (const Column& column : kColumns) {
      std::vector<double> values(n * n * n_layers, kNan);
      std::size_t pair = 0;
      for (std::size_t i = 0; i < n; ++i)
        for (std::size_t j = i + 1; j < n; ++j, ++pair)
          for (std::size_t l = 0; l < n_layers; ++l)
            values[(i * n + j) * n_layers + l] = values[(j * n + i) * n_layers + l] =
                (pairs[pair].*member)[l].*column.member;
      const bool is_probability = column.member == &Distance::p || column.member == &Distance::q;
      tables.push_back({std::string("/compare/") + name + column.suffix,
                        {"dataset", "dataset2", "layer"},
                        {n, n, n_layers},
                        std::move(values),
                        is_probability ? "1" : units,
                        std::string(about) + column.long_name});
    }
  }
  return tables;
}

}  // namespace switchyard
