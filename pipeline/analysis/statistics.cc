#include "pipeline/analysis/statistics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <iterator>
#include <numeric>
#include <random>
#include <span>

#include "pipeline/analysis/metrics.h"
#include "pipeline/analysis/model_fact_tables.h"
#include "pipeline/analysis/table_index.h"

namespace switchyard {
namespace {

constexpr std::uint64_t kMinTokenCount = 10;
constexpr std::uint64_t kShuffleSeed = 0;
constexpr double kNatsPerBit = 0.6931471805599453;

/// Builds tables with the leading dimensions (dataset, layer) or (dataset).
class TableMaker {
 public:
  TableMaker(const std::vector<Dataset>& datasets, std::vector<Table>& tables) : datasets_(datasets), tables_(tables) {}

  /// value_of(dataset) -> number.
  template <typename F>
  void by_dataset(const std::string& path, const char* units, const char* long_name, F value_of) {
    using Value = decltype(value_of(datasets_.front()));
    std::vector<Value> values;
    for (const Dataset& dataset : datasets_) values.push_back(value_of(dataset));
    tables_.push_back({path, {"dataset"}, {datasets_.size()}, std::move(values), units, long_name});
  }

  /// value_of(dataset, layer) -> number, for `n_layers` values of the dimension.
  template <typename F>
  void by_layer(const std::string& path, const char* units, const char* long_name, F value_of,
                const char* dimension = "layer") {
    using Value = decltype(value_of(datasets_.front(), 0));
    std::vector<Value> values;
    const int n_layers = layers(dimension);
    for (const Dataset& dataset : datasets_)
      for (int layer = 0; layer < n_layers; ++layer) values.push_back(value_of(dataset, layer));
    tables_.push_back({path,
                       {"dataset", dimension},
                       {datasets_.size(), static_cast<std::uint64_t>(n_layers)},
                       std::move(values),
                       units,
                       long_name});
  }

  /// values_of(dataset, layer) -> vector of as many numbers as `inner` dimensions hold.
  template <typename F>
  void by_layer_and(const std::string& path, const std::vector<std::pair<std::string, std::uint64_t>>& inner,
                    const char* units, const char* long_name, F values_of, const char* dimension = "layer") {
    using Values = decltype(values_of(datasets_.front(), 0));
    Values values;
    const int n_layers = layers(dimension);
    for (const Dataset& dataset : datasets_)
      for (int layer = 0; layer < n_layers; ++layer) {
        const Values row = values_of(dataset, layer);
        values.insert(values.end(), row.begin(), row.end());
      }
    Table table{path,
                {"dataset", dimension},
                {datasets_.size(), static_cast<std::uint64_t>(n_layers)},
                std::move(values),
                units,
                long_name};
    for (const auto& [name, size] : inner) {
      table.dimensions.push_back(name);
      table.shape.push_back(size);
    }
    tables_.push_back(std::move(table));
  }

