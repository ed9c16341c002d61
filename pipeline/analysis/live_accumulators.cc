#include "pipeline/analysis/live_accumulators.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

namespace switchyard {
namespace {

/// Adds values to a histogram of equal bins on [0, high]; what lies outside counts in the end bins.
class Histogram {
 public:
  Histogram(std::uint64_t* bins, double high)
      : bins_(bins), scale_(high > 0 ? static_cast<float>(kHistogramBins / high) : 0.0F) {}
  void add(float value) { ++bins_[std::clamp(static_cast<int>(value * scale_), 0, kHistogramBins - 1)]; }

 private:
  std::uint64_t* bins_;
  float scale_;
};

bool is_included(const TokenView& tokens, std::size_t t) { return tokens.included.empty() || tokens.included[t] != 0; }

/// The values of included tokens; `kept` holds them when some are left out.
std::span<const float> included_values(const TokenView& tokens, std::span<const float> values,
                                       std::vector<float>& kept) {
  if (tokens.included.empty()) return values;
  for (std::size_t t = 0; t < values.size(); ++t)
    if (is_included(tokens, t)) kept.push_back(values[t]);
  return kept;
}

bool intersect(const std::uint16_t* a, const std::uint16_t* b, std::size_t k) {
  for (std::size_t i = 0; i < k; ++i)
    for (std::size_t j = 0; j < k; ++j)
      if (a[i] == b[j]) return true;
  return false;
}

/// Of a token table.
std::uint64_t table_cells(const AccumulatorShape& shape) {
  return static_cast<std::uint64_t>(shape.layers) * static_cast<std::uint64_t>(shape.vocabulary) *
         static_cast<std::uint64_t>(shape.experts);
}

/// A table [rows, E] for each layer.
std::vector<std::vector<std::uint32_t>> empty_tables(const AccumulatorShape& shape, int rows, bool keep) {
  const std::size_t cells = static_cast<std::size_t>(rows) * static_cast<std::size_t>(shape.experts);
  return {keep ? static_cast<std::size_t>(shape.layers) : 0, std::vector<std::uint32_t>(cells, 0)};
}

void add_into(std::vector<std::vector<std::uint32_t>>& to, const std::vector<std::vector<std::uint32_t>>& from) {
  for (std::size_t l = 0; l < to.size(); ++l)
    std::transform(to[l].begin(), to[l].end(), from[l].begin(), to[l].begin(), std::plus<>());
}

void set_to_zero(std::vector<std::vector<std::uint32_t>>& tables) {
  for (auto& table : tables) std::fill(table.begin(), table.end(), 0);
}

/// Collective. The sum of all ranks' tables as sparse counts on rank 0, cells numbered through the layers; leaves
/// zeros.
SparseCounts take_tables(std::vector<std::vector<std::uint32_t>>& tables, const Communicator& comm) {
  SparseCounts taken;
  for (std::size_t l = 0; l < tables.size(); ++l) {
    std::vector<std::uint64_t> counts(tables[l].begin(), tables[l].end());
    comm.sum_to_root(counts);
    if (comm.rank() != 0) continue;
    const std::uint64_t first = l * counts.size();
    for (std::size_t cell = 0; cell < counts.size(); ++cell) taken.append(first + cell, counts[cell]);
  }
  set_to_zero(tables);
  return taken;
}

}  // namespace

std::vector<std::uint8_t> included_tokens(std::span<const std::uint32_t> ids, std::span<const std::uint8_t> excluded) {
  std::vector<std::uint8_t> included;
  if (excluded.empty()) return included;
  included.resize(ids.size());
  std::transform(ids.begin(), ids.end(), included.begin(), [&](std::uint32_t id) { return excluded[id] != 0 ? 0 : 1; });
  return included;
}

std::vector<double> probability_sums(TensorView probabilities, std::span<const std::uint8_t> included) {
  std::vector<double> sums(static_cast<std::size_t>(probabilities.cols()), 0);
  for (std::int64_t t = 0; t < probabilities.rows(); ++t) {
    if (!included.empty() && included[static_cast<std::size_t>(t)] == 0) continue;
    const std::span<const float> row = probabilities.row<float>(t);
    for (std::size_t e = 0; e < row.size(); ++e) sums[e] += static_cast<double>(row[e]);
  }
  return sums;
}

LiveAccumulators::LiveAccumulators(const AccumulatorShape& shape, TokenTableChoice tables)
    : shape_(shape), choice_(tables), sums_(shape), dense_groups_(empty_tables(shape, kDocumentGroups, true)) {
  for (std::size_t which = 0; which < kTokenTables; ++which) {
    if (tables.keep[which] && tables.capacity > 0)
      frequent_[which].assign(static_cast<std::size_t>(shape.layers), FrequentCells(tables.capacity));
    else
      dense_[which] = empty_tables(shape, shape.vocabulary, tables.keep[which]);
  }
}

TokenTableChoice TokenTableChoice::within(std::uint64_t cells, const AccumulatorShape& shape) {
  TokenTableChoice choice;
  if (shape.layers > 0 && table_cells(shape) > cells)
    choice.capacity =
        FrequentCells::capacity_within(cells * sizeof(std::uint32_t) / static_cast<std::uint64_t>(shape.layers));
  return choice;
}

std::uint64_t LiveAccumulators::table_bytes(const AccumulatorShape& shape, TokenTableChoice tables) {
  const auto kept = static_cast<std::uint64_t>(std::count(tables.keep.begin(), tables.keep.end(), true));
  return kept * (tables.capacity > 0 ? static_cast<std::uint64_t>(shape.layers) * FrequentCells::bytes(tables.capacity)
                                     : table_cells(shape) * sizeof(std::uint32_t));
}

void LiveAccumulators::absorb(LiveAccumulators& other) {
  sums_.merge(other.sums_);
  for (std::size_t which = 0; which < kTokenTables; ++which) {
    add_into(dense_[which], other.dense_[which]);
    for (std::size_t l = 0; l < frequent_[which].size(); ++l) frequent_[which][l].merge(other.frequent_[which][l]);
  }
  add_into(dense_groups_, other.dense_groups_);
  other.clear();
}

void LiveAccumulators::clear() {
  sums_ = Accumulators(shape_);
  for (auto& tables : dense_) set_to_zero(tables);
  for (auto& layers : frequent_)
    for (FrequentCells& cells : layers) cells.clear();
  set_to_zero(dense_groups_);
}

void LiveAccumulators::observe(const TokenView& tokens) {
  // Layers touch disjoint counters, so they need no locks and the result does not depend on the number of threads; one
  // more task sees what is of no layer.
#pragma omp parallel for schedule(dynamic, 1)
  for (int task = 0; task <= shape_.layers; ++task) {
    if (task < shape_.layers) {
      observe_layer(tokens, task);
    } else {
      observe_tokens(tokens);
      if (shape_.layers > 0) observe_paths(tokens);
    }
  }
}

void LiveAccumulators::observe_tokens(const TokenView& tokens) {
  std::vector<float> losses;
  for (std::size_t t = 0; t < tokens.token.size(); ++t) {
    sums_.windows[0] += tokens.position[t] == 0 ? 1 : 0;
    if (!is_included(tokens, t)) continue;
    ++sums_.tokens[0];
    if (t > 0 && tokens.position[t] > 0 && is_included(tokens, t - 1)) ++sums_.repeat_pairs[0];
    if (tokens.target[t] < 0) continue;
    ++sums_.targets[0];
    sums_.correct[0] += tokens.predicted[t] == static_cast<std::uint64_t>(tokens.target[t]) ? 1 : 0;
    losses.push_back(tokens.loss[t]);
  }
  sums_.loss[0].merge(Moments::of(losses));
}

void LiveAccumulators::observe_layer(const TokenView& tokens, int layer) {
  const LayerView& view = tokens.layers[static_cast<std::size_t>(layer)];
  const auto l = static_cast<std::size_t>(layer);
  const auto k = static_cast<std::size_t>(shape_.top_k);
  const auto n_experts = static_cast<std::size_t>(shape_.experts);
  const std::size_t n = tokens.token.size();
  const std::uint16_t* previous = layer > 0 ? tokens.layers[l - 1].expert.data() : nullptr;

  // Counters that layers keep side by side are summed here first: threads must not share a cache line in the loop.
  std::uint64_t repeat_top1 = 0;
  std::uint64_t repeat_any = 0;
  std::uint64_t confident = 0;
  double z_sum = 0;
  std::uint64_t* slot_count = sums_.slot_count.data() + l * k * n_experts;
  double* weight_sum = sums_.weight_sum.data() + l * k * n_experts;
  std::uint64_t* position_count = sums_.position_count.data() + l * kPositionBuckets * n_experts;
  std::uint64_t* coactivation = sums_.coactivation.data() + l * n_experts * n_experts;
  std::uint64_t* flow = layer > 0 ? sums_.flow.data() + (l - 1) * n_experts * n_experts : nullptr;
  std::uint64_t* flow_top1 = layer > 0 ? sums_.flow_top1.data() + (l - 1) * n_experts * n_experts : nullptr;
  std::vector<Histogram> weight_histogram;
  for (std::size_t j = 0; j < k; ++j)
    weight_histogram.emplace_back(sums_.weight_histogram.data() + (l * k + j) * kHistogramBins, 1.0);
  std::array<std::uint32_t*, kTokenTables> table{};
  std::array<FrequentCells*, kTokenTables> frequent{};
  for (std::size_t which = 0; which < kTokenTables; ++which) {
    table[which] = dense_[which].empty() ? nullptr : dense_[which][l].data();
    frequent[which] = frequent_[which].empty() ? nullptr : &frequent_[which][l];
  }
  std::uint32_t* const groups = dense_groups_[l].data();

  for (std::size_t t = 0; t < n; ++t) {
    if (!is_included(tokens, t)) continue;
    const std::uint16_t* expert = view.expert.data() + t * k;
    const auto bucket = std::min<std::size_t>(kPositionBuckets - 1,
                                              static_cast<std::size_t>(std::bit_width(tokens.position[t] + 1U)) - 1);
    for (std::size_t j = 0; j < k; ++j) {
      const std::size_t e = expert[j];
      ++slot_count[j * n_experts + e];
      weight_sum[j * n_experts + e] += static_cast<double>(view.weight[t * k + j]);
      weight_histogram[j].add(view.weight[t * k + j]);
      ++position_count[bucket * n_experts + e];
      for (std::size_t i = 0; i < k; ++i) ++coactivation[e * n_experts + expert[i]];
    }
    std::uint32_t* group = groups + tokens.group[t] * n_experts;
    for (std::size_t j = 0; j < k; ++j) ++group[expert[j]];
    const std::array<std::int64_t, kTokenTables> token = {tokens.token[t], tokens.target[t],
                                                          static_cast<std::int64_t>(tokens.predicted[t])};
    for (std::size_t which = 0; which < kTokenTables; ++which) {
      if (token[which] < 0) continue;
      const std::size_t row = static_cast<std::size_t>(token[which]) * n_experts;
      if (table[which] != nullptr)
        for (std::size_t j = 0; j < k; ++j) ++table[which][row + expert[j]];
      else if (frequent[which] != nullptr)
        for (std::size_t j = 0; j < k; ++j) frequent[which]->add(row + expert[j]);
    }
    if (previous != nullptr) {
      const std::uint16_t* from = previous + t * k;
      ++flow_top1[from[0] * n_experts + expert[0]];
      for (std::size_t i = 0; i < k; ++i)
        for (std::size_t j = 0; j < k; ++j) ++flow[from[i] * n_experts + expert[j]];
    }
    if (t > 0 && tokens.position[t] > 0 && is_included(tokens, t - 1)) {
      repeat_top1 += expert[0] == expert[-static_cast<std::ptrdiff_t>(k)] ? 1 : 0;
      repeat_any += intersect(expert, expert - k, k) ? 1 : 0;
    }
  }
  sums_.repeat_top1[l] += repeat_top1;
  sums_.repeat_any[l] += repeat_any;

  const auto spread = [&](std::span<const float> values, std::vector<Moments>& moments, std::uint64_t* bins,
                          double high) {
    if (values.empty()) return;
    std::vector<float> buffer;
    const std::span<const float> kept = included_values(tokens, values, buffer);
    moments[l].merge(Moments::of(kept));
    Histogram histogram(bins, high);
    for (const float value : kept) histogram.add(value);
  };
  spread(view.entropy, sums_.entropy, sums_.entropy_histogram.data() + l * kHistogramBins,
         std::log(static_cast<double>(n_experts)));
  spread(view.margin, sums_.margin, sums_.margin_histogram.data() + l * kHistogramBins, 1.0);
  spread(view.top_probability, sums_.top_probability, sums_.top_probability_histogram.data() + l * kHistogramBins, 1.0);
  for (std::size_t t = 0; t < view.top_probability.size(); ++t)
    confident += is_included(tokens, t) && view.top_probability[t] > kConfidentProbability ? 1 : 0;
  for (std::size_t t = 0; t < view.log_sum_exp.size(); ++t)
    if (is_included(tokens, t))
      z_sum += static_cast<double>(view.log_sum_exp[t]) * static_cast<double>(view.log_sum_exp[t]);
  sums_.confident[l] += confident;
  sums_.z_sum[l] += z_sum;
  for (std::size_t e = 0; e < view.probability_sum.size(); ++e)
    sums_.probability_sum[l * n_experts + e] += view.probability_sum[e];
}

void LiveAccumulators::observe_paths(const TokenView& tokens) {
  const auto layers = static_cast<std::size_t>(shape_.layers);
  const auto k = static_cast<std::size_t>(shape_.top_k);
  std::vector<std::uint16_t> path(layers);
  for (std::size_t t = 0; t < tokens.token.size(); ++t) {
    if (!is_included(tokens, t)) continue;
    for (std::size_t l = 0; l < layers; ++l) path[l] = tokens.layers[l].expert[t * k];
    sums_.paths.add(path);
  }
}

Accumulators LiveAccumulators::take(const Communicator& comm) {
  Accumulators taken = std::exchange(sums_, Accumulators(shape_));
  const std::uint64_t layer_cells =
      static_cast<std::uint64_t>(shape_.vocabulary) * static_cast<std::uint64_t>(shape_.experts);
  for (std::size_t which = 0; which < kTokenTables; ++which)
    for (std::size_t l = 0; l < frequent_[which].size(); ++l) {
      FrequentCells& of_layer = frequent_[which][l];
      const SparseCounts kept = of_layer.counts();
      for (std::size_t i = 0; i < kept.cells().size(); ++i)
        taken.token_tables[which].append(l * layer_cells + kept.cells()[i], kept.counts()[i]);
      taken.token_bounds[which].capacity = choice_.capacity;
      taken.token_bounds[which].undercount[l] = of_layer.undercount();
      of_layer.clear();
    }
  taken.reduce_to_root(comm);
  for (std::size_t which = 0; which < kTokenTables; ++which)
    if (!dense_[which].empty()) taken.token_tables[which] = take_tables(dense_[which], comm);
  taken.group_counts = take_tables(dense_groups_, comm);
  return taken;
}

}  // namespace switchyard
