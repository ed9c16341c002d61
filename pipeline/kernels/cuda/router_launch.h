#pragma once

#include <cstdint>

#include "pipeline/kernels/cuda/router_core.h"
#include "pipeline/model/routing_figure.h"

namespace switchyard::gpu {

/// Arrays of a router's tokens, in GPU memory.
struct RouterArrays {
  const float* logits;
  int n_tokens, n_experts, top_k;
  bool renormalise;
  float* probabilities;
  std::int32_t* ids;
  float* weights;
  float* figures;
  std::int32_t* fault;
  const std::int32_t* without;  // an expert of each token that is not to be chosen, so far apart; or null
  int without_stride;
};

/// Those of one token.
SWITCHYARD_CORE cores::RouterRow row_of(const RouterArrays& all, int token) {
  const std::int64_t row = static_cast<std::int64_t>(token) * all.n_experts;
  const std::int64_t slot = static_cast<std::int64_t>(token) * all.top_k;
  float* figures = all.figures + token;
  const auto figure = [&](RoutingFigure which) { return figures + static_cast<int>(which) * all.n_tokens; };
  return {.logits = all.logits + row,
          .n_experts = all.n_experts,
          .top_k = all.top_k,
          .renormalise = all.renormalise,
          .without = all.without == nullptr ? -1 : all.without[static_cast<std::int64_t>(token) * all.without_stride],
          .probabilities = all.probabilities + row,
          .ids = all.ids + slot,
          .weights = all.weights + slot,
          .entropy = figure(RoutingFigure::entropy),
          .margin = figure(RoutingFigure::margin),
          .top_probability = figure(RoutingFigure::top_probability),
          .log_sum_exp = figure(RoutingFigure::log_sum_exp)};
}

/// At most 512 experts, in the compute stream.
void launch_router(const RouterArrays& all);

/// Weights [n_slots] of slots whose id is that of `expert` become 0, in the compute stream.
void launch_silence(const std::int32_t* ids, std::int64_t n_slots, std::int32_t expert, float* weights);

}  // namespace switchyard::gpu
