#pragma once

#include <cstdint>

#include "parallel/communicator.h"
#include "parallel/expert_placement.h"
#include "parallel/tensor.h"
#include "pipeline/model/model_config.h"
#include "pipeline/model/weights.h"

namespace switchyard {

/// What changing a placement sent from rank to rank, of all ranks together.
struct ExpertMoves {
  std::int64_t experts = 0;  // copies that a rank did not hold before
  std::uint64_t bytes = 0;   // their weights
};

/// Collective. Throws Error when ranks' CPUs keep weights in different layouts: what one has packed, another cannot
/// use.
void require_equal_packing(const ModelConfig& config, DType type, const Communicator& comm);

/// Collective. Turns the experts that `from` gives each rank into those of `to`: ranks send each other what they lack,
/// layer by layer, so that a layer's incoming experts are all the memory it takes of CPUs; a GPU holds that layer's
/// experts before and after at once. Where an expert has several copies, its receivers are dealt to them in turn. `to`
/// has the model's shape and as many ranks as `from`.
ExpertMoves move_experts(Weights& weights, const ExpertPlacement& from, const ExpertPlacement& to,
                         const Communicator& comm);

}  // namespace switchyard
