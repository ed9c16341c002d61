#include "parallel/error.h"
#include "pipeline/model/backend.h"

namespace switchyard {

std::unique_ptr<Backend> make_gpu_backend(const ModelConfig& /*config*/, DType /*type*/) {
  throw Error("this build of switchyard cannot use GPUs", {},
              "build it where the CUDA compiler nvcc is on the PATH, with -DSWITCHYARD_CUDA=ON");
}

}  // namespace switchyard
