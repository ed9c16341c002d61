#include "parallel/error.h"
#include "pipeline/kernels/cuda/probability_sums.h"

namespace switchyard::gpu {

std::vector<std::vector<double>> probability_sums(std::span<const TensorView> /*probabilities*/,
                                                  std::span<const std::uint8_t> /*included*/) {
  throw Error("this build of switchyard cannot use GPUs");
}

}  // namespace switchyard::gpu
