#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>

#include "parallel/communicator.h"
#include "pipeline/block_source.h"
#include "pipeline/experiments/ablation.h"
#include "pipeline/experiments/ablation_sums.h"
#include "pipeline/route_loop.h"

namespace switchyard {

/// What an ablation knows between two blocks: sums, and where the next block begins.
struct AblationState {
  AblationSums sums;
  SourcePosition next;

  /// Writes it, whole or not at all.
  void save(const std::filesystem::path& path) const;
  /// Takes what save wrote, of a run with the same plan and corpora; does nothing where there is no file. Throws Error
  /// when the file is damaged.
  void load(const std::filesystem::path& path);
};

struct AblationOptions {
  std::filesystem::path state;    // file of the state
  std::int64_t batch_tokens = 0;  // most tokens of a rank's step
  double commit_seconds = 60;     // the state is saved at the first block's end after this long
};

struct AblationOutcome {
  bool stopped = false;              // by a signal: the corpora are not at their end
  std::uint64_t session_tokens = 0;  // of all ranks
  double seconds = 0;                // wall
};

/// Collective. Runs every block of the source through the sweep: ranks share a block's windows, rank 0 adds up what
/// they found. `state` matters on rank 0 alone. After a stop signal on any rank the running block is dropped and the
/// state before it saved.
AblationOutcome ablate_blocks(BlockSource& source, AblationSweep& sweep, AblationState& state,
                              const AblationOptions& options,
                              const std::function<void(const RouteProgress&)>& on_progress, const Communicator& comm);

}  // namespace switchyard
