#include "pipeline/kernels/cuda/gated_experts.h"

namespace switchyard::gpu {

Tensor run_experts(TensorView rows, std::span<const std::int32_t> rows_per_expert, const GatedExperts& experts) {
  return experts.down->run(experts.gate_up->run_gated(rows, rows_per_expert, experts.activation), rows_per_expert);
}

}  // namespace switchyard::gpu
