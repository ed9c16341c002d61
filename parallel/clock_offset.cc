#include "parallel/clock_offset.h"

#include <chrono>
#include <limits>

#include "parallel/mpi_check.h"
#include "parallel/mpi_handle.h"

namespace switchyard {
namespace {

constexpr int kTag = 7;

/// Rank 0's side of one rank's rounds.
void answer(int rank, int rounds, const std::function<double()>& clock, MPI_Comm comm) {
  for (int round = 0; round < rounds; ++round) {
    SWITCHYARD_MPI(MPI_Recv(nullptr, 0, MPI_BYTE, rank, kTag, comm, MPI_STATUS_IGNORE));
    const double now = clock();
    SWITCHYARD_MPI(MPI_Send(&now, 1, MPI_DOUBLE, rank, kTag, comm));
  }
}

ClockOffset ask(int rounds, const std::function<double()>& clock, MPI_Comm comm) {
  ClockOffset best{0, 0, std::numeric_limits<double>::infinity()};
  for (int round = 0; round < rounds; ++round) {
    double theirs = 0;
    const double sent = clock();
    SWITCHYARD_MPI(MPI_Send(nullptr, 0, MPI_BYTE, 0, kTag, comm));
    SWITCHYARD_MPI(MPI_Recv(&theirs, 1, MPI_DOUBLE, 0, kTag, comm, MPI_STATUS_IGNORE));
    const double received = clock();
    const double half = (received - sent) / 2;
    if (half < best.uncertainty) best = {received, theirs - (sent + half), half};
  }
  return best;
}

}  // namespace

double monotonic_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

ClockOffset measure_clock_offset(const Communicator& comm, int rounds, const std::function<double()>& clock) {
  if (comm.rank() != 0) return ask(rounds, clock, comm.handle().comm);
  for (int rank = 1; rank < comm.size(); ++rank) answer(rank, rounds, clock, comm.handle().comm);
  return {clock(), 0, 0};
}

double common_time(double seconds, const ClockOffset& before, const ClockOffset& after) {
  if (after.at <= before.at) return seconds + before.seconds;
  const double share = (seconds - before.at) / (after.at - before.at);
  return seconds + before.seconds + share * (after.seconds - before.seconds);
}

}  // namespace switchyard