 private:
  int layers(const std::string& dimension) const {
    const int n = datasets_.front().accumulators.shape.layers;
    return dimension == "layer_pair" ? std::max(0, n - 1) : n;
  }
  const std::vector<Dataset>& datasets_;
  std::vector<Table>& tables_;
};

/// One layer's part of an accumulator, [size].
template <typename T>
std::span<const T> part(const std::vector<T>& values, int layer, std::size_t size) {
  return std::span(values).subspan(static_cast<std::size_t>(layer) * size, size);
}

double share(std::uint64_t part_count, std::uint64_t whole) {
  return whole == 0 ? std::numeric_limits<double>::quiet_NaN()
                    : static_cast<double>(part_count) / static_cast<double>(whole);
}

void add_load(TableMaker& make, std::size_t n_experts, double top_k) {
  const auto counts = [](const Dataset& d, int l) { return d.accumulators.layer_counts(l); };
  const auto scaled = [=](const Dataset& d, int l, double factor) {
    std::vector<double> values = usage(counts(d, l));
    for (double& v : values) v *= factor;
    return values;
  };
  const auto experts = std::vector<std::pair<std::string, std::uint64_t>>{{"expert", n_experts}};
  const auto n = static_cast<double>(n_experts);
  make.by_layer_and("/load/count", experts, "1", "slots sent to the expert", counts);
  make.by_layer_and("/load/usage", experts, "1", "share of slots; sums to 1, ideal 1/E",
                    [=](const Dataset& d, int l) { return scaled(d, l, 1); });
  make.by_layer_and("/load/token_share", experts, "1", "share of tokens that chose the expert; sums to k, ideal k/E",
                    [=](const Dataset& d, int l) { return scaled(d, l, top_k); });
  make.by_layer_and("/load/utilisation", experts, "1", "slots over the ideal T k / E",
                    [=](const Dataset& d, int l) { return scaled(d, l, n); });
  make.by_layer("/load/cv", "1", "coefficient of variation of slots over experts (population)",
                [=](const Dataset& d, int l) { return coefficient_of_variation(counts(d, l)); });
  make.by_layer("/load/gini", "1", "Gini coefficient of slots over experts",
                [=](const Dataset& d, int l) { return gini(counts(d, l)); });
  make.by_layer("/load/max_over_mean", "1", "most loaded expert's slots over the mean",
                [=](const Dataset& d, int l) { return max_over_mean(counts(d, l)); });
  make.by_layer("/load/min_over_mean", "1", "least loaded expert's slots over the mean",
                [=](const Dataset& d, int l) { return min_over_mean(counts(d, l)); });
  make.by_layer("/load/dead", "1", "experts without a slot",
                [=](const Dataset& d, int l) { return dead_experts(counts(d, l)); });
  make.by_layer("/load/underused", "1", "experts with usage below 0.1 / E",
                [=](const Dataset& d, int l) { return underused_experts(counts(d, l)); });
  make.by_layer("/load/effective_experts", "1", "exp of the entropy of usage",
                [=](const Dataset& d, int l) { return effective_experts(counts(d, l)); });
  make.by_layer("/load/diversity", "1", "effective experts over E",
                [=](const Dataset& d, int l) { return effective_experts(counts(d, l)) / n; });
  const auto balancing = [=](const Dataset& d, int l) {
    return load_balancing_loss(counts(d, l), part(d.accumulators.probability_sum, l, n_experts),
                               d.accumulators.n_tokens());
  };
  make.by_layer("/load/balancing_loss", "1", "E sum_e f_e P_e with f_e = slots per token: k when balanced", balancing);
  make.by_layer("/load/balancing_loss_per_choice", "1",
                "the same over k, as MegaBlocks and OLMoE print it: 1 when balanced",
                [=](const Dataset& d, int l) { return balancing(d, l) / top_k; });
  make.by_layer("/load/z_loss", "1", "mean over tokens of (logsumexp of router logits)^2", [](const Dataset& d, int l) {
    return d.accumulators.z_sum[static_cast<std::size_t>(l)] / static_cast<double>(d.accumulators.n_tokens());
  });
}

void add_uncertainty(TableMaker& make, std::size_t n_experts, std::size_t top_k) {
  const auto at = [](const std::vector<Moments>& moments, int l) -> const Moments& {
    return moments[static_cast<std::size_t>(l)];
  };
  const double highest = std::log(static_cast<double>(n_experts));
  make.by_layer("/entropy/mean_bits", "bit", "mean router entropy",
                [=](const Dataset& d, int l) { return at(d.accumulators.entropy, l).mean / kNatsPerBit; });
  make.by_layer("/entropy/normalised", "1", "mean router entropy over ln E",
                [=](const Dataset& d, int l) { return at(d.accumulators.entropy, l).mean / highest; });
  make.by_layer("/entropy/std", "nats", "population standard deviation of router entropy",
                [=](const Dataset& d, int l) { return at(d.accumulators.entropy, l).deviation(); });
  make.by_layer("/entropy/median", "nats", "median router entropy, from the histogram", [=](const Dataset& d, int l) {
    return histogram_quantile(part(d.accumulators.entropy_histogram, l, kHistogramBins), 0, highest, 0.5);
  });
  make.by_layer("/margin/std", "1", "population standard deviation of the margin",
                [=](const Dataset& d, int l) { return at(d.accumulators.margin, l).deviation(); });
  make.by_layer("/margin/median", "1", "median margin, from the histogram", [=](const Dataset& d, int l) {
    return histogram_quantile(part(d.accumulators.margin_histogram, l, kHistogramBins), 0, 1, 0.5);
  });
  make.by_layer("/top_probability/confident_share", "1", "share of tokens whose largest probability exceeds 0.7",
                [](const Dataset& d, int l) {
                  return share(d.accumulators.confident[static_cast<std::size_t>(l)],
                               d.accumulators.top_probability[static_cast<std::size_t>(l)].n);
                });
  make.by_layer_and("/weight/mean", {{"expert", n_experts}}, "1",
                    "mean combine weight of the expert's slots; NaN without slots", [=](const Dataset& d, int l) {
                      const std::vector<std::uint64_t> counts = d.accumulators.layer_counts(l);
                      const auto sums = part(d.accumulators.weight_sum, l, top_k * n_experts);
                      std::vector<double> means(n_experts, 0);
                      for (std::size_t i = 0; i < sums.size(); ++i) means[i % n_experts] += sums[i];
                      for (std::size_t e = 0; e < n_experts; ++e) means[e] /= static_cast<double>(counts[e]);
                      return means;
                    });
  make.by_layer_and("/weight/slot_mean", {{"slot", top_k}}, "1", "mean combine weight of the j-th choice",
                    [=](const Dataset& d, int l) {
                      const auto sums = part(d.accumulators.weight_sum, l, top_k * n_experts);
                      std::vector<double> means(top_k, 0);
                      for (std::size_t i = 0; i < sums.size(); ++i)
                        means[i / n_experts] += sums[i] / static_cast<double>(d.accumulators.n_tokens());
                      return means;
                    });
}

void add_structure(TableMaker& make, std::size_t n_experts, std::size_t top_k) {
  const std::size_t square = n_experts * n_experts;
  make.by_layer_and("/coactivation/conditional", {{"expert", n_experts}, {"expert2", n_experts}}, "1",
                    "share of the expert's tokens that chose expert2 too", [=](const Dataset& d, int l) {
                      const auto table = part(d.accumulators.coactivation, l, square);
                      std::vector<double> shares(square);
                      for (std::size_t i = 0; i < square; ++i)
                        shares[i] = share(table[i], table[i / n_experts * (n_experts + 1)]);
                      return shares;
                    });
  make.by_layer_and("/coactivation/lift", {{"expert", n_experts}, {"expert2", n_experts}}, "1",
                    "tokens with both experts over what independent choices would give; NaN on the diagonal",
                    [=](const Dataset& d, int l) {
                      const auto table = part(d.accumulators.coactivation, l, square);
                      const auto tokens = static_cast<double>(d.accumulators.n_tokens());
                      std::vector<double> lift(square, std::numeric_limits<double>::quiet_NaN());
                      for (std::size_t i = 0; i < n_experts; ++i)
                        for (std::size_t j = 0; j < n_experts; ++j)
                          if (i != j)
                            lift[i * n_experts + j] = static_cast<double>(table[i * n_experts + j]) * tokens /
                                                      (static_cast<double>(table[i * (n_experts + 1)]) *
                                                       static_cast<double>(table[j * (n_experts + 1)]));
                      return lift;
                    });
  make.by_layer(
      "/flow/mutual_information", "nats", "mutual information of first choices at neighbouring MoE layers (plug-in)",
      [=](const Dataset& d, int l) {
        return mutual_information(part(d.accumulators.flow_top1, l, square), n_experts, n_experts);
      },
      "layer_pair");
  make.by_layer(
      "/flow/mutual_information_bias", "nats", "Miller-Madow correction to subtract",
      [=](const Dataset& d, int l) {
        return miller_madow_bias(part(d.accumulators.flow_top1, l, square), n_experts, n_experts);
      },
      "layer_pair");
  const auto positions = [=](const Dataset& d, int l) {
    return part(d.accumulators.position_count, l, kPositionBuckets * n_experts);
  };
  make.by_layer(
      "/position/mutual_information", "nats", "mutual information of expert and position bucket (plug-in)",
      [=](const Dataset& d, int l) { return mutual_information(positions(d, l), kPositionBuckets, n_experts); });
  make.by_layer(
      "/position/mutual_information_bias", "nats", "Miller-Madow correction to subtract",
      [=](const Dataset& d, int l) { return miller_madow_bias(positions(d, l), kPositionBuckets, n_experts); });
  make.by_layer("/repetition/top1_share", "1", "neighbouring tokens with the same first choice",
                [](const Dataset& d, int l) {
                  return share(d.accumulators.repeat_top1[static_cast<std::size_t>(l)], d.accumulators.repeat_pairs[0]);
                });
  make.by_layer("/repetition/any_share", "1", "neighbouring tokens with a common expert", [](const Dataset& d, int l) {
    return share(d.accumulators.repeat_any[static_cast<std::size_t>(l)], d.accumulators.repeat_pairs[0]);
  });
  make.by_dataset("/repetition/top1_null", "1", "the same for independent uniform choices: 1/E",
                  [=](const Dataset&) { return 1.0 / static_cast<double>(n_experts); });
  make.by_dataset(
      "/repetition/any_null", "1", "the same for independent uniform choices: 1 - C(E-k,k)/C(E,k)",
      [=](const Dataset&) { return intersection_null(static_cast<int>(n_experts), static_cast<int>(top_k)); });
}

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
/// Of a table whose rare cells are missing.
constexpr VocabularySpecialisation kUnknownSpecialisation = {kUnknown, kUnknown, kUnknown, kUnknown, kUnknown, 0};

void add_vocabulary(TableMaker& make) {
  for (std::size_t which = 0; which < kTokenTables; ++which) {
    const std::string group = "/tokens/" + std::string(kTokenTableNames[which]);
    // One pass over the table serves all columns.
    std::vector<std::vector<VocabularySpecialisation>> figures;
    const auto of = [&figures](std::size_t dataset, int layer) -> const VocabularySpecialisation& {
      return figures[dataset][static_cast<std::size_t>(layer)];
    };
    make.by_dataset(group + "/min_count", "1", "slots that a token id needs to take part in the specialisation",
                    [&](const Dataset& d) {
                      const Accumulators& a = d.accumulators;
                      std::vector<VocabularySpecialisation> layers(static_cast<std::size_t>(a.shape.layers),
                                                                   kUnknownSpecialisation);
#pragma omp parallel for schedule(dynamic, 1)
                      for (std::size_t l = 0; l < layers.size(); ++l)
                        if (a.token_bounds[which].undercount[l] == 0)
                          layers[l] = vocabulary_specialisation(a.token_tables[which], a.shape, static_cast<int>(l),
                                                                kMinTokenCount, kShuffleSeed);
                      figures.push_back(std::move(layers));
                      return kMinTokenCount;
                    });
    const auto column = [&](const char* name, const char* units, const char* long_name,
                            double VocabularySpecialisation::*member) {
      std::size_t next = 0;
      make.by_layer(group + "/" + name, units, long_name, [&, member](const Dataset& d, int l) {
        const double value = of(next, l).*member;
        if (l + 1 == d.accumulators.shape.layers) ++next;
        return value;
      });
    };
    column("specialisation", "1", "mean over token ids of the largest expert's share of the id's slots",
           &VocabularySpecialisation::mean);
    column("specialisation_weighted", "1", "the same weighted by the ids' slots", &VocabularySpecialisation::weighted);
    column("specialisation_baseline", "1", "the same after shuffling the slots' experts over token ids",
           &VocabularySpecialisation::baseline);
    column("mutual_information", "nats", "mutual information of expert and token id (plug-in)",
           &VocabularySpecialisation::information);
    column("mutual_information_bias", "nats", "Miller-Madow correction to subtract",
           &VocabularySpecialisation::information_bias);
  }
}

/// Draws of the largest expert's share when n slots are dealt by a layer's usage.
class ShuffledShare {
 public:
  explicit ShuffledShare(std::vector<double> usage) : usage_(std::move(usage)) {
    std::sort(usage_.begin(), usage_.end(), std::greater<>());
    std::partial_sum(usage_.begin(), usage_.end(), std::back_inserter(up_to_));
  }
  double draw(std::uint64_t n, std::mt19937_64& random) {
    const std::uint64_t largest = n < 4 * usage_.size() ? largest_of_few(n, random) : largest_of_many(n, random);
    return static_cast<double>(largest) / static_cast<double>(n);
  }

