#pragma once

#include <cstddef>
#include <cstdint>

#include "parallel/device/device_array.h"
#include "parallel/tensor.h"
#include "pipeline/model/routing.h"

namespace switchyard::gpu {

/// The softmax router's decisions from its logits [n, E] f32, as the CPU's choose_experts. In the compute stream; of a
/// token with a logit that is not finite, which gpu_fault then tells of, nothing is decided. Throws Error for more than
/// 512 experts or 32 choices.
Routing choose_experts(Tensor logits, RouterRule rule);

/// Experts that are not to be chosen.
struct Withheld {
  const DeviceArray<std::int32_t>& experts;
  std::size_t first;  // that of token t is experts[first + t * stride]
  int stride;
};
/// The same without an expert of each token. Probabilities stay those of all experts.
Routing choose_experts(Tensor logits, RouterRule rule, Withheld without);

/// Combine weights of the expert's slots become 0, in the compute stream.
void silence(Routing& routing, std::int32_t expert);

}  // namespace switchyard::gpu
