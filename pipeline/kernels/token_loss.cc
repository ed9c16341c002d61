#include "pipeline/kernels/token_loss.h"

#include <omp.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <limits>
#include <vector>

#include "pipeline/kernels/leaf_loops.h"
#include "pipeline/kernels/tile_kernel.h"

namespace switchyard {

namespace {

/// What is known of a token's logits after some panels.
struct Running {
  float largest = -std::numeric_limits<float>::infinity();
  float sum = 0;  // of e^(logit - largest)
  float target = std::numeric_limits<float>::quiet_NaN();
  std::uint32_t predicted = 0;

  void take(std::span<const float> logits, std::int64_t first_column, std::int64_t target_column) {
    const auto n = static_cast<std::int64_t>(logits.size());
    const float panel_largest = leaf().largest(logits.data(), n);
    if (panel_largest > largest) {  // strictly: a tie stays with the lower id
      predicted = static_cast<std::uint32_t>(first_column + leaf().index_of(logits.data(), panel_largest, n));
      sum *= std::exp(largest - panel_largest);
      largest = panel_largest;
    }
    sum += leaf().sum_of_exp(logits.data(), largest, n);
    if (target_column >= first_column && target_column < first_column + n) {
      target = logits[static_cast<std::size_t>(target_column - first_column)];
    }
  }
};

}  // namespace

TokenLosses token_loss(TensorView h, const PackedWeights& head, std::span<const std::int64_t> targets) {
  const std::int64_t n = h.rows();
  assert(static_cast<std::int64_t>(targets.size()) == n);
  TokenLosses out;
  out.loss.resize(static_cast<std::size_t>(n));
  out.predicted.resize(static_cast<std::size_t>(n));
  constexpr std::int64_t kMostTiles = 8;
  const PanelProduct product(head, DType::f32);
  const std::int64_t tiles = (n + kTileRows - 1) / kTileRows;
  const std::int64_t chunk = std::clamp<std::int64_t>(tiles / (2 * omp_get_max_threads()), 1, kMostTiles) * kTileRows;
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t begin = 0; begin < n; begin += chunk) {
    const std::int64_t end = std::min(n, begin + chunk);
    std::array<Running, kMostTiles * kTileRows> running;
    for (int panel = 0; panel < head.n_panels(); ++panel) {
      const std::int64_t columns = head.panel_columns(panel);
      std::byte* tile = thread_scratch(Scratch::scores, static_cast<std::size_t>(kTileRows * columns) * sizeof(float));
      const auto* logits = reinterpret_cast<const float*>(tile);
      for (std::int64_t r = begin; r < end; r += kTileRows) {
        const std::int64_t tile_end = std::min(end, r + kTileRows);
        product.run_tile(head, panel, h, r, tile_end, tile);
        for (std::int64_t t = r; t < tile_end; ++t) {
          running[static_cast<std::size_t>(t - begin)].take(
              {logits + (t - r) * columns, static_cast<std::size_t>(columns)}, panel * head.panel(),
              targets[static_cast<std::size_t>(t)]);
        }
      }
    }
    for (std::int64_t t = begin; t < end; ++t) {
      const Running& token = running[static_cast<std::size_t>(t - begin)];
      const bool own = targets[static_cast<std::size_t>(t)] == kPredictedTarget;
      out.loss[static_cast<std::size_t>(t)] =
          token.largest + std::log(token.sum) - (own ? token.largest : token.target);
      out.predicted[static_cast<std::size_t>(t)] = token.predicted;
    }
  }
  return out;
}

}  // namespace switchyard
