#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "pipeline/kernels/attention.h"

namespace switchyard {

/// What attends to a batch's windows on a GPU, in bf16; f32, and windows that continue a cache, are always our own
/// kernels'. The bits of the two differ.
enum class AttentionKernel : std::uint8_t { own, cudnn };

/// Why cuDNN cannot attend with such heads on the GPU of this process; nothing where it can. context: tokens of the
/// longest windows. The first answer takes a second: a graph is planned.
std::optional<std::string> why_not_cudnn(const AttentionShape& heads, std::int64_t context);

/// "cuDNN 9.19.0", or "own kernel". Throws Error where there is no cuDNN.
std::string describe(AttentionKernel kernel);

}  // namespace switchyard