 private:
  /// Slot by slot.
  std::uint64_t largest_of_few(std::uint64_t n, std::mt19937_64& random) {
    counts_.assign(usage_.size(), 0);
    std::uniform_real_distribution<double> uniform(0, up_to_.back());
    std::uint64_t largest = 0;
    for (std::uint64_t slot = 0; slot < n; ++slot) {
      const auto expert = std::upper_bound(up_to_.begin(), up_to_.end() - 1, uniform(random)) - up_to_.begin();
      largest = std::max(largest, ++counts_[static_cast<std::size_t>(expert)]);
    }
    return largest;
  }

  /// Expert by expert, a binomial of what is left, until the next one would have to lie 8 deviations above its mean to
  /// become the largest (a chance below 1e-14).
  std::uint64_t largest_of_many(std::uint64_t n, std::mt19937_64& random) const {
    std::uint64_t left = n;
    std::uint64_t largest = 0;
    double mass = up_to_.back();
    for (std::size_t e = 0; e < usage_.size() && left > largest; ++e) {
      const double p = mass > 0 && e + 1 < usage_.size() ? std::clamp(usage_[e] / mass, 0.0, 1.0) : 1.0;
      const double mean = p * static_cast<double>(left);
      if (mean + 8 * std::sqrt(mean) + 16 < static_cast<double>(largest)) return largest;
      const auto here = std::binomial_distribution<std::uint64_t>(left, p)(random);
      largest = std::max(largest, here);
      left -= here;
      mass -= usage_[e];
    }
    return largest;
  }

