#pragma once

#include "pipeline/kernels/cuda/gated_experts.h"
#include "pipeline/model/grouped_matmul_kind.h"

namespace switchyard {

/// By that kind, which serves such experts on this process's GPU: why_not says whether it does. gate_up: each expert's
/// [2 d_ff, d], gate's rows, then up's; down: each expert's [d, d_ff].
gpu::GatedExperts make_gated_experts(GroupedMatmulKind kind, gpu::StackedWeights gate_up, gpu::StackedWeights down,
                                     Activation activation);

}  // namespace switchyard
