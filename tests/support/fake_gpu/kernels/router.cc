#include <algorithm>
#include <numeric>

#include "pipeline/kernels/cuda/router_launch.h"
#include "pipeline/kernels/cuda/router_logits.h"
#include "tests/support/fake_gpu/fake_gpu.h"

/// The launches of router.cu and router_logits.cu.
namespace switchyard::gpu {

Tensor router_logits(TensorView h, TensorView weights) {
  Tensor logits(DType::f32, h.rows(), weights.rows(), Device::gpu);
  fake_gpu::launch({h.bytes(), weights.bytes(), logits.bytes()},
                   [h = h.data<float>(), weights = weights.data<float>(), to = logits.data<float>(), n = h.rows(),
                    n_experts = weights.rows(), d = h.cols()] {
                     for (std::int64_t i = 0; i < n * n_experts; ++i) {
                       const float* row = h + i / n_experts * d;
                       const float* expert = weights + i % n_experts * d;
                       to[i] = std::inner_product(row, row + d, expert, 0.0F);
                     }
                   });
  return logits;
}

void launch_router(const RouterArrays& all) {
  fake_gpu::launch({all.logits, all.probabilities, all.ids, all.weights, all.figures, all.fault, all.without}, [all] {
    constexpr int kPerLane = 16;
    for (int token = 0; token < all.n_tokens; ++token)
      if (!cores::route_row<kPerLane>(cores::HostWarp{}, row_of(all, token))) *all.fault = std::min(*all.fault, token);
  });
}

void launch_silence(const std::int32_t* ids, std::int64_t n_slots, std::int32_t expert, float* weights) {
  fake_gpu::launch({ids, weights}, [=] {
    for (std::int64_t slot = 0; slot < n_slots; ++slot)
      if (ids[slot] == expert) weights[slot] = 0;
  });
}

}  // namespace switchyard::gpu
