#include "pipeline/kernels/cuda/gated_experts.h"

#include "pipeline/kernels/cuda/activation.h"

namespace switchyard::gpu {

Tensor run_experts(TensorView rows, std::span<const std::int32_t> rows_per_expert, const GatedExperts& experts) {
  const Tensor gate_up = experts.gate_up->run(rows, rows_per_expert);  // [n, 2 d_ff] f32
  return experts.down->run(activate(gate_up, experts.activation, rows.dtype()), rows_per_expert);
}

}  // namespace switchyard::gpu
