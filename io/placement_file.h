#pragma once

#include <filesystem>
#include <string>

#include "parallel/expert_placement.h"

namespace switchyard {

/// Reads a placement of experts over ranks:
///   {"rank_of_expert": [[0, 0, 1, 1], ...], "n_ranks": 2}
/// One row per MoE layer, in their order, or one row for all; each gives the rank of expert 0, 1, ..., or a list of
/// ranks, one for each of its copies. A rank may hold no expert of a layer. "n_ranks" may be absent; other keys are
/// ignored. rule: which copy a slot goes to. Throws Error naming the file, and the layer and expert where there is one:
/// not JSON, a row too many or too few, a row that is not n_experts long, a rank that is not an integer in
/// [0, n_ranks), two copies on one rank, layers with unequal numbers of copies, another n_ranks than this run's.
ExpertPlacement read_placement_file(const std::filesystem::path& path, int n_layers, int n_experts, int n_ranks,
                                    CopyRule rule = CopyRule::by_token);

/// The text of such a file, ending in a newline. n_ranks is 0 when the placement has no layers.
std::string to_placement_json(const ExpertPlacement& placement);

}  // namespace switchyard
