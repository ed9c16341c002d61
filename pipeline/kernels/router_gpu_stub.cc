#include "parallel/error.h"
#include "pipeline/kernels/cuda/router.h"

namespace switchyard::gpu {

Routing choose_experts(Tensor /*logits*/, RouterRule /*rule*/, Withheld /*without*/) {
  throw Error("this build of switchyard cannot use GPUs");
}
void silence(Routing& /*routing*/, std::int32_t /*expert*/) { throw Error("this build of switchyard cannot use GPUs"); }

}  // namespace switchyard::gpu
