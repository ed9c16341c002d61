#include "pipeline/batching.h"

#include <algorithm>

namespace switchyard {

std::vector<std::size_t> window_shares(std::span<const Window> windows, int n_ranks, std::int64_t answer_tokens) {
  std::int64_t total = 0;
  for (const Window& window : windows) total += window.count + answer_tokens;
  std::vector<std::size_t> shares(static_cast<std::size_t>(n_ranks) + 1, windows.size());
  shares[0] = 0;
  std::int64_t before = 0;
  int rank = 0;
  for (std::size_t w = 0; w < windows.size(); ++w) {
    // A window belongs to the rank in whose n-th part of the tokens its middle lies.
    const std::int64_t count = windows[w].count + answer_tokens;
    const auto owner = static_cast<int>((2 * before + count) * n_ranks / (2 * std::max<std::int64_t>(total, 1)));
    for (; rank < std::min(owner, n_ranks - 1); ++rank) shares[static_cast<std::size_t>(rank) + 1] = w;
    before += count;
  }
  return shares;
}

std::vector<std::pair<std::size_t, std::size_t>> pack_batches(std::span<const Window> windows, std::size_t first,
                                                              std::size_t last, std::int64_t batch_tokens,
                                                              std::size_t most_windows) {
  std::vector<std::pair<std::size_t, std::size_t>> batches;
  std::int64_t used = 0;
  for (std::size_t w = first; w < last; ++w) {
    if (batches.empty() || used + windows[w].count > batch_tokens || w - batches.back().first == most_windows) {
      batches.emplace_back(w, w);
      used = 0;
    }
    batches.back().second = w + 1;
    used += windows[w].count;
  }
  return batches;
}

Batch make_batch(const Block& block, std::size_t first, std::size_t last) {
  Batch batch;
  batch.window_offsets = {0};
  for (std::size_t w = first; w < last; ++w) {
    const Window& window = block.windows[w];
    const auto count = static_cast<std::size_t>(window.count);
    const std::uint32_t* tokens = block.tokens.data() + window.first;
    batch.tokens.insert(batch.tokens.end(), tokens, tokens + count);
    batch.targets.insert(batch.targets.end(), tokens + 1, tokens + count);
    batch.targets.push_back(window.next);
    batch.window_offsets.push_back(static_cast<std::int32_t>(batch.tokens.size()));
  }
  return batch;
}

StepTokens make_step_tokens(const Block& block, std::size_t first, std::size_t last) {
  StepTokens step;
  for (std::size_t w = first; w < last; ++w)
    for (std::int64_t p = 0; p < block.windows[w].count; ++p) {
      step.document.push_back(static_cast<std::uint32_t>(block.windows[w].document));
      step.group.push_back(block.windows[w].group);
      step.position.push_back(static_cast<std::uint32_t>(p));
    }
  return step;
}

}  // namespace switchyard
