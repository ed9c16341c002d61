#pragma once

#include <cstdint>
#include <memory>

#include "pipeline/model/backend.h"
#include "pipeline/model/cuda/weight_uploads.h"

namespace switchyard {

/// Room for so many experts of the model's shape in GPU memory, whose weights, of that type, `uploads` brings there; it
/// outlives them.
std::unique_ptr<Experts> make_gpu_experts(std::int64_t count, const ModelConfig& config, DType type,
                                          GroupedMatmulKind kind, gpu::WeightUploads& uploads);

}  // namespace switchyard
