#pragma once

#include <string>

#include "io/checkpoint.h"
#include "jobs/device.h"
#include "parallel/communicator.h"
#include "parallel/expert_placement.h"
#include "parallel/expert_transport.h"
#include "pipeline/model/model.h"

namespace switchyard {

struct LoadedModel {
  Model model;
  std::string how_fast;  // "loaded 93.4 GiB in 40.0 s, 2.3 GiB/s": this rank's weights
};

/// Collective. Loads a model, and shows on stderr how far rank 0's weights are, unless quiet. Throws as Model.
LoadedModel load_model(const Checkpoint& checkpoint, const ModelConfig& config, const ExpertPlacement& placement,
                       const ModelOptions& options, const Communicator& comm, ExpertTransport& transport, bool quiet);

}  // namespace switchyard
