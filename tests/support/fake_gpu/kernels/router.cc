#include <algorithm>

#include "pipeline/kernels/cuda/router_launch.h"
#include "tests/support/fake_gpu/fake_gpu.h"

/// The launch of router.cu.
namespace switchyard::gpu {

void launch_router(const RouterArrays& all) {
  fake_gpu::launch({all.logits, all.probabilities, all.ids, all.weights, all.figures, all.fault}, [all] {
    constexpr int kPerLane = 16;
    for (int token = 0; token < all.n_tokens; ++token)
      if (!cores::route_row<kPerLane>(cores::HostWarp{}, row_of(all, token))) *all.fault = std::min(*all.fault, token);
  });
}

}  // namespace switchyard::gpu
