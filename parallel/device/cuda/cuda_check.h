#pragma once

#include <cuda_runtime_api.h>

#include <source_location>

namespace switchyard {

/// Throws Error with CUDA's own text and the call's place when a call did not return cudaSuccess.
/// The only wrapper header of CUDA's runtime: include it in sources of folders cuda/, never in an interface.
void cuda_check(cudaError_t code, const char* call, std::source_location where = std::source_location::current());

}  // namespace switchyard

#define SWITCHYARD_CUDA(call) ::switchyard::cuda_check((call), #call)
