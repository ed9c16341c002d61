#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "parallel/device/device_array.h"
#include "parallel/exchange_plan.h"
#include "parallel/slot_places.h"
#include "parallel/tensor.h"
#include "pipeline/model/routing_figure.h"

namespace switchyard {

/// What a family's routers do with their probabilities.
struct RouterRule {
  int top_k = 0;
  bool renormalise = true;  // combine weights are divided by their sum
};

/// What one router decided for n tokens, with the figures that the record keeps of it. All of it lies where the backend
/// made it: who wants a GPU's on the host copies it.
struct Routing {
  int top_k = 0;
  std::vector<std::int32_t> ids;        // [n, k] by combine weight descending; a tie goes to the lower id
  std::vector<float> weights;           // [n, k] combine weights, as they multiply expert outputs
  Tensor logits;                        // [n, E] f32 router logits, before the score function
  Tensor probabilities;                 // [n, E] f32 after it
  Tensor figures;                       // [kRoutingFigures, n] f32; fewer rows where those behind are not known
  DeviceArray<std::int32_t> gpu_ids;    // [n * k] in GPU memory, instead of ids; empty on CPUs
  Tensor gpu_weights;                   // [n, k] f32, likewise
  DeviceArray<std::int32_t> gpu_fault;  // [1] the first token with a logit that is not finite, n where there is none

  std::int64_t n_tokens() const {
    return top_k == 0 ? 0 : static_cast<std::int64_t>(std::max(ids.size(), gpu_ids.size())) / top_k;
  }
  ExpertIds expert_ids() const { return {ids, top_k}; }
  bool on_gpu() const { return gpu_weights.device() == Device::gpu; }
  /// [n] of figures on the host; empty where it is not known.
  std::span<const float> figure(RoutingFigure which) const {
    const auto row = static_cast<std::int64_t>(which);
    return row < figures.rows() ? figures.row<float>(row) : std::span<const float>();
  }
};

/// Throws the Error of a router's logit that is not a finite number; where: says which router.
[[noreturn]] void throw_not_finite(const std::string& where, std::int64_t token);

/// Copies a GPU's ids, weights and probabilities to ids, weights and probabilities of the host, and waits for them.
/// Throws as Router::route, of which where is. Does nothing to a CPU's.
void bring_to_host(Routing& routing, const std::string& where);

/// Sees the forward pass as it goes by, layers ascending, and may change where tokens go. Most observers care for
/// little.
class RoutingObserver {
 public:
  virtual ~RoutingObserver() = default;
  /// What enters a MoE layer's router and experts, [n, d_model] f32.
  virtual void ffn_input([[maybe_unused]] int moe_layer, [[maybe_unused]] TensorView h) {}
  /// What the router decided, before tokens are sent anywhere. Experts and weights changed here, where they lie, are
  /// those that count: they are what is dispatched, combined and observed. Each id is an expert of the layer, once in a
  /// token.
  virtual void decide([[maybe_unused]] int moe_layer, [[maybe_unused]] Routing& routing) {}
  /// moe_layer: index among MoE layers. The routing may be moved from. plans: of the parts of the batch's tokens.
  virtual void observe([[maybe_unused]] int moe_layer, [[maybe_unused]] Routing&& routing,
                       [[maybe_unused]] std::span<const ExchangePlan> plans) {}
  /// Experts' outputs, not yet weighted, of each part of the tokens in turn. norms gives the Euclidean norm of that of
  /// each of the part's slots, in slot order; who calls it, before this returns, waits for a GPU.
  virtual void expert_outputs([[maybe_unused]] int moe_layer,
                              [[maybe_unused]] const std::function<std::vector<double>()>& norms) {}
  /// Each decoder layer's output, [n, d_model] f32, before the next layer changes it.
  virtual void layer_output([[maybe_unused]] int layer, [[maybe_unused]] TensorView hidden) {}
};

}  // namespace switchyard
