#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "pipeline/block_source.h"
#include "pipeline/model/batch.h"
#include "pipeline/recorder.h"

namespace switchyard {

/// Which windows of a block each rank routes: rank r takes [shares[r], shares[r + 1]), runs about equal in tokens, so
/// that its rows are one contiguous range. [n_ranks + 1]. answer_tokens: that each window may get behind its own.
std::vector<std::size_t> window_shares(std::span<const Window> windows, int n_ranks, std::int64_t answer_tokens = 0);

/// A rank's windows packed into batches of at most batch_tokens and most_windows: [first, last) pairs, in order. A
/// window is never longer than a batch.
std::vector<std::pair<std::size_t, std::size_t>> pack_batches(
    std::span<const Window> windows, std::size_t first, std::size_t last, std::int64_t batch_tokens,
    std::size_t most_windows = std::numeric_limits<std::size_t>::max());

/// The batch of windows [first, last) of a block (none: an empty batch) and what its rows say of each token.
Batch make_batch(const Block& block, std::size_t first, std::size_t last);
StepTokens make_step_tokens(const Block& block, std::size_t first, std::size_t last);

}  // namespace switchyard
