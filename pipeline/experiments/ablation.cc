#include "pipeline/experiments/ablation.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "parallel/device/device_array.h"
#include "parallel/device/device_memory.h"
#include "parallel/error.h"
#include "pipeline/experiments/layer_place.h"
#include "pipeline/kernels/cuda/router.h"
#include "pipeline/kernels/router.h"

namespace switchyard {
namespace {

/// Where it lies.
Tensor copy_of(TensorView x) {
  Tensor copy(x.dtype(), x.rows(), x.cols(), x.device());
  const auto bytes = static_cast<std::size_t>(x.rows() * x.row_bytes());
  if (x.device() == Device::gpu)
    copy_in(compute_stream(), copy.bytes(), x.bytes(), bytes);
  else if (bytes > 0)
    std::memcpy(copy.bytes(), x.bytes(), bytes);
  return copy;
}

/// Makes the change at one layer, where its routing lies.
class Change : public RoutingObserver {
 public:
  Change(AblationMode mode, int moe_layer, std::int32_t expert, RouterRule rule)
      : mode_(mode), moe_layer_(moe_layer), expert_(expert), rule_(rule) {}

  void decide(int moe_layer, Routing& routing) override {
    if (moe_layer != moe_layer_) return;
    if (routing.on_gpu()) {
      change_on_gpu(routing);
    } else {
      change_on_cpu(routing);
    }
  }

 private:
  void change_on_gpu(Routing& routing) const {
    switch (mode_) {
      case AblationMode::zero:
        gpu::silence(routing, expert_);
        break;
      case AblationMode::drop: {
        const DeviceArray<std::int32_t> dropped(std::span(&expert_, 1));
        routing = gpu::choose_experts(std::move(routing.logits), rule_, {.experts = dropped, .first = 0, .stride = 0});
        break;
      }
      case AblationMode::flip: {
        const DeviceArray<std::int32_t> ids = std::move(routing.gpu_ids);
        const auto last = static_cast<std::size_t>(routing.top_k) - 1;
        routing = gpu::choose_experts(std::move(routing.logits), rule_,
                                      {.experts = ids, .first = last, .stride = routing.top_k});
        break;
      }
    }
  }

  void change_on_cpu(Routing& routing) const {
    if (mode_ == AblationMode::zero) {
      for (std::size_t slot = 0; slot < routing.ids.size(); ++slot)
        if (routing.ids[slot] == expert_) routing.weights[slot] = 0;
      return;
    }
    std::vector<std::int32_t> without(static_cast<std::size_t>(routing.n_tokens()), expert_);
    const auto k = static_cast<std::size_t>(routing.top_k);
    if (mode_ == AblationMode::flip)
      for (std::size_t t = 0; t < without.size(); ++t) without[t] = routing.ids[t * k + k - 1];
    routing = choose_experts(std::move(routing.logits), rule_, "MoE layer " + std::to_string(moe_layer_), without);
  }

  AblationMode mode_;
  int moe_layer_;
  std::int32_t expert_;
  RouterRule rule_;
};

/// Adds up what the experts of the plan's layers do, window by window.
class UseObserver : public RoutingObserver {
 public:
  /// use: [windows of the batch, layers, experts]
  UseObserver(const AblationPlan& plan, const Batch& batch, std::size_t experts, ExpertUse* use)
      : plan_(plan), batch_(batch), experts_(experts), use_(use) {}

  void observe(int moe_layer, Routing&& routing, std::span<const ExchangePlan> /*plans*/) override {
    if (!place_of_layer(plan_.layers, moe_layer)) return;
    routing_ = std::move(routing);
    bring_to_host(routing_, "MoE layer " + std::to_string(moe_layer));
  }
  void expert_outputs(int moe_layer, const std::function<std::vector<double>()>& norms) override {
    const std::optional<std::size_t> layer = place_of_layer(plan_.layers, moe_layer);
    if (!layer) return;
    const std::vector<double> of_part = norms();
    norms_.insert(norms_.end(), of_part.begin(), of_part.end());
    if (norms_.size() < routing_.ids.size()) return;
    const auto k = static_cast<std::size_t>(routing_.top_k);
    for (std::size_t w = 0; w + 1 < batch_.window_offsets.size(); ++w) {
      ExpertUse* of_window = use_ + (w * plan_.layers.size() + *layer) * experts_;
      const std::size_t end = static_cast<std::size_t>(batch_.window_offsets[w + 1]) * k;
      for (std::size_t slot = static_cast<std::size_t>(batch_.window_offsets[w]) * k; slot < end; ++slot) {
        ExpertUse& use = of_window[routing_.ids[slot]];
        const auto weight = static_cast<double>(routing_.weights[slot]);
        ++use.count;
        use.weight += weight;
        use.weighted_norm += weight * norms_[slot];
        use.norm += norms_[slot];
      }
    }
    norms_.clear();
  }

