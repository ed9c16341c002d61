#pragma once

#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace switchyard {

/// CPUs that this process may run on, ascending.
std::vector<int> allowed_cpus();

/// Threads for this rank when none are asked for: OMP_NUM_THREADS if set; else the CPUs it is bound to, shared among
/// the ranks of its node that are bound to the same ones. Collective.
int default_threads(const Communicator& comm);

/// "Intel(R) Xeon(R) Processor" as the kernel names it.
std::string cpu_name();

}  // namespace switchyard
