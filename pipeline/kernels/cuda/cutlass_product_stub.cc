#include "parallel/error.h"
#include "pipeline/kernels/cuda/cutlass_product.h"

namespace switchyard::gpu {
namespace {

constexpr const char* kNoCutlass = "this build of switchyard is without CUTLASS";

[[noreturn]] void throw_no_cutlass() { throw Error(kNoCutlass, {}, "use --grouped-matmul cublaslt"); }

}  // namespace

std::optional<std::string> why_no_cutlass() { return kNoCutlass; }

void run_cutlass(const GroupedProduct& /*product*/) { throw_no_cutlass(); }

void run_cutlass_gated(const GroupedProduct& /*product*/, Activation /*activation*/) { throw_no_cutlass(); }

}  // namespace switchyard::gpu
