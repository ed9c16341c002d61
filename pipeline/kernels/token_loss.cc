#include "pipeline/kernels/token_loss.h"

#include <omp.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "pipeline/kernels/blocked_product.h"
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

/// Of consecutive tokens, from `begin` on.
struct Tokens {
  std::int64_t begin;
  std::span<const std::int64_t> targets;
  std::span<Running> running;

  void take(const float* logits, std::int64_t columns, std::int64_t first_column) const {
    for (std::size_t t = 0; t < running.size(); ++t, logits += columns)
      running[t].take({logits, static_cast<std::size_t>(columns)}, first_column, targets[t]);
  }
  Tokens part(std::size_t first, std::size_t n) const {
    return {begin + static_cast<std::int64_t>(first), targets.subspan(first, n), running.subspan(first, n)};
  }
};

void take_in_tiles(TensorView h, const PackedWeights& head, const PanelProduct& product, const Tokens& tokens) {
  for (int panel = 0; panel < head.n_panels(); ++panel) {
    const std::int64_t columns = head.panel_columns(panel);
    std::byte* tile = thread_scratch(Scratch::scores, static_cast<std::size_t>(kTileRows * columns) * sizeof(float));
    for (std::size_t first = 0; first < tokens.running.size(); first += kTileRows) {
      const Tokens part = tokens.part(first, std::min<std::size_t>(kTileRows, tokens.running.size() - first));
      product.run_tile(head, panel, h, part.begin, part.begin + static_cast<std::int64_t>(part.running.size()), tile);
      part.take(reinterpret_cast<const float*>(tile), columns, panel * head.panel());
    }
  }
}

void take_in_blocks(TensorView h, const PackedWeights& head, const Tokens& tokens) {
  const auto n = static_cast<std::int64_t>(tokens.running.size());
  const std::int64_t rows = amx_block_rows(n);
  AmxRows left(rows, h.cols());
  left.set(0, h.row<Bf16>(tokens.begin).data(), n);
  std::vector<AmxLoss> losses(tokens.running.size());
  for (std::size_t t = 0; t < losses.size(); ++t)
    losses[t].target = static_cast<std::int32_t>(std::max<std::int64_t>(tokens.targets[t], -1));
  for (int panel = 0; panel < head.n_panels(); ++panel)
    multiply_blocks(head, panel, left, 0, rows, [&](std::int64_t column) {
      return AmxFinish{.kind = AmxFinish::Kind::loss,
                       .out = reinterpret_cast<std::byte*>(losses.data()),
                       .stride = sizeof(AmxLoss),
                       .block_stride = kAmxBlock * static_cast<std::int64_t>(sizeof(AmxLoss)),
                       .rows = n,
                       .column = static_cast<std::int32_t>(panel * head.panel() + column)};
    });
  for (std::size_t t = 0; t < losses.size(); ++t)
    tokens.running[t] = {losses[t].largest, std::accumulate(losses[t].sums.begin(), losses[t].sums.end(), 0.0F),
                         losses[t].target_logit, static_cast<std::uint32_t>(losses[t].predicted)};
}

}  // namespace

TokenLosses token_loss(TensorView h, const PackedWeights& head, std::span<const std::int64_t> targets) {
  const std::int64_t n = h.rows();
  assert(static_cast<std::int64_t>(targets.size()) == n);
  TokenLosses out;
  out.loss.resize(static_cast<std::size_t>(n));
  out.predicted.resize(static_cast<std::size_t>(n));
  constexpr std::int64_t kMostTiles = 8;
  const PanelProduct product(head, DType::f32);
  const bool blocks = head.in_blocks();
  const std::int64_t tiles = (n + kTileRows - 1) / kTileRows;
  const std::int64_t chunk = std::clamp<std::int64_t>(tiles / (2 * omp_get_max_threads()), 1, kMostTiles) * kTileRows;
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t begin = 0; begin < n; begin += chunk) {
    const std::int64_t end = std::min(n, begin + chunk);
    std::array<Running, kMostTiles * kTileRows> running;
    const auto size = static_cast<std::size_t>(end - begin);
    const Tokens tokens = {begin, targets.subspan(static_cast<std::size_t>(begin), size),
                           std::span(running).first(size)};
    if (blocks) {
      take_in_blocks(h, head, tokens);
    } else {
      take_in_tiles(h, head, product, tokens);
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
