#pragma once

#include <cstdint>

namespace switchyard {

/// Which threads call MPI: the one that made the environment, or any.
enum class MpiThreads : std::uint8_t { one, any };

/// MPI for the life of the process: MPI_Init_thread for the threads that call it, MPI_ERRORS_RETURN on the world and
/// self communicators, and a terminate handler that prints an uncaught error once and ends every rank with MPI_Abort
/// (exit code 2 for a UsageError, 1 for the rest), so that no rank waits for one that failed.
/// Exactly one per process, created in main before anything collective.
class MpiEnvironment {
 public:
  MpiEnvironment(int* argc, char*** argv, MpiThreads threads = MpiThreads::one);
  ~MpiEnvironment();
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;
};

}  // namespace switchyard
