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

}  // namespace switchyard::gpu
