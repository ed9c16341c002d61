#pragma once

namespace switchyard {

/// MPI for the life of the process: MPI_Init_thread(MPI_THREAD_FUNNELED), MPI_ERRORS_RETURN on the world and self
/// communicators, and a terminate handler that prints an uncaught error once and ends every rank with MPI_Abort
/// (exit code 2 for a UsageError, 1 for the rest), so that no rank waits for one that failed.
/// Exactly one per process, created in main before anything collective.
class MpiEnvironment {
 public:
  MpiEnvironment(int* argc, char*** argv);
  ~MpiEnvironment();
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;
};

}  // namespace switchyard
