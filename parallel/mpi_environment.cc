#include "parallel/mpi_environment.h"

#include <mpi.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <thread>

#include "parallel/error.h"
#include "parallel/mpi_check.h"
#include "parallel/stop_signal.h"

namespace switchyard {
namespace {

constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;
/// How long ranks other than 0 hold their message back: an error that every rank meets at once (a wrong option, say) is
/// then printed by rank 0 alone, whose MPI_Abort ends the others.
constexpr std::chrono::milliseconds kHeadStartOfRankZero{2000};

struct Failure {
  std::string message;
  int exit_code;
};

Failure current_failure() {
  const std::exception_ptr error = std::current_exception();
  if (!error) return {"terminated without an exception", kExitFailure};
  try {
    std::rethrow_exception(error);
  } catch (const UsageError& usage) {
    return {usage.what(), kExitUsage};
  } catch (const std::exception& other) {
    return {other.what(), kExitFailure};
  } catch (...) {
    return {"an exception of unknown type", kExitFailure};
  }
}

bool mpi_is_running() {
  int initialised = 0;
  int finalised = 0;
  MPI_Initialized(&initialised);
  MPI_Finalized(&finalised);
  return initialised != 0 && finalised == 0;
}

[[noreturn]] void print_and_end_all_ranks() {
  static std::atomic_flag entered;
  if (entered.test_and_set()) {
    for (;;) std::this_thread::sleep_for(std::chrono::seconds(1));  // another thread is already ending the process
  }
  const Failure failure = current_failure();
  int rank = 0;
  int size = 1;
  if (mpi_is_running()) {
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
  }
  if (rank != 0) {
    std::this_thread::sleep_for(kHeadStartOfRankZero);
    if (stop_signal() != 0) std::_Exit(failure.exit_code);  // rank 0 has printed; this is its MPI_Abort's SIGTERM
  }
  std::fflush(stdout);
  std::fprintf(stderr, "switchyard: %s\n", failure.message.c_str());
  std::fflush(stderr);
  if (size > 1) MPI_Abort(MPI_COMM_WORLD, failure.exit_code);
  std::_Exit(failure.exit_code);  // alone: nobody waits, and MPI_Abort would add text of its own
}

}  // namespace

MpiEnvironment::MpiEnvironment(int* argc, char*** argv, MpiThreads threads) {
  std::set_terminate(print_and_end_all_ranks);
  // Nothing here uses MPI's shared file pointers. Open MPI by default guards them by a semaphore named after the file
  // alone: one that a killed run left behind would make every later run on this host wait for ever.
  setenv("OMPI_MCA_sharedfp", "individual", /*overwrite=*/0);
  int provided = MPI_THREAD_SINGLE;
  const int wanted = threads == MpiThreads::any ? MPI_THREAD_MULTIPLE : MPI_THREAD_FUNNELED;
  SWITCHYARD_MPI(MPI_Init_thread(argc, argv, wanted, &provided));
  SWITCHYARD_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
  SWITCHYARD_MPI(MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN));
  if (provided < wanted) {
    throw Error("this MPI library does not support threads beside the one that calls it", "MPI_Init_thread",
                "use an MPI built with thread support");
  }
}

MpiEnvironment::~MpiEnvironment() {
  // Finalize waits for all ranks; on the way out of an error they may never come. Ranks meet before it, because Open
  // MPI can hang when one rank aborts while others are already inside Finalize.
  if (std::uncaught_exceptions() != 0) return;
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_Finalize();
}

}  // namespace switchyard
