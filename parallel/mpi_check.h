#pragma once

#include <mpi.h>

#include <source_location>

namespace switchyard {

/// Throws Error with MPI's own text and the call's place when an MPI call did not return MPI_SUCCESS.
/// The only wrapper header of mpi.h: include it in .cc files, never in an interface.
void mpi_check(int code, const char* call, std::source_location where = std::source_location::current());

}  // namespace switchyard

#define SWITCHYARD_MPI(call) ::switchyard::mpi_check((call), #call)
