#include "jobs/load_model.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "jobs/format.h"
#include "jobs/progress.h"

namespace switchyard {

LoadedModel load_model(const Checkpoint& checkpoint, const ModelConfig& config, const ExpertPlacement& placement,
                       const ModelOptions& options, const Communicator& comm, ExpertTransport& transport, bool quiet) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  CopyProgress progress("loading", quiet || comm.rank() != 0);
  std::uint64_t bytes = 0;
  Model model(checkpoint, config, placement, comm, transport, options, [&](std::uint64_t there, std::uint64_t all) {
    bytes = there;
    progress.update(there, all);
  });
  progress.finish();
  const double seconds = std::max(std::chrono::duration<double>(Clock::now() - start).count(), 1e-9);
  const auto loaded = static_cast<double>(bytes);
  return {std::move(model), "loaded " + as_bytes_text(loaded) + " in " + as_duration(seconds) + ", " +
                                as_bytes_text(loaded / seconds) + "/s"};
}

}  // namespace switchyard
