#pragma once

#include <string>

/// What tests that run on a GPU, and on the stand-in for one, ask either.
namespace switchyard::testing_support {

/// What was done since the last call that a GPU must not be asked to do, as far as it is noticed.
std::string take_gpu_faults();

/// Collective. Whether NCCL can serve all ranks.
bool has_gpu_for_each_rank();

}  // namespace switchyard::testing_support
