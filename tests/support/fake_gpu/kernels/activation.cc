#include "pipeline/kernels/cuda/activation.h"

#include "pipeline/kernels/cuda/activation_core.h"
#include "tests/support/fake_gpu/fake_gpu.h"

/// The launches of activation.cu.
namespace switchyard::gpu {
namespace {

template <typename In, typename Out>
void launch(TensorView gate_up, Activation activation, Tensor& out) {
  fake_gpu::launch({gate_up.bytes(), out.bytes()},
                   [=, from = gate_up.data<In>(), to = out.data<Out>(), n = out.rows(), f = out.cols()] {
                     for (std::int64_t row = 0; row < n; ++row) {
                       const In* gate = from + row * 2 * f;
                       for (std::int64_t i = 0; i < f; ++i) {
                         const float g = cores::widen(gate[i]);
                         const float activated = activation == Activation::silu ? cores::silu(g) : cores::gelu(g);
                         cores::store(to + row * f + i, activated * cores::widen(gate[f + i]));
                       }
                     }
                   });
}

}  // namespace

Tensor activate(TensorView gate_up, Activation activation, DType out) {
  Tensor activated(out, gate_up.rows(), gate_up.cols() / 2, Device::gpu);
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
  fake_gpu::launch({gate.bytes()}, [=, values = gate.data<float>(), n = gate.rows() * gate.cols()] {
    for (std::int64_t i = 0; i < n; ++i)
      values[i] = activation == Activation::silu ? cores::silu(values[i]) : cores::gelu(values[i]);
  });
}

}  // namespace switchyard::gpu
