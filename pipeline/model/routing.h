#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/exchange_plan.h"
#include "parallel/tensor.h"

namespace switchyard {

/// What one router decided for n tokens, with the figures that the record keeps of it.
struct Routing {
  int top_k = 0;
  std::vector<std::int32_t> ids;       // [n, k] by combine weight descending; a tie goes to the lower id
  std::vector<float> weights;          // [n, k] combine weights, as they multiply expert outputs
  Tensor logits;                       // [n, E] f32 router logits, before the score function
  Tensor probabilities;                // [n, E] f32 after it
  std::vector<float> entropy;          // [n] nats, of the probabilities
  std::vector<float> margin;           // [n] k-th minus (k+1)-th probability; 0 when k = E
  std::vector<float> top_probability;  // [n] largest probability
  std::vector<float> log_sum_exp;      // [n] of the logits

  std::int64_t n_tokens() const { return logits.rows(); }
  ExpertIds expert_ids() const { return {ids, top_k}; }
};

/// Sees every MoE layer's routing as the forward pass goes by, layers ascending.
class RoutingObserver {
 public:
  virtual ~RoutingObserver() = default;
  /// moe_layer: index among MoE layers. The routing may be moved from.
  virtual void observe(int moe_layer, Routing&& routing, const ExchangePlan& plan) = 0;
  /// Each decoder layer's output, [n, d_model] f32, before the next layer changes it. Most observers do not care.
  virtual void layer_output([[maybe_unused]] int layer, [[maybe_unused]] TensorView hidden) {}
};

}  // namespace switchyard