 private:
  const AblationPlan& plan_;
  const Batch& batch_;
  std::size_t experts_;
  ExpertUse* use_;
  Routing routing_;            // of the latest layer
  std::vector<double> norms_;  // of its slots, as far as they have come
};

/// [n] 1 where the arg-max is the next token; 0 also where there is none.
std::vector<std::uint8_t> right_of(const TokenLosses& losses, const Batch& batch) {
  std::vector<std::uint8_t> right(batch.targets.size());
  for (std::size_t t = 0; t < right.size(); ++t)
    right[t] = batch.targets[t] == static_cast<std::int64_t>(losses.predicted[t]) ? 1 : 0;
  return right;
}

/// Calls add(window, token) for each token that has a next one, in order.
template <typename Add>
void for_scored_tokens(const Batch& batch, Add&& add) {
  for (std::size_t w = 0; w + 1 < batch.window_offsets.size(); ++w)
    for (auto t = static_cast<std::size_t>(batch.window_offsets[w]);
         t < static_cast<std::size_t>(batch.window_offsets[w + 1]); ++t)
      if (batch.targets[t] >= 0) add(w, t);
}

}  // namespace

AblationMode parse_ablation_mode(std::string_view text) {
  for (const AblationMode mode : {AblationMode::zero, AblationMode::drop, AblationMode::flip})
    if (text == to_string(mode)) return mode;
  throw UsageError("unknown mode '" + std::string(text) + "'", "--mode", "give zero, drop or flip");
}

std::string_view to_string(AblationMode mode) {
  switch (mode) {
    case AblationMode::zero:
      return "zero";
    case AblationMode::drop:
      return "drop";
    case AblationMode::flip:
      break;
  }
  return "flip";
}

void require_runner_up(AblationMode mode, const ModelConfig& config) {
  if (mode != AblationMode::zero && config.n_experts <= config.top_k)
    throw UsageError("every token goes to all " + std::to_string(config.n_experts) +
                         " experts of a layer: there is no other expert to take a place",
                     "--mode " + std::string(to_string(mode)), "use --mode zero");
}

AblationSweep::AblationSweep(Model& model, AblationPlan plan) : model_(model), plan_(std::move(plan)) {
  require_runner_up(plan_.mode, config());
}

std::uint64_t AblationSweep::bytes(const ModelConfig& config, std::int64_t batch_tokens) {
  return static_cast<std::uint64_t>(batch_tokens * config.d_model) * sizeof(float);  // what enters a changed layer
}

bool AblationSweep::step(const Batch& batch, WindowSums& sums, const std::function<bool()>& on_variant) {
  const std::size_t n_layers = plan_.layers.size();
  const std::size_t n_changes = n_layers * plan_.variants();
  const auto n_experts = static_cast<std::size_t>(config().n_experts);
  const std::size_t before = sums.baseline.size();
  const std::size_t windows = batch.window_offsets.size() - 1;
  sums.baseline.resize(before + windows);
  sums.ablated.resize((before + windows) * n_changes);
  sums.use.resize((before + windows) * n_layers * n_experts);
  AblatedScore* ablated = sums.ablated.data() + before * n_changes;  // [windows, changes]

  UseObserver watch(plan_, batch, n_experts, sums.use.data() + before * n_layers * n_experts);
  std::vector<std::vector<std::uint8_t>> right;  // [changes][n]
  Tensor x = model_.embed(batch);                // what enters decoder layer `at`
  int at = 0;
  for (const int moe_layer : plan_.layers) {
    const int layer = config().moe_layers[static_cast<std::size_t>(moe_layer)];
    model_.run_layers(x, batch, at, layer, watch);
    at = layer;
    for (std::size_t v = 0; v < plan_.variants(); ++v) {
      Change change(plan_.mode, moe_layer, plan_.mode == AblationMode::flip ? -1 : plan_.experts[v],
                    config().router_rule());
      Tensor y = copy_of(x);
      model_.run_layers(y, batch, at, config().n_layers, change);
      const TokenLosses losses = model_.head(y, batch);
      for_scored_tokens(batch, [&](std::size_t w, std::size_t t) {
        ablated[w * n_changes + right.size()].loss += static_cast<double>(losses.loss[t]);
      });
      right.push_back(right_of(losses, batch));
      if (!on_variant()) return false;
    }
  }
  model_.run_layers(x, batch, at, config().n_layers, watch);
  const TokenLosses losses = model_.head(x, batch);
  const std::vector<std::uint8_t> right_before = right_of(losses, batch);
  for_scored_tokens(batch, [&](std::size_t w, std::size_t t) {
    WindowScore& score = sums.baseline[before + w];
    score.loss += static_cast<double>(losses.loss[t]);
    ++score.tokens;
    score.right += right_before[t];
    for (std::size_t c = 0; c < n_changes; ++c) {
      ablated[w * n_changes + c].lost += right_before[t] > right[c][t] ? 1 : 0;
      ablated[w * n_changes + c].gained += right_before[t] < right[c][t] ? 1 : 0;
    }
  });
  return true;
}

}  // namespace switchyard
