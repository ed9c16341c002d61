#pragma once

#include <iosfwd>
#include <string>

#include "pipeline/model/step_times.h"
#include "pipeline/reduce.h"

namespace switchyard {

/// Prints, for each dataset and MoE layer, usage of the experts, CV, max/mean, entropy and the most used expert, and
/// what routing the dataset took, and what waiting for the slowest rank's experts cost.
void print_summary(std::ostream& out, const Statistics& reduced);

/// Prints, for each document that is kept apart and each MoE layer, its most used experts, their shares of its slots
/// and of the dataset's.
void print_documents(std::ostream& out, const Statistics& reduced);

/// "attention 31 %, router 2 %, ..." of the phases' seconds.
std::string phase_shares(const PhaseSeconds& seconds);

}  // namespace switchyard
