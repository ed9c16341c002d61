#pragma once

#include <mpi.h>

#include "parallel/communicator.h"

namespace switchyard {

/// What a Communicator owns. For .cc files that hand the communicator to MPI or HDF5.
struct Communicator::Handle {
  MPI_Comm comm = MPI_COMM_NULL;
  bool owned = false;
};

}  // namespace switchyard
