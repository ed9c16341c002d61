#include "pipeline/model/attention_kernel.h"

#include <exception>

#include "pipeline/kernels/cuda/fused_attention.h"

namespace switchyard {

std::optional<std::string> why_not_cudnn(const AttentionShape& heads, std::int64_t context) {
  try {
    const gpu::FusedAttention planned(heads, context);
    return std::nullopt;
  } catch (const std::exception& error) {
    return error.what();
  }
}

std::string describe(AttentionKernel kernel) {
  return kernel == AttentionKernel::own ? "own kernel" : "cuDNN " + gpu::cudnn_version();
}

}  // namespace switchyard
