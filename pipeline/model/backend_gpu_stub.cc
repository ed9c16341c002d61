#include "parallel/error.h"
#include "pipeline/model/backend.h"

namespace switchyard {
namespace {

constexpr const char* kNoGpus = "this build of switchyard cannot use GPUs";

}  // namespace

std::unique_ptr<Backend> make_gpu_backend(const ModelConfig& /*config*/, DType /*type*/, AttentionKernel /*attention*/,
                                          std::int64_t /*context*/, GroupedMatmulKind /*grouped_matmul*/) {
  throw Error(kNoGpus, {}, "build it where the CUDA compiler nvcc is on the PATH, with -DSWITCHYARD_CUDA=ON");
}

std::optional<std::string> why_not_cudnn(const AttentionShape& /*heads*/, std::int64_t /*context*/) { return kNoGpus; }

std::string describe(AttentionKernel kernel) {
  if (kernel == AttentionKernel::cudnn) throw Error(kNoGpus);
  return "own kernel";
}

std::optional<std::string> why_not(GroupedMatmulKind /*kind*/, const ExpertShape& /*experts*/) { return kNoGpus; }

std::vector<GroupedMatmulSpeed> measure_grouped_matmuls(const ExpertShape& /*experts*/, std::int64_t /*rows*/,
                                                        int /*repetitions*/) {
  throw Error(kNoGpus);
}

}  // namespace switchyard
