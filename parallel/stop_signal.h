#pragma once

namespace switchyard {

/// Catches SIGINT, SIGTERM and SIGUSR1 (Slurm's warning before a time limit) from here on: the first is remembered, one
/// that comes more than two seconds after it ends the process at once; those between count as the same request.
void catch_stop_signals();

/// The first signal caught, or 0. Local to this process: ranks agree with Communicator::any.
int stop_signal();

}  // namespace switchyard
