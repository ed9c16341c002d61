#include "pipeline/kernels/cuda/routing_counts.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <vector>

#include "parallel/device/device_array.h"
#include "parallel/device/device_memory.h"
#include "pipeline/kernels/cuda/routing_counts_launch.h"

namespace switchyard::gpu {
namespace {

static_assert(kTablesOfTokens == kTokenTables);
static_assert(static_cast<int>(RoutingFigure::top_probability) < kSpreadFigures);

/// Sums of a layer, as RoutingTotals::sums has them.
std::int64_t columns_of(const AccumulatorShape& shape) { return (std::int64_t{shape.top_k} + 1) * shape.experts + 1; }

CounterCells cells_of(const AccumulatorShape& shape, TokenTableChoice tables) {
  const std::int64_t n_experts = shape.experts;
  CounterCells cells{};
  const auto place = [&](std::int64_t n) {
    const std::int64_t begin = cells.size;
    cells.size += n;
    return begin;
  };
  cells.slot_count = place(shape.top_k * n_experts);
  cells.position_count = place(kPositionBuckets * n_experts);
  cells.group_count = place(kDocumentGroups * n_experts);
  cells.coactivation = place(n_experts * n_experts);
  cells.flow = place(n_experts * n_experts);
  cells.flow_top1 = place(n_experts * n_experts);
  cells.repeat_top1 = place(1);
  cells.repeat_any = place(1);
  cells.confident = place(1);
  cells.histograms = place(std::int64_t{kSpreadFigures} * kHistogramBins);
  cells.weight_histogram = place(std::int64_t{shape.top_k} * kHistogramBins);
  for (std::size_t which = 0; which < kTokenTables; ++which)
    cells.token_tables[which] = tables.keeps_all(which) ? place(shape.vocabulary * n_experts) : -1;
  return cells;
}

template <typename T>
T* as(Tensor& words) {
  return reinterpret_cast<T*>(words.bytes());
}

/// Zeros for a row of n values of T in each layer.
template <typename T>
Tensor make_rows(const AccumulatorShape& shape, std::int64_t n) {
  Tensor rows(DType::f32, shape.layers, n * static_cast<std::int64_t>(sizeof(T) / sizeof(float)), Device::gpu);
  switchyard::clear(rows);
  return rows;
}

template <typename T>
std::vector<T> row_to_host(const Tensor& rows, std::int64_t layer) {
  std::vector<T> values(static_cast<std::size_t>(rows.row_bytes()) / sizeof(T));
  copy_bytes(values.data(), rows.bytes() + layer * rows.row_bytes(), static_cast<std::size_t>(rows.row_bytes()));
  return values;
}

std::vector<CountedToken> counted_tokens(const TokenView& tokens) {
  const auto known = [](std::int64_t id) { return static_cast<std::int32_t>(std::max<std::int64_t>(id, -1)); };
  std::vector<CountedToken> counted(tokens.size());
  for (std::size_t t = 0; t < counted.size(); ++t) {
    CountedToken& one = counted[t];
    one.table_rows[static_cast<std::size_t>(TokenTable::input)] = tokens.token.empty() ? -1 : known(tokens.token[t]);
    one.table_rows[static_cast<std::size_t>(TokenTable::target)] = known(tokens.target[t]);
    one.table_rows[static_cast<std::size_t>(TokenTable::predicted)] =
        tokens.predicted.empty() ? -1 : known(tokens.predicted[t]);
    one.group = tokens.group[t];
    one.bucket = static_cast<std::uint8_t>(position_bucket(tokens.position[t]));
    one.flags = static_cast<std::uint8_t>((tokens.counts(t) ? CountedToken::kCounts : 0) |
                                          (tokens.continues(t) ? CountedToken::kContinues : 0));
  }
  return counted;
}

LayerChoices choices_of(const Routing& routing) {
  return {.ids = routing.gpu_ids.data(),
          .weights = routing.gpu_weights.data<float>(),
          .figures = routing.figures.data<float>(),
          .probabilities = routing.probabilities.data<float>()};
}

Moments as_moments(const RunningMoments& running) {
  if (running.n == 0) return {};
  return {.n = static_cast<std::uint64_t>(running.n),
          .mean = running.mean,
          .m2 = running.m2,
          .min = running.least,
          .max = running.most};
}

/// Copies n counts to where a layer's are among those of all: each as many.
void copy_counts(const std::vector<std::uint32_t>& counters, std::int64_t begin, std::vector<std::uint64_t>& to,
                 std::size_t layer, std::size_t n) {
  std::copy_n(counters.begin() + begin, n, to.begin() + static_cast<std::ptrdiff_t>(layer * n));
}

}  // namespace

RoutingCounts::RoutingCounts(const AccumulatorShape& shape, TokenTableChoice tables)
    : shape_(shape),
      choice_(tables),
      counters_(make_rows<std::uint32_t>(shape, cells_of(shape, tables).size)),
      sums_(make_rows<double>(shape, columns_of(shape))),
      moments_(make_rows<RunningMoments>(shape, kSpreadFigures)) {}

RoutingTotals RoutingCounts::totals() {
  return {.cells = cells_of(shape_, choice_),
          .layers = shape_.layers,
          .columns = columns_of(shape_),
          .counters = as<std::uint32_t>(counters_),
          .sums = as<double>(sums_),
          .moments = as<RunningMoments>(moments_)};
}

void RoutingCounts::observe(const TokenView& tokens, std::span<const Routing> routing) {
  assert(routing.size() == static_cast<std::size_t>(shape_.layers));
  const auto n = static_cast<std::int64_t>(tokens.size());
  if (n == 0) return;
  const DeviceArray<CountedToken> counted(std::span<const CountedToken>(counted_tokens(tokens)));
  const RoutingTotals totals = this->totals();
  const std::int64_t n_chunks = (n + kCountChunk - 1) / kCountChunk;
  const auto chunks = static_cast<std::size_t>(shape_.layers * n_chunks);
  DeviceArray<double> chunk_sums(chunks * static_cast<std::size_t>(totals.columns));
  DeviceArray<RunningMoments> chunk_moments(chunks * kSpreadFigures);
  const double most_entropy = std::log(static_cast<double>(shape_.experts));
  CountedStep step = {.n = n,
                      .n_chunks = n_chunks,
                      .top_k = shape_.top_k,
                      .n_experts = shape_.experts,
                      .bins_per_unit = {bins_per_unit(most_entropy), bins_per_unit(1), bins_per_unit(1)},
                      .tokens = counted.data(),
                      .chunk_sums = chunk_sums.data(),
                      .chunk_moments = chunk_moments.data(),
                      .first_layer = 0,
                      .n_layers = 0,
                      .layers = {}};
  for (; step.first_layer < shape_.layers; step.first_layer += step.n_layers) {
    step.n_layers = std::min<std::int64_t>(kLayersOfLaunch, shape_.layers - step.first_layer);
    for (std::int64_t i = step.first_layer == 0 ? 1 : 0; i <= step.n_layers; ++i)
      step.layers[i] = choices_of(routing[static_cast<std::size_t>(step.first_layer + i - 1)]);
    launch_count_tokens(step, totals);
    launch_sum_chunks(step, totals);
    launch_add_chunks(step, totals);
  }
}

void RoutingCounts::absorb(RoutingCounts& other) {
  launch_add_totals(totals(), other.totals());
  other.clear();
}

void RoutingCounts::clear() {
  for (Tensor* tensor : {&counters_, &sums_, &moments_}) switchyard::clear(*tensor);
}

LayerCounts RoutingCounts::take() {
  const CounterCells cells = cells_of(shape_, choice_);
  const auto n_experts = static_cast<std::size_t>(shape_.experts);
  const auto k = static_cast<std::size_t>(shape_.top_k);
  const std::size_t pairs = n_experts * n_experts;
  LayerCounts taken{Accumulators(shape_), {}, {}};
  Accumulators& sums = taken.sums;
  for (std::size_t l = 0; l < static_cast<std::size_t>(shape_.layers); ++l) {
    const auto layer = static_cast<std::int64_t>(l);
    const auto counters = row_to_host<std::uint32_t>(counters_, layer);
    copy_counts(counters, cells.slot_count, sums.slot_count, l, k * n_experts);
    copy_counts(counters, cells.position_count, sums.position_count, l, kPositionBuckets * n_experts);
    copy_counts(counters, cells.coactivation, sums.coactivation, l, pairs);
    if (l > 0) {
      copy_counts(counters, cells.flow, sums.flow, l - 1, pairs);
      copy_counts(counters, cells.flow_top1, sums.flow_top1, l - 1, pairs);
    }
    copy_counts(counters, cells.repeat_top1, sums.repeat_top1, l, 1);
    copy_counts(counters, cells.repeat_any, sums.repeat_any, l, 1);
    copy_counts(counters, cells.confident, sums.confident, l, 1);
    copy_counts(counters, cells.weight_histogram, sums.weight_histogram, l, k * kHistogramBins);
    std::int64_t histogram = cells.histograms;
    for (auto* of_figure : {&sums.entropy_histogram, &sums.margin_histogram, &sums.top_probability_histogram}) {
      copy_counts(counters, histogram, *of_figure, l, kHistogramBins);
      histogram += kHistogramBins;
    }
    const auto table = [&](std::int64_t begin, std::size_t rows) {
      const auto first = counters.begin() + begin;
      return std::vector<std::uint32_t>(first, first + static_cast<std::ptrdiff_t>(rows * n_experts));
    };
    taken.groups.push_back(table(cells.group_count, kDocumentGroups));
    for (std::size_t which = 0; which < kTokenTables; ++which)
      if (choice_.keeps_all(which))
        taken.token_tables[which].push_back(
            table(cells.token_tables[which], static_cast<std::size_t>(shape_.vocabulary)));

    const auto columns = row_to_host<double>(sums_, layer);
    const auto* const weights = columns.data();
    std::copy_n(weights, k * n_experts, sums.weight_sum.begin() + static_cast<std::ptrdiff_t>(l * k * n_experts));
    std::copy_n(weights + k * n_experts, n_experts,
                sums.probability_sum.begin() + static_cast<std::ptrdiff_t>(l * n_experts));
    sums.z_sum[l] = columns.back();
    const auto moments = row_to_host<RunningMoments>(moments_, layer);
    sums.entropy[l] = as_moments(moments[0]);
    sums.margin[l] = as_moments(moments[1]);
    sums.top_probability[l] = as_moments(moments[2]);
  }
  clear();
  return taken;
}

std::uint64_t RoutingCounts::bytes(const AccumulatorShape& shape, TokenTableChoice tables) {
  const auto of_layer = static_cast<std::uint64_t>(cells_of(shape, tables).size) * sizeof(std::uint32_t) +
                        static_cast<std::uint64_t>(columns_of(shape)) * sizeof(double) +
                        kSpreadFigures * sizeof(RunningMoments);
  return static_cast<std::uint64_t>(shape.layers) * of_layer;
}

std::uint64_t RoutingCounts::step_bytes(const AccumulatorShape& shape, std::int64_t n) {
  const std::int64_t n_chunks = (n + kCountChunk - 1) / kCountChunk;
  const auto of_chunk =
      static_cast<std::uint64_t>(columns_of(shape)) * sizeof(double) + kSpreadFigures * sizeof(RunningMoments);
  return static_cast<std::uint64_t>(n) * sizeof(CountedToken) +
         static_cast<std::uint64_t>(shape.layers * n_chunks) * of_chunk;
}

}  // namespace switchyard::gpu
