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
          .without = -1,
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

}  // namespace switchyard::gpu
