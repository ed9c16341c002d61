#include "tests/support/gpu_faults.h"

#include "tests/support/fake_gpu/fake_gpu.h"

namespace switchyard::testing_support {

std::string take_gpu_faults() { return fake_gpu::take_complaints(); }

bool has_gpu_for_each_rank() { return true; }

}  // namespace switchyard::testing_support
