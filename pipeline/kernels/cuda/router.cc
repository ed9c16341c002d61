#include "pipeline/kernels/cuda/router.h"

#include <string>
#include <utility>

#include "parallel/error.h"
#include "pipeline/kernels/cuda/router_launch.h"

namespace switchyard::gpu {
namespace {

Routing choose(Tensor logits, RouterRule rule, const Withheld* without) {
  if (logits.cols() > 512 || rule.top_k > 32) {
    throw Error("the GPU's router has room for 512 experts and 32 choices of a token, not for " +
                    std::to_string(logits.cols()) + " and " + std::to_string(rule.top_k),
                {}, "route this model on the CPU");
  }
  const std::int64_t n = logits.rows();
  const auto none = static_cast<std::int32_t>(n);
  Routing out;
  out.top_k = rule.top_k;
  out.logits = std::move(logits);
  out.probabilities = Tensor(DType::f32, n, out.logits.cols(), Device::gpu);
  out.figures = Tensor(DType::f32, kRoutingFigures, n, Device::gpu);
  out.gpu_ids = DeviceArray<std::int32_t>(static_cast<std::size_t>(n * rule.top_k));
  out.gpu_weights = Tensor(DType::f32, n, rule.top_k, Device::gpu);
  out.gpu_fault = DeviceArray<std::int32_t>(std::span(&none, 1));
  if (n == 0) return out;
  launch_router({.logits = out.logits.data<float>(),
                 .n_tokens = none,
                 .n_experts = static_cast<int>(out.logits.cols()),
                 .top_k = rule.top_k,
                 .renormalise = rule.renormalise,
                 .probabilities = out.probabilities.data<float>(),
                 .ids = out.gpu_ids.data(),
                 .weights = out.gpu_weights.data<float>(),
                 .figures = out.figures.data<float>(),
                 .fault = out.gpu_fault.data(),
                 .without = without == nullptr ? nullptr : without->experts.data() + without->first,
                 .without_stride = without == nullptr ? 0 : without->stride});
  return out;
}

}  // namespace

Routing choose_experts(Tensor logits, RouterRule rule) { return choose(std::move(logits), rule, nullptr); }

Routing choose_experts(Tensor logits, RouterRule rule, Withheld without) {
  return choose(std::move(logits), rule, &without);
}

void silence(Routing& routing, std::int32_t expert) {
  const auto n_slots = static_cast<std::int64_t>(routing.gpu_ids.size());
  if (n_slots > 0) launch_silence(routing.gpu_ids.data(), n_slots, expert, routing.gpu_weights.data<float>());
}

}  // namespace switchyard::gpu
