#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/exchange_plan.h"
#include "parallel/tensor.h"

namespace switchyard {

/// What a family's routers do with their probabilities.
struct RouterRule {
  int top_k = 0;
  bool renormalise = true;  // combine weights are divided by their sum
};

/// What one router decided for n tokens, with the figures that the record keeps of it. Logits and probabilities lie
/// where the backend made them, the rest on the host: who wants those of a GPU on the host copies them.
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

  std::int64_t n_tokens() const { return static_cast<std::int64_t>(entropy.size()); }
  ExpertIds expert_ids() const { return {ids, top_k}; }
};

/// Sees the forward pass as it goes by, layers ascending, and may change where tokens go. Most observers care for
/// little.
class RoutingObserver {
 public:
  virtual ~RoutingObserver() = default;
  /// What enters a MoE layer's router and experts, [n, d_model] f32.
  virtual void ffn_input([[maybe_unused]] int moe_layer, [[maybe_unused]] TensorView h) {}
  /// What the router decided, before tokens are sent anywhere. Experts and weights changed here are those that count:
  /// they are what is dispatched, combined and observed. Each id is an expert of the layer, once in a token.
  virtual void decide([[maybe_unused]] int moe_layer, [[maybe_unused]] Routing& routing) {}
  /// moe_layer: index among MoE layers. The routing may be moved from. plans: of the parts of the batch's tokens.
  virtual void observe(int moe_layer, Routing&& routing, std::span<const ExchangePlan> plans) = 0;
  /// Experts' outputs of each part in turn, not yet weighted, [plan.n_send(), d_model] f32 or bf16: row i belongs to
  /// slot plan.pack_order()[i].
  virtual void expert_outputs([[maybe_unused]] int moe_layer, [[maybe_unused]] TensorView rows,
                              [[maybe_unused]] const ExchangePlan& plan) {}
  /// Each decoder layer's output, [n, d_model] f32, before the next layer changes it.
  virtual void layer_output([[maybe_unused]] int layer, [[maybe_unused]] TensorView hidden) {}
};

}  // namespace switchyard
