#include "pipeline/model/routing.h"

#include "parallel/device/device_memory.h"
#include "parallel/error.h"

namespace switchyard {

void throw_not_finite(const std::string& where, std::int64_t token) {
  throw Error("a router logit is not a finite number", where + ", token " + std::to_string(token) + " of the batch",
              "check the checkpoint's tensors for NaN, or run with --precision f32");
}

void bring_to_host(Routing& routing, const std::string& where) {
  if (!routing.on_gpu()) return;
  const std::int32_t fault = routing.gpu_fault.to_host()[0];
  if (fault < routing.n_tokens()) throw_not_finite(where, fault);
  routing.ids = routing.gpu_ids.to_host();
  routing.weights.resize(routing.ids.size());
  copy_bytes(routing.weights.data(), routing.gpu_weights.bytes(), routing.weights.size() * sizeof(float));
  if (routing.probabilities.device() == Device::gpu)
    routing.probabilities = copy_to(Device::cpu, routing.probabilities);
}

}  // namespace switchyard
