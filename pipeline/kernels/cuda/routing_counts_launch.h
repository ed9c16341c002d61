#pragma once

#include <cstdint>

#include "pipeline/analysis/binning.h"
#include "pipeline/kernels/cuda/warp.h"
#include "pipeline/model/routing_figure.h"

/// How routing is counted on a GPU. Arrays are in GPU memory, launches in the compute stream.
///
/// Integers are counted by atomic additions, whose order does not matter. Sums of floating-point numbers are made of
/// chunks of tokens, each by one thread in the tokens' order, and then of a step's chunks in theirs: an order that the
/// number of tokens alone decides, so that a run's bits do not depend on timing.
namespace switchyard::gpu {

inline constexpr std::int64_t kCountChunk = 256;  // tokens
inline constexpr int kLayersOfLaunch = 32;
inline constexpr int kTablesOfTokens = 3;  // kTokenTables
inline constexpr int kSpreadFigures = 3;   // rows of Routing::figures that have moments and a histogram

/// Cells of a layer's counters: where each table of Accumulators begins, and how many there are.
struct CounterCells {
  std::int64_t slot_count;       // [k, E]
  std::int64_t position_count;   // [kPositionBuckets, E]
  std::int64_t group_count;      // [kDocumentGroups, E]
  std::int64_t coactivation;     // [E, E] of a choice and a later one
  std::int64_t flow, flow_top1;  // [E, E] from the layer before; nothing in the first
  std::int64_t repeat_top1, repeat_any, confident;
  std::int64_t histograms;                     // [kSpreadFigures, bins]
  std::int64_t weight_histogram;               // [k, bins]
  std::int64_t token_tables[kTablesOfTokens];  // [V, E] each; -1: not kept
  std::int64_t size;
};

/// What of a token decides where its choices are counted.
struct CountedToken {
  static constexpr std::uint8_t kCounts = 1;
  static constexpr std::uint8_t kContinues = 2;  // so does the token before, of the same window

  std::int32_t table_rows[kTablesOfTokens];  // of each token table; -1: none
  std::uint16_t group;
  std::uint8_t bucket;  // of its position
  std::uint8_t flags;
};

/// Of one layer, as in Routing.
struct LayerChoices {
  const std::int32_t* ids = nullptr;
  const float* weights = nullptr;
  const float* figures = nullptr;
  const float* probabilities = nullptr;
};

/// Count, mean, sum of squared deviations and range; all 0 where there was no value.
struct RunningMoments {
  double n, mean, m2, least, most;
};

/// A state of counting: [L] of each.
struct RoutingTotals {
  CounterCells cells;
  std::int64_t layers, columns;
  std::uint32_t* counters;  // [L, cells.size]
  double* sums;             // [L, columns]: [k, E] weights, [E] probabilities, square of log-sum-exp
  RunningMoments* moments;  // [L, kSpreadFigures]
};

/// Tokens of a step, and some of its layers.
struct CountedStep {
  std::int64_t n, n_chunks;
  int top_k, n_experts;
  float bins_per_unit[kSpreadFigures];
  const CountedToken* tokens;     // [n]
  double* chunk_sums;             // [L, n_chunks, columns]
  RunningMoments* chunk_moments;  // [L, n_chunks, kSpreadFigures]
  std::int64_t first_layer, n_layers;
  LayerChoices layers[kLayersOfLaunch + 1];  // the one before the first, if there is one, and n_layers
};

/// The layers' counters.
void launch_count_tokens(const CountedStep& step, const RoutingTotals& totals);
/// The layers' sums and moments, by chunks.
void launch_sum_chunks(const CountedStep& step, const RoutingTotals& totals);
/// The chunks' sums into the totals'.
void launch_add_chunks(const CountedStep& step, const RoutingTotals& totals);
/// to += from.
void launch_add_totals(const RoutingTotals& to, const RoutingTotals& from);

}  // namespace switchyard::gpu

