#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "parallel/communicator.h"
#include "pipeline/analysis/compare.h"

namespace switchyard {

/// Collective: every pair of datasets, (0, 1), (0, 2), ..., (1, 2), ..., dealt to ranks in turn; rank 0 gets them all,
/// in that order, the others none. on_pair(done, all) is called on each rank after a pair of its own, with the place of
/// that pair among all.
std::vector<PairDistances> compare_pairs(const std::vector<GroupedSlots>& datasets, const CompareOptions& options,
                                         const std::function<void(std::size_t, std::size_t)>& on_pair,
                                         const Communicator& comm);

}  // namespace switchyard
