#pragma once

#include "pipeline/kernels/cuda/gated_experts.h"
#include "pipeline/model/grouped_matmul_kind.h"

namespace switchyard {

/// In an expert's gate_up [2 d_ff, d] of that kind, so many rows of gate, as many of up, and so on in turns: all of
/// them, or blocks.
std::int64_t rows_of_a_turn(GroupedMatmulKind kind, std::int64_t d_ff);

/// By that kind, which serves such experts on this process's GPU: why_not says whether it does. gate_up: each expert's,
/// as above; down: each expert's [d, d_ff].
gpu::GatedExperts make_gated_experts(GroupedMatmulKind kind, gpu::StackedWeights gate_up, gpu::StackedWeights down,
                                     Activation activation);

}  // namespace switchyard
