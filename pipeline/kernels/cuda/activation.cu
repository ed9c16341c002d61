#include "pipeline/kernels/cuda/activation.h"
#include "pipeline/kernels/cuda/activation_core.h"
#include "pipeline/kernels/cuda/device_warp.h"
#include "pipeline/kernels/cuda/launch.h"

namespace switchyard::gpu {
namespace {

/// One block a row.
template <Activation kActivation, int kWidth, typename In, typename Out>
__global__ void __launch_bounds__(kThreads) activate_kernel(const In* gate_up, int f, Out* out) {
  const In* gate = gate_up + static_cast<std::int64_t>(blockIdx.x) * 2 * f;
  Out* to = out + static_cast<std::int64_t>(blockIdx.x) * f;
  SWITCHYARD_UNROLL_4
  for (int i = static_cast<int>(threadIdx.x) * kWidth; i < f; i += static_cast<int>(blockDim.x) * kWidth) {
    auto own = cores::load<kWidth>(gate + i);
    const auto up = cores::load<kWidth>(gate + f + i);
    SWITCHYARD_UNROLL
    for (int j = 0; j < kWidth; ++j)
      own.at[j] = (kActivation == Activation::silu ? cores::silu(own.at[j]) : cores::gelu(own.at[j])) * up.at[j];
    cores::store<kWidth>(to + i, own);
  }
}

/// One thread an element.
template <Activation kActivation>
__global__ void __launch_bounds__(kThreads) activate_gate_kernel(float* gate, std::int64_t n) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) gate[i] = kActivation == Activation::silu ? cores::silu(gate[i]) : cores::gelu(gate[i]);
}

template <typename In, typename Out>
void launch(TensorView gate_up, Activation activation, Tensor& out) {
  with_packs(out.cols(), [&]<int kWidth>(Width<kWidth>) {
    const auto kernel = activation == Activation::silu ? activate_kernel<Activation::silu, kWidth, In, Out>
                                                       : activate_kernel<Activation::gelu, kWidth, In, Out>;
    kernel<<<static_cast<unsigned>(out.rows()), threads_for(out.cols() / kWidth), 0, compute_stream().handle()>>>(
        gate_up.data<In>(), static_cast<int>(out.cols()), out.data<Out>());
  });
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

void activate(Tensor& gate, Activation activation) {
  const std::int64_t n = gate.rows() * gate.cols();
  if (n == 0) return;
  const auto kernel =
      activation == Activation::silu ? activate_gate_kernel<Activation::silu> : activate_gate_kernel<Activation::gelu>;
  kernel<<<blocks_for(n, kThreads), kThreads, 0, compute_stream().handle()>>>(gate.data<float>(), n);
  check_launch("activate_gate_kernel");
}

}  // namespace switchyard::gpu
