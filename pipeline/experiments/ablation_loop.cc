#include "pipeline/experiments/ablation_loop.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "io/durable.h"
#include "parallel/error.h"
#include "parallel/stop_signal.h"
#include "pipeline/batching.h"
#include "pipeline/source_position.h"

namespace switchyard {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Windows of all ranks, on rank 0: ranks take runs of windows, so that rank order is their order.
WindowSums gathered(const WindowSums& mine, const Communicator& comm) {
  return {comm.gather_v<WindowScore>(mine.baseline), comm.gather_v<AblatedScore>(mine.ablated),
          comm.gather_v<ExpertUse>(mine.use)};
}

/// This rank's windows of a block; nothing after a stop signal on any rank. on_share: called with the share done.
std::optional<WindowSums> ablate_block(const Block& block, AblationSweep& sweep, std::int64_t batch_tokens,
                                       const std::function<void(double)>& on_share, const Communicator& comm) {
  const std::vector<std::size_t> shares = window_shares(block.windows, comm.size());
  std::size_t n_steps = 0;
  std::vector<std::pair<std::size_t, std::size_t>> mine;
  for (int rank = 0; rank < comm.size(); ++rank) {
    const auto r = static_cast<std::size_t>(rank);
    auto batches = pack_batches(block.windows, shares[r], shares[r + 1], batch_tokens);
    n_steps = std::max(n_steps, batches.size());
    if (rank == comm.rank()) mine = std::move(batches);
  }
  const std::size_t changes = n_steps * sweep.plan().layers.size() * sweep.plan().variants();
  std::size_t done = 0;
  const auto on_variant = [&] {
    on_share(static_cast<double>(++done) / static_cast<double>(changes));
    return !comm.any(stop_signal() != 0);
  };
  WindowSums sums;
  for (std::size_t s = 0; s < n_steps; ++s) {
    const auto [first, last] = s < mine.size() ? mine[s] : std::pair<std::size_t, std::size_t>{0, 0};
    if (!sweep.step(make_batch(block, first, last), sums, on_variant)) return std::nullopt;
  }
  return sums;
}

}  // namespace

void AblationState::save(const std::filesystem::path& path) const {
  const std::vector<std::uint8_t> bytes =
      json::to_cbor(json{{"format", "switchyard-ablation-state"}, {"next", as_json(next)}, {"sums", sums.to_json()}});
  write_whole(path, std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

void AblationState::load(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return;
  const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
  try {
    const json stored = json::from_cbor(bytes);
    next = source_position(stored.at("next"));
    sums.from_json(stored.at("sums"));
  } catch (const std::exception&) {
    throw Error("is damaged", path.string(), "remove it to begin this ablation anew");
  }
}

AblationOutcome ablate_blocks(BlockSource& source, AblationSweep& sweep, AblationState& state,
                              const AblationOptions& options,
                              const std::function<void(const RouteProgress&)>& on_progress, const Communicator& comm) {
  AblationOutcome outcome;
  const auto start = Clock::now();
  auto saved = start;
  while (const std::optional<Block> block = source.next()) {
    const std::uint64_t before = outcome.session_tokens;
    const auto on_share = [&](double share) {
      const auto done = static_cast<std::uint64_t>(share * static_cast<double>(block->tokens.size()));
      on_progress({block->corpus, block->corpus_first_token + done,
                   block->last_of_corpus ? std::nullopt : std::optional(block->after.chunk), before + done,
                   std::numeric_limits<double>::quiet_NaN()});
    };
    const std::optional<WindowSums> mine = ablate_block(*block, sweep, options.batch_tokens, on_share, comm);
    outcome.stopped = !mine.has_value();
    if (outcome.stopped) break;
    outcome.session_tokens += block->tokens.size();
    const WindowSums all = gathered(*mine, comm);
    if (comm.rank() != 0) continue;
    state.sums.add(*block, all);
    state.next = block->after;
    if (seconds_since(saved) >= options.commit_seconds) {
      state.save(options.state);
      saved = Clock::now();
    }
  }
  outcome.stopped = outcome.stopped || source.stopped();
  if (comm.rank() == 0) state.save(options.state);
  outcome.seconds = seconds_since(start);
  return outcome;
}

}  // namespace switchyard
