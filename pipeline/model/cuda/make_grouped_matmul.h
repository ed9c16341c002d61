#pragma once

#include <memory>

#include "pipeline/kernels/cuda/grouped_matmul.h"
#include "pipeline/model/grouped_matmul_kind.h"

namespace switchyard {

/// Of that kind, which serves such experts on this process's GPU: why_not says whether it does.
std::unique_ptr<gpu::GroupedMatmul> make_grouped_matmul(GroupedMatmulKind kind, gpu::StackedWeights weights, DType out);

}  // namespace switchyard
