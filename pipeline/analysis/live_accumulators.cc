#include "pipeline/analysis/live_accumulators.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <utility>

namespace switchyard {
namespace {

/// Adds values to a histogram on [0, high].
class Histogram {
 public:
  Histogram(std::uint64_t* bins, double high) : bins_(bins), scale_(bins_per_unit(high)) {}
  void add(float value) { ++bins_[std::clamp(static_cast<int>(value * scale_), 0, kHistogramBins - 1)]; }

 private:
  std::uint64_t* bins_;
  float scale_;
};

/// The values of included tokens; `kept` holds them when some are left out.
std::span<const float> included_values(const TokenView& tokens, std::span<const float> values,
                                       std::vector<float>& kept) {
  if (tokens.included.empty() && tokens.of_phase.empty()) return values;
  for (std::size_t t = 0; t < values.size(); ++t)
    if (tokens.counts(t)) kept.push_back(values[t]);
  return kept;
}

/// Sums of what is not known.
void set_unknown(double* sums, std::size_t n) { std::fill_n(sums, n, std::numeric_limits<double>::quiet_NaN()); }

/// Without a branch, which could not be foreseen.
bool intersect(const std::uint16_t* a, const std::uint16_t* b, std::size_t k) {
  bool common = false;
  for (std::size_t i = 0; i < k; ++i)
    for (std::size_t j = 0; j < k; ++j) common |= a[i] == b[j];
  return common;
}

/// Of a token table.
std::uint64_t table_cells(const AccumulatorShape& shape) {
  return static_cast<std::uint64_t>(shape.layers) * static_cast<std::uint64_t>(shape.vocabulary) *
         static_cast<std::uint64_t>(shape.experts);
}

/// A table [rows, E] for each layer.
LayerTables empty_tables(const AccumulatorShape& shape, int rows) {
  const std::size_t cells = static_cast<std::size_t>(rows) * static_cast<std::size_t>(shape.experts);
  return {static_cast<std::size_t>(shape.layers), std::vector<std::uint32_t>(cells, 0)};
}

void add_into(LayerTables& to, const LayerTables& from) {
  assert(to.size() == from.size());
  for (std::size_t l = 0; l < to.size(); ++l)
    std::transform(to[l].begin(), to[l].end(), from[l].begin(), to[l].begin(), std::plus<>());
}

void set_to_zero(LayerTables& tables) {
  for (auto& table : tables) std::fill(table.begin(), table.end(), 0);
}

/// Collective. The sum of all ranks' tables as sparse counts on rank 0, cells numbered through the layers; leaves
/// zeros.
SparseCounts take_tables(LayerTables& tables, const Communicator& comm) {
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

/// From pairs of a choice and a later one: pairs both ways, and the experts' slots on the diagonal.
void complete_coactivation(Accumulators& sums) {
  const auto n_experts = static_cast<std::size_t>(sums.shape.experts);
  for (int l = 0; l < sums.shape.layers; ++l) {
    std::uint64_t* table = sums.coactivation.data() + static_cast<std::size_t>(l) * n_experts * n_experts;
    const std::vector<std::uint64_t> slots = sums.layer_counts(l);
    for (std::size_t a = 0; a < n_experts; ++a) {
      table[a * n_experts + a] = slots[a];
      for (std::size_t b = 0; b < a; ++b)
        table[a * n_experts + b] = table[b * n_experts + a] += table[a * n_experts + b];
    }
  }
}

}  // namespace

/// Tokens of one position bucket and one group of documents, behind the run before: what these say of a token is looked
/// up once for the run.
struct LiveAccumulators::Run {
  std::size_t end = 0;
  std::size_t bucket = 0;
  std::size_t group = 0;
};

std::vector<LiveAccumulators::Run> LiveAccumulators::runs_of(const TokenView& tokens) {
  std::vector<Run> runs;
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const auto bucket = static_cast<std::size_t>(position_bucket(tokens.position[t]));
    if (runs.empty() || runs.back().bucket != bucket || runs.back().group != tokens.group[t])
      runs.push_back({t, bucket, tokens.group[t]});
    runs.back().end = t + 1;
  }
  return runs;
}

std::vector<std::uint8_t> included_tokens(std::span<const std::uint32_t> ids, std::span<const std::uint8_t> excluded) {
  std::vector<std::uint8_t> included;
  if (excluded.empty()) return included;
  included.resize(ids.size());
  std::transform(ids.begin(), ids.end(), included.begin(), [&](std::uint32_t id) { return excluded[id] != 0 ? 0 : 1; });
  return included;
}

std::vector<std::uint8_t> counted_flags(const TokenView& tokens) {
  if (tokens.included.empty() && tokens.of_phase.empty()) return {};
  std::vector<std::uint8_t> counted(tokens.size());
  for (std::size_t t = 0; t < counted.size(); ++t) counted[t] = tokens.counts(t) ? 1 : 0;
  return counted;
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
    : shape_(shape), choice_(tables), sums_(shape) {
  for (std::size_t which = 0; which < kTokenTables; ++which)
    if (tables.keep[which] && tables.capacity > 0)
      frequent_[which].assign(static_cast<std::size_t>(shape.layers), FrequentCells(tables.capacity));
}

/// The dense ones, unless they are there.
void LiveAccumulators::make_tables() {
  if (!dense_groups_.empty()) return;
  dense_groups_ = empty_tables(shape_, kDocumentGroups);
  for (std::size_t which = 0; which < kTokenTables; ++which)
    if (choice_.keeps_all(which)) dense_[which] = empty_tables(shape_, shape_.vocabulary);
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
  for (std::size_t which = 0; which < kTokenTables; ++which)
    for (std::size_t l = 0; l < frequent_[which].size(); ++l) frequent_[which][l].merge(other.frequent_[which][l]);
  if (!other.dense_groups_.empty()) add_tables(other.dense_, other.dense_groups_);
  other.clear();
}

void LiveAccumulators::add(const LayerCounts& counts) {
  sums_.merge(counts.sums);
  add_tables(counts.token_tables, counts.groups);
}

void LiveAccumulators::add_tables(const std::array<LayerTables, kTokenTables>& token_tables,
                                  const LayerTables& groups) {
  make_tables();
  for (std::size_t which = 0; which < kTokenTables; ++which) add_into(dense_[which], token_tables[which]);
  add_into(dense_groups_, groups);
}

void LiveAccumulators::clear() {
  sums_ = Accumulators(shape_);
  for (auto& tables : dense_) set_to_zero(tables);
  for (auto& layers : frequent_)
    for (FrequentCells& cells : layers) cells.clear();
  set_to_zero(dense_groups_);
}

void LiveAccumulators::observe(const TokenView& tokens) {
  make_tables();
  const std::vector<Run> runs = runs_of(tokens);
  // Layers touch disjoint counters, so they need no locks and the result does not depend on the number of threads; one
  // more task sees what is of no layer: it takes longest, so it comes first.
#pragma omp parallel for schedule(dynamic, 1)
  for (int task = shape_.layers; task >= 0; --task) {
    if (task < shape_.layers) {
      observe_layer(tokens, runs, task);
    } else {
      observe_tokens(tokens);
      if (shape_.layers > 0) observe_paths(tokens);
    }
  }
}

void LiveAccumulators::observe_tokens(const TokenView& tokens) {
  std::vector<float> losses;
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const bool begins = tokens.position[t] == 0 || (t > 0 && !tokens.is_of_phase(t - 1));
    sums_.windows[0] += begins && tokens.is_of_phase(t) ? 1 : 0;
    if (!tokens.counts(t)) continue;
    ++sums_.tokens[0];
    if (tokens.continues(t)) ++sums_.repeat_pairs[0];
    if (tokens.target[t] < 0) continue;
    ++sums_.targets[0];
    if (!tokens.predicted.empty())
      sums_.correct[0] += tokens.predicted[t] == static_cast<std::uint64_t>(tokens.target[t]) ? 1 : 0;
    if (!tokens.loss.empty()) losses.push_back(tokens.loss[t]);
  }
  sums_.loss[0].merge(Moments::of(losses));
}

/// One layer's counters while n tokens are counted into them. Each loop touches one table, so that it stays in the
/// cache. TopK: the number of choices, or 0 for any.
template <std::size_t TopK>
class LiveAccumulators::LayerCounter {
 public:
  LayerCounter(LiveAccumulators& live, const TokenView& tokens, std::size_t layer)
      : live_(live),
        sums_(live.sums_),
        tokens_(tokens),
        layer_(layer),
        n_(tokens.size()),
        k_(static_cast<std::size_t>(live.shape_.top_k)),
        n_experts_(static_cast<std::size_t>(live.shape_.experts)),
        experts_(tokens.layers[layer].expert.data()) {}

