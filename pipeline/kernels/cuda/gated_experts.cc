#include "pipeline/kernels/cuda/gated_experts.h"

namespace switchyard::gpu {

Tensor run_experts(TensorView rows, std::span<const std::int32_t> rows_per_expert, const GatedExperts& experts) {
  return experts.down->run(experts.gated->run(rows, rows_per_expert), rows_per_expert);
}

}  // namespace switchyard::gpu
