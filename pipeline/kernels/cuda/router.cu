#include <algorithm>
#include <utility>
#include <vector>

#include "parallel/error.h"
#include "pipeline/kernels/cuda/device_warp.h"
#include "pipeline/kernels/cuda/launch.h"
#include "pipeline/kernels/cuda/router.h"
#include "pipeline/kernels/cuda/router_core.h"

namespace switchyard::gpu {
namespace {

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

/// One warp a token.
template <int kPerLane>
__global__ void __launch_bounds__(kWarpThreads) router_kernel(RouterArrays all) {
  const int token = static_cast<int>(blockIdx.x) * kWarpsOfBlock + static_cast<int>(threadIdx.x) / 32;
  if (token >= all.n_tokens) return;
  const std::int64_t row = static_cast<std::int64_t>(token) * all.n_experts;
  const std::int64_t slot = static_cast<std::int64_t>(token) * all.top_k;
  float* figures = all.figures + token;
  const bool finite = cores::route_row<kPerLane>(cores::DeviceWarp{}, {.logits = all.logits + row,
                                                                       .n_experts = all.n_experts,
                                                                       .top_k = all.top_k,
                                                                       .renormalise = all.renormalise,
                                                                       .without = -1,
                                                                       .probabilities = all.probabilities + row,
                                                                       .ids = all.ids + slot,
                                                                       .weights = all.weights + slot,
                                                                       .entropy = figures,
                                                                       .margin = figures + all.n_tokens,
                                                                       .top_probability = figures + 2 * all.n_tokens,
                                                                       .log_sum_exp = figures + 3 * all.n_tokens});
  if (!finite && threadIdx.x % 32 == 0) atomicMin(all.fault, token);
}

void launch(const RouterArrays& all) {
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

std::vector<float> floats_of(TensorView rows) {
  std::vector<float> values(static_cast<std::size_t>(rows.rows() * rows.cols()));
  copy_bytes(values.data(), rows.bytes(), values.size() * sizeof(float));
  return values;
}

}  // namespace

DeviceRouting choose_experts(Tensor logits, RouterRule rule) {
  if (logits.cols() > 512 || rule.top_k > 32) {
    throw Error("the GPU's router has room for 512 experts and 32 choices of a token, not for " +
                    std::to_string(logits.cols()) + " and " + std::to_string(rule.top_k),
                {}, "route this model on the CPU");
  }
  const std::int64_t n = logits.rows();
  const auto none = static_cast<std::int32_t>(n);
  DeviceRouting out{.top_k = rule.top_k,
                    .logits = std::move(logits),
                    .probabilities = {},
                    .weights = Tensor(DType::f32, n, rule.top_k, Device::gpu),
                    .figures = Tensor(DType::f32, 4, n, Device::gpu),
                    .ids = DeviceArray<std::int32_t>(static_cast<std::size_t>(n * rule.top_k)),
                    .fault = DeviceArray<std::int32_t>(std::span(&none, 1))};
  out.probabilities = Tensor(DType::f32, n, out.logits.cols(), Device::gpu);
  if (n == 0) return out;
  launch({.logits = out.logits.data<float>(),
          .n_tokens = none,
          .n_experts = static_cast<int>(out.logits.cols()),
          .top_k = rule.top_k,
          .renormalise = rule.renormalise,
          .probabilities = out.probabilities.data<float>(),
          .ids = out.ids.data(),
          .weights = out.weights.data<float>(),
          .figures = out.figures.data<float>(),
          .fault = out.fault.data()});
  return out;
}

Routing to_host(const DeviceRouting& routing, const std::string& where) {
  const std::int64_t n = routing.logits.rows();
  const std::int32_t fault = routing.fault.to_host().front();
  if (fault < n) {
    throw Error("a router logit is not a finite number", where + ", token " + std::to_string(fault) + " of the batch",
                "check the checkpoint's tensors for NaN, or run with --precision f32");
  }
  Routing out;
  out.top_k = routing.top_k;
  out.ids = routing.ids.to_host();
  out.weights = floats_of(routing.weights);
  out.logits = copy_to(Device::cpu, routing.logits);
  out.probabilities = copy_to(Device::cpu, routing.probabilities);
  std::int64_t row = 0;
  for (auto* column : {&out.entropy, &out.margin, &out.top_probability, &out.log_sum_exp}) {
    *column = floats_of(routing.figures.rows(row, row + 1));
    ++row;
  }
  return out;
}

}  // namespace switchyard::gpu
