#pragma once

#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace switchyard {

/// Host name of every rank, in rank order. Collective.
std::vector<std::string> host_names(const Communicator& comm);

/// Threads for this rank when none are asked for: OMP_NUM_THREADS if set; else the CPUs it is bound to; unbound ranks
/// of one host share its CPUs.
int default_threads(const std::vector<std::string>& hosts, int rank);

/// "Intel(R) Xeon(R) Processor" as the kernel names it.
std::string cpu_name();

}  // namespace switchyard
