#pragma once

#include <nccl.h>

#include <source_location>

namespace switchyard {

/// Throws Error with NCCL's own text and the call's place when a call neither succeeded nor is in progress, as calls on
/// a non-blocking communicator may be.
void nccl_check(ncclResult_t result, const char* call, std::source_location where = std::source_location::current());

}  // namespace switchyard

#define SWITCHYARD_NCCL(call) ::switchyard::nccl_check((call), #call)
