#include "tests/support/gpu_faults.h"

#include "parallel/communicator.h"
#include "parallel/device/gpu.h"

namespace switchyard::testing_support {

// An error of a GPU is one of the next call.
std::string take_gpu_faults() { return {}; }

bool has_gpu_for_each_rank() {
  const Communicator node = Communicator::world().same_node();
  return Communicator::world().min(count_gpus() >= node.size() ? 1 : 0) == 1;
}

}  // namespace switchyard::testing_support