  void count_slots(std::span<const Run> runs);
  void count_pairs();
  void count_tokens();
  void count_frequent_tokens();
  void count_flow();
  void count_repetition();
  void sum_weights();

 private:
  /// visit(t, choices of token t) for the included tokens from `first` on. What it and visit need is held in locals:
  /// counters may be anywhere, so that members would be loaded again behind each of them.
  template <typename F>
  void for_each(std::size_t first, std::size_t end, F visit) const {
    const std::uint16_t* const experts = experts_;
    const std::uint8_t* const included = tokens_.included.empty() ? nullptr : tokens_.included.data();
    const std::uint8_t* const of_phase = tokens_.of_phase.empty() ? nullptr : tokens_.of_phase.data();
    const std::size_t k = top_k();
    for (std::size_t t = first; t < end; ++t)
      if ((included == nullptr || included[t] != 0) && (of_phase == nullptr || of_phase[t] != 0))
        visit(t, experts + t * k);
  }
  template <typename Add, typename Expect>
  void count_by(std::size_t which, Add add, Expect expect) const;
  std::size_t top_k() const { return TopK > 0 ? TopK : k_; }

  LiveAccumulators& live_;
  Accumulators& sums_;
  const TokenView& tokens_;
  const std::size_t layer_, n_, k_, n_experts_;
  const std::uint16_t* const experts_;
};

template <std::size_t TopK>
void LiveAccumulators::LayerCounter<TopK>::count_slots(std::span<const Run> runs) {
  const std::size_t k = top_k();
  const std::size_t n_experts = n_experts_;
  std::uint64_t* const slot_count = sums_.slot_count.data() + layer_ * k * n_experts;
  std::uint64_t* const position_count = sums_.position_count.data() + layer_ * kPositionBuckets * n_experts;
  std::uint32_t* const groups = live_.dense_groups_[layer_].data();
  std::vector<std::uint32_t> of_run(k * n_experts);
  std::size_t begin = 0;
  for (const Run& run : runs) {
    for_each(begin, run.end, [&](std::size_t, const std::uint16_t* expert) {
      for (std::size_t j = 0; j < k; ++j) ++of_run[j * n_experts + expert[j]];
    });
    for (std::size_t j = 0; j < k; ++j)
      for (std::size_t e = 0; e < n_experts; ++e) {
        const std::uint32_t count = std::exchange(of_run[j * n_experts + e], 0);
        slot_count[j * n_experts + e] += count;
        position_count[run.bucket * n_experts + e] += count;
        groups[run.group * n_experts + e] += count;
      }
    begin = run.end;
  }
}

template <std::size_t TopK>
void LiveAccumulators::LayerCounter<TopK>::count_pairs() {
  const std::size_t k = top_k();
  const std::size_t n_experts = n_experts_;
  std::uint64_t* const coactivation = sums_.coactivation.data() + layer_ * n_experts * n_experts;
  for_each(0, n_, [=](std::size_t, const std::uint16_t* expert) {
    for (std::size_t i = 0; i < k; ++i)
      for (std::size_t j = i + 1; j < k; ++j) ++coactivation[expert[i] * n_experts + expert[j]];
  });
}

template <std::size_t TopK>
void LiveAccumulators::LayerCounter<TopK>::count_tokens() {
  for (std::size_t which = 0; which < kTokenTables; ++which)
    if (live_.choice_.keeps_all(which))
      count_by(
          which, [table = live_.dense_[which][layer_].data()](std::size_t cell) { ++table[cell]; },
          [table = live_.dense_[which][layer_].data()](std::size_t cell) { __builtin_prefetch(table + cell, 1); });
  count_frequent_tokens();
}

template <std::size_t TopK>
void LiveAccumulators::LayerCounter<TopK>::count_frequent_tokens() {
  for (std::size_t which = 0; which < kTokenTables; ++which)
    if (!live_.frequent_[which].empty())
      count_by(
          which, [table = &live_.frequent_[which][layer_]](std::size_t cell) { table->add(cell); }, [](std::size_t) {});
}

/// expect: the cell is needed soon. A table is larger than a cache, and ids come in no order.
template <std::size_t TopK>
template <typename Add, typename Expect>
void LiveAccumulators::LayerCounter<TopK>::count_by(std::size_t which, Add add, Expect expect) const {
  const std::size_t k = top_k();
  const std::size_t n_experts = n_experts_;
  const auto add_choices = [=](std::size_t id, const std::uint16_t* expert) {
    for (std::size_t j = 0; j < k; ++j) add(id * n_experts + expert[j]);
  };
  constexpr std::size_t kAhead = 16;  // tokens
  if (which == static_cast<std::size_t>(TokenTable::target)) {
    for_each(0, n_, [=, n = n_, target = tokens_.target.data()](std::size_t t, const std::uint16_t* expert) {
      if (const std::int64_t soon = t + kAhead < n ? target[t + kAhead] : -1; soon >= 0)
        expect(static_cast<std::size_t>(soon) * n_experts);
      if (target[t] >= 0) add_choices(static_cast<std::size_t>(target[t]), expert);
    });
    return;
  }
  const auto ids = which == static_cast<std::size_t>(TokenTable::input) ? tokens_.token : tokens_.predicted;
  if (ids.empty()) return;
  for_each(0, n_, [=, n = n_, id = ids.data()](std::size_t t, const std::uint16_t* expert) {
    if (t + kAhead < n) expect(id[t + kAhead] * n_experts);
    add_choices(id[t], expert);
  });
}

template <std::size_t TopK>
void LiveAccumulators::LayerCounter<TopK>::count_flow() {
  const std::size_t k = top_k();
  const std::size_t n_experts = n_experts_;
  if (layer_ == 0) return;
  std::uint64_t* const flow = sums_.flow.data() + (layer_ - 1) * n_experts * n_experts;
  std::uint64_t* const flow_top1 = sums_.flow_top1.data() + (layer_ - 1) * n_experts * n_experts;
  const std::uint16_t* const previous = tokens_.layers[layer_ - 1].expert.data();
  for_each(0, n_, [=](std::size_t t, const std::uint16_t* to) {
    const std::uint16_t* from = previous + t * k;
    ++flow_top1[from[0] * n_experts + to[0]];
    for (std::size_t i = 0; i < k; ++i)
      for (std::size_t j = 0; j < k; ++j) ++flow[from[i] * n_experts + to[j]];
  });
}

template <std::size_t TopK>
void LiveAccumulators::LayerCounter<TopK>::count_repetition() {
  const std::size_t k = top_k();
  std::uint64_t top1 = 0;
  std::uint64_t any = 0;
  for_each(1, n_, [&](std::size_t t, const std::uint16_t* expert) {
    if (!tokens_.continues(t)) return;
    top1 += expert[0] == *(expert - k) ? 1 : 0;
    any += intersect(expert, expert - k, k) ? 1 : 0;
  });
  sums_.repeat_top1[layer_] += top1;
  sums_.repeat_any[layer_] += any;
}

template <std::size_t TopK>
void LiveAccumulators::LayerCounter<TopK>::sum_weights() {
  const std::size_t k = top_k();
  const std::size_t n_experts = n_experts_;
  if (tokens_.layers[layer_].weight.empty()) return;
  const float* const weights = tokens_.layers[layer_].weight.data();
  double* const weight_sum = sums_.weight_sum.data() + layer_ * k * n_experts;
  std::uint64_t* const histogram = sums_.weight_histogram.data() + layer_ * k * kHistogramBins;
  for_each(0, n_, [=](std::size_t t, const std::uint16_t* expert) {
    for (std::size_t j = 0; j < k; ++j) {
      const float weight = weights[t * k + j];
      weight_sum[j * n_experts + expert[j]] += static_cast<double>(weight);
      Histogram(histogram + j * kHistogramBins, 1.0).add(weight);
    }
  });
}

template <std::size_t TopK>
void LiveAccumulators::count_choices(const TokenView& tokens, std::span<const Run> runs, std::size_t layer) {
  LayerCounter<TopK> counter(*this, tokens, layer);
  counter.count_slots(runs);
  counter.count_pairs();
  counter.count_tokens();
  counter.count_flow();
  counter.count_repetition();
  counter.sum_weights();
}

void LiveAccumulators::observe_beside_gpu(const TokenView& tokens) {
#pragma omp parallel for schedule(dynamic, 1)
  for (int task = shape_.layers; task >= 0; --task) {
    if (task < shape_.layers) {
      LayerCounter<0>(*this, tokens, static_cast<std::size_t>(task)).count_frequent_tokens();
    } else {
      observe_tokens(tokens);
      if (shape_.layers > 0) observe_paths(tokens);
    }
  }
}

void LiveAccumulators::observe_layer(const TokenView& tokens, std::span<const Run> runs, int layer) {
  const LayerView& view = tokens.layers[static_cast<std::size_t>(layer)];
  const auto l = static_cast<std::size_t>(layer);
  const auto n_experts = static_cast<std::size_t>(shape_.experts);
  // The usual numbers of choices have loops of a fixed length.
  switch (shape_.top_k) {
    case 2:
      count_choices<2>(tokens, runs, l);
      break;
    case 8:
      count_choices<8>(tokens, runs, l);
      break;
    default:
      count_choices<0>(tokens, runs, l);
  }

  std::uint64_t confident = 0;
  double z_sum = 0;
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
    confident += tokens.counts(t) && view.top_probability[t] > kConfidentProbability ? 1 : 0;
  for (std::size_t t = 0; t < view.log_sum_exp.size(); ++t)
    if (tokens.counts(t)) z_sum += static_cast<double>(view.log_sum_exp[t]) * static_cast<double>(view.log_sum_exp[t]);
  sums_.confident[l] += confident;
  sums_.z_sum[l] += z_sum;
  for (std::size_t e = 0; e < view.probability_sum.size(); ++e)
    sums_.probability_sum[l * n_experts + e] += view.probability_sum[e];
  if (tokens.size() == 0) return;
  const std::size_t of_layer = static_cast<std::size_t>(shape_.top_k) * n_experts;
  if (view.weight.empty()) set_unknown(sums_.weight_sum.data() + l * of_layer, of_layer);
  if (view.probability_sum.empty()) set_unknown(sums_.probability_sum.data() + l * n_experts, n_experts);
  if (view.log_sum_exp.empty()) set_unknown(sums_.z_sum.data() + l, 1);
}

void LiveAccumulators::observe_paths(const TokenView& tokens) {
  const auto layers = static_cast<std::size_t>(shape_.layers);
  const auto k = static_cast<std::size_t>(shape_.top_k);
  std::vector<std::uint16_t> path(layers);
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    if (!tokens.counts(t)) continue;
    for (std::size_t l = 0; l < layers; ++l) path[l] = tokens.layers[l].expert[t * k];
    sums_.paths.add(path);
  }
}

Accumulators LiveAccumulators::take(const Communicator& comm) {
  make_tables();  // as other ranks may have
  Accumulators taken = std::exchange(sums_, Accumulators(shape_));
  complete_coactivation(taken);
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
