#include "pipeline/kernels/cuda/device_warp.h"
#include "pipeline/kernels/cuda/launch.h"
#include "pipeline/kernels/cuda/router_core.h"
#include "pipeline/kernels/cuda/router_launch.h"

namespace switchyard::gpu {
namespace {

/// One warp a token.
template <int kPerLane>
__global__ void __launch_bounds__(kWarpThreads) router_kernel(RouterArrays all) {
  const int token = static_cast<int>(blockIdx.x) * kWarpsOfBlock + static_cast<int>(threadIdx.x) / 32;
  if (token >= all.n_tokens) return;
  const bool finite = cores::route_row<kPerLane>(cores::DeviceWarp{}, row_of(all, token));
  if (!finite && threadIdx.x % 32 == 0) atomicMin(all.fault, token);
}

/// One thread a slot.
__global__ void silence_kernel(const std::int32_t* ids, std::int64_t n_slots, std::int32_t expert, float* weights) {
  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (slot < n_slots && ids[slot] == expert) weights[slot] = 0;
}

}  // namespace

void launch_router(const RouterArrays& all) {
  const unsigned blocks = blocks_for(all.n_tokens, kWarpsOfBlock);
  CUstream_st* stream = compute_stream().handle();
  if (all.n_experts <= 32) {
    router_kernel<1><<<blocks, kWarpThreads, 0, stream>>>(all);
  } else if (all.n_experts <= 64) {
    router_kernel<2><<<blocks, kWarpThreads, 0, stream>>>(all);
  } else if (all.n_experts <= 128) {
    router_kernel<4><<<blocks, kWarpThreads, 0, stream>>>(all);
  } else if (all.n_experts <= 256) {
    router_kernel<8><<<blocks, kWarpThreads, 0, stream>>>(all);
  } else {
    router_kernel<16><<<blocks, kWarpThreads, 0, stream>>>(all);
  }
  check_launch("router_kernel");
}

void launch_silence(const std::int32_t* ids, std::int64_t n_slots, std::int32_t expert, float* weights) {
  silence_kernel<<<blocks_for(n_slots, kThreads), kThreads, 0, compute_stream().handle()>>>(ids, n_slots, expert,
                                                                                            weights);
  check_launch("silence_kernel");
}

}  // namespace switchyard::gpu
