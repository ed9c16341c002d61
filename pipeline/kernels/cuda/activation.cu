#include "pipeline/kernels/cuda/activation.h"
#include "pipeline/kernels/cuda/activation_core.h"
#include "pipeline/kernels/cuda/device_warp.h"
#include "pipeline/kernels/cuda/launch.h"

namespace switchyard::gpu {
namespace {

/// One block a row.
template <Activation kActivation, typename In, typename Out>
__global__ void activate_kernel(const In* gate_up, std::int64_t f, Out* out) {
  const In* gate = gate_up + blockIdx.x * 2 * f;
  for (std::int64_t i = threadIdx.x; i < f; i += blockDim.x) {
    const float g = cores::widen(gate[i]);
    const float activated = kActivation == Activation::silu ? cores::silu(g) : cores::gelu(g);
    cores::store(out + blockIdx.x * f + i, activated * cores::widen(gate[f + i]));
  }
}

template <typename In, typename Out>
void launch(TensorView gate_up, Activation activation, Tensor& out) {
  const auto blocks = static_cast<unsigned>(out.rows());
  CUstream_st* stream = compute_stream().handle();
  if (activation == Activation::silu) {
    activate_kernel<Activation::silu><<<blocks, kThreads, 0, stream>>>(gate_up.data<In>(), out.cols(), out.data<Out>());
  } else {
    activate_kernel<Activation::gelu><<<blocks, kThreads, 0, stream>>>(gate_up.data<In>(), out.cols(), out.data<Out>());
  }
  check_launch("activate_kernel");
}

}  // namespace

Tensor activate(TensorView gate_up, Activation activation, DType out) {
  Tensor activated(out, gate_up.rows(), gate_up.cols() / 2, Device::gpu);
  if (gate_up.rows() == 0) return activated;
  const bool from_bf16 = gate_up.dtype() == DType::bf16;
  if (out == DType::bf16) {
    from_bf16 ? launch<Bf16, Bf16>(gate_up, activation, activated)
              : launch<float, Bf16>(gate_up, activation, activated);
  } else {
    from_bf16 ? launch<Bf16, float>(gate_up, activation, activated)
              : launch<float, float>(gate_up, activation, activated);
  }
  return activated;
}

}  // namespace switchyard::gpu
