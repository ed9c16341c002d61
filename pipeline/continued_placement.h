#pragma once

#include <filesystem>
#include <optional>

#include "parallel/communicator.h"
#include "parallel/expert_placement.h"

namespace switchyard {

/// Collective. Where experts are when a run goes on in which they move: where they were in its last committed segment,
/// if as many ranks ran it and experts had as many copies; else as `placement` says. last_segment: its file, of which
/// rank 0's counts; none: nothing was committed. Throws Error naming the file when it cannot be read.
ExpertPlacement continued_placement(const std::optional<std::filesystem::path>& last_segment,
                                    const ExpertPlacement& placement, const Communicator& comm);

}  // namespace switchyard
