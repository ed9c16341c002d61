#pragma once

#include "parallel/tensor.h"
#include "pipeline/model/routing.h"

namespace switchyard::gpu {

/// The softmax router's decisions from its logits [n, E] f32, as the CPU's choose_experts. In the compute stream; of a
/// token with a logit that is not finite, which gpu_fault then tells of, nothing is decided. Throws Error for more than
/// 512 experts or 32 choices.
Routing choose_experts(Tensor logits, RouterRule rule);

}  // namespace switchyard::gpu
