#pragma once

#include <cstdint>
#include <filesystem>
#include <ostream>
#include <string>

namespace switchyard {

/// Steps [first, last] of a run, counted from its beginning.
struct StepRange {
  std::uint64_t first = 0;
  std::uint64_t last = 0;
};
/// "7" or "3-9". Throws UsageError.
StepRange parse_step_range(const std::string& text);

/// Writes what the ranks did in these steps of a run as a trace that Perfetto and chrome://tracing open (Trace Event
/// Format, JSON): a process a rank, complete events of steps, layers and their parts, microseconds of rank 0's clock
/// from the first step's begin. A step tells the rank's tokens, an experts' part its slots and experts with a slot.
/// Returns the steps written. Throws Error: the run has fewer steps, or was recorded without times.
std::uint64_t write_trace(std::ostream& out, const std::filesystem::path& run, StepRange steps);

}  // namespace switchyard