namespace switchyard::cores {

SWITCHYARD_CORE int histogram_bin(float value, float bins_per_unit) {
  const int bin = static_cast<int>(value * bins_per_unit);
  return bin < 0 ? 0 : bin < kHistogramBins ? bin : kHistogramBins - 1;
}

/// One token's choices in a layer. layer: of the launch.
SWITCHYARD_CORE void count_token(const gpu::CountedStep& step, const gpu::RoutingTotals& totals, std::int64_t layer,
                                 std::int64_t token) {
  const gpu::CountedToken own = step.tokens[token];
  if ((own.flags & gpu::CountedToken::kCounts) == 0) return;
  const gpu::LayerChoices& choices = step.layers[layer + 1];
  const gpu::CounterCells& cells = totals.cells;
  std::uint32_t* const counters = totals.counters + (step.first_layer + layer) * cells.size;
  const std::int64_t n_experts = step.n_experts;
  const int k = step.top_k;
  const std::int32_t* const ids = choices.ids + token * k;
  const float* const weights = choices.weights + token * k;

  for (int j = 0; j < k; ++j) {
    const std::int64_t expert = ids[j];
    count(counters + cells.slot_count + j * n_experts + expert);
    count(counters + cells.position_count + own.bucket * n_experts + expert);
    count(counters + cells.group_count + own.group * n_experts + expert);
    for (int later = j + 1; later < k; ++later) count(counters + cells.coactivation + expert * n_experts + ids[later]);
    count(counters + cells.weight_histogram + j * kHistogramBins +
          histogram_bin(weights[j], static_cast<float>(kHistogramBins)));
    SWITCHYARD_UNROLL
    for (int table = 0; table < gpu::kTablesOfTokens; ++table)
      if (cells.token_tables[table] >= 0 && own.table_rows[table] >= 0)
        count(counters + cells.token_tables[table] + own.table_rows[table] * n_experts + expert);
  }

  if (step.layers[layer].ids != nullptr) {
    const std::int32_t* const from = step.layers[layer].ids + token * k;
    count(counters + cells.flow_top1 + from[0] * n_experts + ids[0]);
    for (int i = 0; i < k; ++i)
      for (int j = 0; j < k; ++j) count(counters + cells.flow + from[i] * n_experts + ids[j]);
  }

  if ((own.flags & gpu::CountedToken::kContinues) != 0) {
    const std::int32_t* const before = ids - k;
    bool common = false;
    for (int i = 0; i < k; ++i)
      for (int j = 0; j < k; ++j) common = common || before[i] == ids[j];
    if (before[0] == ids[0]) count(counters + cells.repeat_top1);
    if (common) count(counters + cells.repeat_any);
  }

  SWITCHYARD_UNROLL
  for (int figure = 0; figure < gpu::kSpreadFigures; ++figure)
    count(counters + cells.histograms + figure * kHistogramBins +
          histogram_bin(choices.figures[figure * step.n + token], step.bins_per_unit[figure]));
  constexpr auto kTopProbability = static_cast<std::int64_t>(RoutingFigure::top_probability);
  if (choices.figures[kTopProbability * step.n + token] > kConfidentProbability) count(counters + cells.confident);
}

/// Calls work(token) for those of a chunk that count, in their order.
template <typename Work>
SWITCHYARD_CORE void for_counted(const gpu::CountedStep& step, std::int64_t chunk, Work work) {
  const std::int64_t begin = chunk * gpu::kCountChunk;
  const std::int64_t end = begin + gpu::kCountChunk < step.n ? begin + gpu::kCountChunk : step.n;
  for (std::int64_t token = begin; token < end; ++token)
    if ((step.tokens[token].flags & gpu::CountedToken::kCounts) != 0) work(token);
}

/// A column of RoutingTotals::sums over a chunk. layer: of the launch.
SWITCHYARD_CORE void sum_chunk(const gpu::CountedStep& step, const gpu::RoutingTotals& totals, std::int64_t layer,
                               std::int64_t chunk, std::int64_t column) {
  const gpu::LayerChoices& choices = step.layers[layer + 1];
  const std::int64_t n_experts = step.n_experts;
  const std::int64_t k = step.top_k;
  double sum = 0;
  if (column < k * n_experts) {
    const std::int64_t j = column / n_experts;
    const std::int64_t expert = column % n_experts;
    for_counted(step, chunk, [&](std::int64_t token) {
      if (choices.ids[token * k + j] == expert) sum += static_cast<double>(choices.weights[token * k + j]);
    });
  } else if (column < (k + 1) * n_experts) {
    const float* const of_expert = choices.probabilities + (column - k * n_experts);
    for_counted(step, chunk, [&](std::int64_t token) { sum += static_cast<double>(of_expert[token * n_experts]); });
  } else {
    constexpr auto kLogSumExp = static_cast<std::int64_t>(RoutingFigure::log_sum_exp);
    const float* const log_sum_exp = choices.figures + kLogSumExp * step.n;
    for_counted(step, chunk, [&](std::int64_t token) {
      const auto value = static_cast<double>(log_sum_exp[token]);
      sum += value * value;
    });
  }
  step.chunk_sums[((step.first_layer + layer) * step.n_chunks + chunk) * totals.columns + column] = sum;
}

/// Moments of a figure over a chunk: the mean first, then deviations from it. layer: of the launch.
SWITCHYARD_CORE void spread_chunk(const gpu::CountedStep& step, std::int64_t layer, std::int64_t chunk,
                                  std::int64_t figure) {
  const float* const values = step.layers[layer + 1].figures + figure * step.n;
  gpu::RunningMoments moments{};
  for_counted(step, chunk, [&](std::int64_t token) {
    const auto value = static_cast<double>(values[token]);
    moments.least = moments.n > 0 && moments.least < value ? moments.least : value;
    moments.most = moments.n > 0 && moments.most > value ? moments.most : value;
    moments.n += 1;
    moments.mean += value;
  });
  if (moments.n > 0) moments.mean /= moments.n;
  for_counted(step, chunk, [&](std::int64_t token) {
    const double deviation = static_cast<double>(values[token]) - moments.mean;
    moments.m2 += deviation * deviation;
  });
  step.chunk_moments[((step.first_layer + layer) * step.n_chunks + chunk) * gpu::kSpreadFigures + figure] = moments;
}

/// As Moments::merge.
SWITCHYARD_CORE void merge(gpu::RunningMoments& to, const gpu::RunningMoments& other) {
  if (other.n == 0) return;
  if (to.n == 0) {
    to = other;
    return;
  }
  const double n = to.n + other.n;
  const double delta = other.mean - to.mean;
  to.m2 += other.m2 + delta * delta * to.n * other.n / n;
  to.mean += delta * other.n / n;
  to.least = to.least < other.least ? to.least : other.least;
  to.most = to.most > other.most ? to.most : other.most;
  to.n = n;
}

/// A column of a layer's sums. layer: of the launch.
SWITCHYARD_CORE void add_chunk_sums(const gpu::CountedStep& step, const gpu::RoutingTotals& totals, std::int64_t layer,
                                    std::int64_t column) {
  const std::int64_t of_model = step.first_layer + layer;
  const double* const chunks = step.chunk_sums + of_model * step.n_chunks * totals.columns + column;
  double sum = 0;
  for (std::int64_t chunk = 0; chunk < step.n_chunks; ++chunk) sum += chunks[chunk * totals.columns];
  totals.sums[of_model * totals.columns + column] += sum;
}

SWITCHYARD_CORE void add_chunk_moments(const gpu::CountedStep& step, const gpu::RoutingTotals& totals,
                                       std::int64_t layer, std::int64_t figure) {
  const std::int64_t of_model = step.first_layer + layer;
  const gpu::RunningMoments* const chunks =
      step.chunk_moments + of_model * step.n_chunks * gpu::kSpreadFigures + figure;
  gpu::RunningMoments& to = totals.moments[of_model * gpu::kSpreadFigures + figure];
  for (std::int64_t chunk = 0; chunk < step.n_chunks; ++chunk) merge(to, chunks[chunk * gpu::kSpreadFigures]);
}

/// The i-th of each kind of totals.
SWITCHYARD_CORE void add_totals(const gpu::RoutingTotals& to, const gpu::RoutingTotals& from, std::int64_t i) {
  if (i < to.layers * to.cells.size) to.counters[i] += from.counters[i];
  if (i < to.layers * to.columns) to.sums[i] += from.sums[i];
  if (i < to.layers * gpu::kSpreadFigures) merge(to.moments[i], from.moments[i]);
}

}  // namespace switchyard::cores
