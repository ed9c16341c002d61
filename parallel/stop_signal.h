#pragma once

namespace switchyard {

/// Catches SIGINT, SIGTERM and SIGUSR1 (Slurm's warning before a time limit) from here on: the first is remembered, the
/// second ends the process at once.
void catch_stop_signals();

/// The first signal caught, or 0. Local to this process: ranks agree with Communicator::any.
int stop_signal();

}  // namespace switchyard
