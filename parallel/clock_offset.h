#pragma once

#include <functional>

#include "parallel/communicator.h"

namespace switchyard {

/// Seconds of this process's monotonic clock, whose zero is the node's own.
double monotonic_seconds();

/// What makes a rank's clock the common one, that of rank 0.
struct ClockOffset {
  double at = 0;           // this rank's clock when it was measured, s
  double seconds = 0;      // to add to this rank's clock; 0 on rank 0
  double uncertainty = 0;  // half of the quickest round trip, s: the offset is wrong by no more than that
};

/// Collective. Each rank asks rank 0 for its time, `rounds` times, and believes the quickest answer (Cristian,
/// "Probabilistic clock synchronization", 1989): rank 0's time is that of the middle of the round trip.
ClockOffset measure_clock_offset(const Communicator& comm, int rounds = 20,
                                 const std::function<double()>& clock = monotonic_seconds);

/// A time of this rank's clock on the common one: the offset changes evenly from one measurement to the next, as clocks
/// of two nodes drift apart.
double common_time(double seconds, const ClockOffset& before, const ClockOffset& after);

}  // namespace switchyard