  std::vector<double> usage_, up_to_;  // [E] descending; sums from the first on
  std::vector<std::uint64_t> counts_;  // [E]
};

}  // namespace

VocabularySpecialisation vocabulary_specialisation(const SparseCounts& table, const AccumulatorShape& shape, int layer,
                                                   std::uint64_t min_count, std::uint64_t seed) {
  VocabularySpecialisation result;
  const auto experts = static_cast<std::uint64_t>(shape.experts);
  const std::uint64_t row_cells = static_cast<std::uint64_t>(shape.vocabulary) * experts;
  const auto& cells = table.cells();
  const auto first = std::lower_bound(cells.begin(), cells.end(), static_cast<std::uint64_t>(layer) * row_cells);
  const auto last = std::lower_bound(first, cells.end(), static_cast<std::uint64_t>(layer + 1) * row_cells);
  std::vector<std::uint64_t> by_expert(experts, 0);
  for (auto cell = first; cell != last; ++cell)
    by_expert[*cell % experts] += table.counts()[static_cast<std::size_t>(cell - cells.begin())];
  const std::vector<double> layer_usage = usage(by_expert);
  const auto total = static_cast<double>(std::accumulate(by_expert.begin(), by_expert.end(), std::uint64_t{0}));
  if (total == 0) return kUnknownSpecialisation;

  std::mt19937_64 random(seed + static_cast<std::uint64_t>(layer));
  ShuffledShare shuffled(layer_usage);
  double weight = 0;
  double nonzero_cells = 0;
  double nonzero_rows = 0;
  const auto x_log_x = [](double x) { return x > 0 ? x * std::log(x) : 0.0; };
  for (auto cell = first; cell != last;) {
    const std::uint64_t token = *cell / experts;
    std::uint64_t sum = 0;
    std::uint64_t largest = 0;
    for (; cell != last && *cell / experts == token; ++cell) {
      const std::uint64_t count = table.counts()[static_cast<std::size_t>(cell - cells.begin())];
      sum += count;
      largest = std::max(largest, count);
      result.information += x_log_x(static_cast<double>(count) / total);
      ++nonzero_cells;
    }
    result.information -= x_log_x(static_cast<double>(sum) / total);
    ++nonzero_rows;
    if (sum < min_count) continue;
    const double top = static_cast<double>(largest) / static_cast<double>(sum);
    ++result.ids;
    result.mean += top;
    result.weighted += top * static_cast<double>(sum);
    weight += static_cast<double>(sum);
    result.baseline += shuffled.draw(sum, random);
  }
  for (const double u : layer_usage) result.information -= x_log_x(u);
  result.information = std::max(0.0, result.information);
  const auto nonzero_experts = static_cast<double>(experts - dead_experts(by_expert));
  result.information_bias = (nonzero_cells - nonzero_rows - nonzero_experts + 1) / (2 * total);
  const auto ids = static_cast<double>(result.ids);
  result.mean /= ids;
  result.weighted /= weight;
  result.baseline /= ids;
  return result;
}

Statistics from_statistics_tables(const std::vector<Table>& tables, const std::string& file) {
  const TableIndex index(tables, "", file);
  Statistics stored;
  stored.model = model_facts_from(index);
  const ModelFacts& model = stored.model;
  if (index.find("/vocabulary/piece") != nullptr) stored.vocabulary = index.values<std::string>("/vocabulary/piece");
  const auto& names = index.values<std::string>("/datasets/name");
  std::vector<Accumulators> accumulators = from_tables(tables, "", shape_of(model));
  std::vector<RankLoad> ranks = from_rank_tables(index, names.size(), model.n_moe_layers(), model.top_k);
  std::vector<RankTime> times = from_rank_time_tables(index, names.size(), model.n_moe_layers(), model.n_experts);
  std::vector<Cost> costs(names.size());
  if (index.find("/cost/tokens") != nullptr) costs = from_cost_tables(index, names.size());
  stored.peak_flops = peak_flops_of(index);
  if (accumulators.size() != names.size()) index.fail("/datasets/name", "does not name every dataset");
  std::vector<std::vector<DocumentUsage>> documents = from_document_usage_tables(
      index, names.size(), model.moe_layers.size(), static_cast<std::uint64_t>(model.n_experts));
  for (std::size_t d = 0; d < names.size(); ++d)
    stored.datasets.push_back({names[d], std::move(accumulators[d]), std::move(ranks[d]), std::move(times[d]), costs[d],
                               std::move(documents[d])});
  return stored;
}

std::vector<Table> statistics_tables(const Statistics& statistics) {
  const auto& [model, datasets, vocabulary, peak_flops] = statistics;
  std::vector<Table> tables;
  if (datasets.empty()) return tables;
  std::vector<const Accumulators*> accumulators;
  std::vector<const RankLoad*> ranks;
  std::vector<const std::vector<DocumentUsage>*> documents;
  std::vector<const RankTime*> times;
  std::vector<const Cost*> costs;
  std::vector<std::string> names;
  for (const Dataset& dataset : datasets) {
    documents.push_back(&dataset.documents);
    accumulators.push_back(&dataset.accumulators);
    ranks.push_back(&dataset.ranks);
    times.push_back(&dataset.time);
    costs.push_back(&dataset.cost);
    names.push_back(dataset.name);
  }
  tables = to_tables(accumulators, "");
  const std::uint64_t n_datasets = datasets.size();
  tables.push_back({"/datasets/name", {"dataset"}, {n_datasets}, std::move(names), "1", "name of the dataset"});
  TableMaker make(datasets, tables);
  make.by_dataset("/datasets/tokens", "1", "tokens", [](const Dataset& d) { return d.accumulators.tokens[0]; });
  make.by_dataset("/datasets/documents", "1", "documents",
                  [](const Dataset& d) { return d.accumulators.documents[0]; });
  make.by_dataset("/loss/perplexity", "1", "exp of the mean next-token loss",
                  [](const Dataset& d) { return std::exp(d.accumulators.loss[0].mean); });
  make.by_dataset("/loss/accuracy", "1", "share of tokens whose arg-max is the next token",
                  [](const Dataset& d) { return share(d.accumulators.correct[0], d.accumulators.loss[0].n); });
  for (Table& table : rank_tables(ranks)) tables.push_back(std::move(table));
  for (Table& table : rank_time_tables(times)) tables.push_back(std::move(table));
  for (Table& table :
       document_usage_tables(documents, model.moe_layers.size(), static_cast<std::uint64_t>(model.n_experts)))
    tables.push_back(std::move(table));
  for (Table& table : cost_tables(costs, peak_flops)) tables.push_back(std::move(table));
  for (Table& table : model_fact_tables(model)) tables.push_back(std::move(table));
  if (!vocabulary.empty())
    tables.push_back({"/vocabulary/piece", {"token_id"}, {vocabulary.size()}, vocabulary, "1", "text of the token id"});
  if (model.n_moe_layers() == 0) return tables;
  const auto n_experts = static_cast<std::size_t>(model.n_experts);
  const auto top_k = static_cast<std::size_t>(model.top_k);
  add_load(make, n_experts, model.top_k);
  add_uncertainty(make, n_experts, top_k);
  add_structure(make, n_experts, top_k);
  add_vocabulary(make);
  return tables;
}

std::vector<std::pair<std::string, std::string>> statistics_group_descriptions() {
  return {{"/datasets", "the routed corpora"},
          {"/model", "the model's MoE layers"},
          {"/vocabulary", "what token ids stand for"},
          {"/totals", "tokens, windows and documents of each dataset"},
          {"/load", "how evenly slots spread over experts, layer by layer"},
          {"/entropy", "entropy of router probabilities, nats"},
          {"/margin", "margin between the k-th and (k+1)-th router probability"},
          {"/top_probability", "largest router probability of each token"},
          {"/weight", "combine weights"},
          {"/coactivation", "experts chosen together by one token"},
          {"/flow", "experts chosen at neighbouring MoE layers"},
          {"/paths", "most frequent paths of first choices through all MoE layers"},
          {"/position", "experts and the position in the window"},
          {"/repetition", "experts chosen again by the next token (Mixtral paper, table 5)"},
          {"/tokens", "experts by token id"},
          {"/tokens/input", "by the token itself"},
          {"/tokens/target", "by the token that follows"},
          {"/tokens/predicted", "by the model's guess of the token that follows"},
          {"/groups", "experts by group of documents, what confidence intervals resample"},
          {"/loss", "next-token loss"},
          {"/documents", "experts of single documents, the first ones of each corpus"},
          {"/ranks", "load, traffic and time of the ranks that routed the dataset"},
          {"/cost", "time and floating-point operations that routing the dataset took"}};
}

}  // namespace switchyard
