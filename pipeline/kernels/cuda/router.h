#pragma once

#include <cstdint>
#include <string>

#include "parallel/device/device_array.h"
#include "parallel/tensor.h"
#include "pipeline/model/routing.h"

namespace switchyard::gpu {

/// What one router decided, in GPU memory; as Routing.
struct DeviceRouting {
  int top_k = 0;
  Tensor logits;                    // [n, E] f32
  Tensor probabilities;             // [n, E] f32
  Tensor weights;                   // [n, k] f32
  Tensor figures;                   // [kRoutingFigures, n] f32
  DeviceArray<std::int32_t> ids;    // [n * k]
  DeviceArray<std::int32_t> fault;  // [1] first token with a logit that is not finite; n where there is none
};

/// The softmax router's decisions from its logits [n, E] f32, as the CPU's choose_experts. In the compute stream.
/// Throws Error for more than 512 experts or 32 choices.
DeviceRouting choose_experts(Tensor logits, RouterRule rule);

/// The same, left on the GPU, with ids and weights on the host too: 8 k bytes a token. Blocks until they have come, in
/// the download stream. Throws Error naming `where` and the token when a logit is not finite.
Routing to_routing(DeviceRouting routing, const std::string& where);

}  // namespace switchyard::gpu
