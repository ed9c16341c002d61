#pragma once

#include <cstdint>
#include <vector>

namespace switchyard {

/// A target that stands for the token that the model itself holds most likely: Batch::targets of a greedy answer's
/// rows, whose next token is known only when the head has spoken.
inline constexpr std::int64_t kPredictedTarget = -2;

/// Windows packed back to back, no padding. Attention never crosses a window. May be empty.
struct Batch {
  std::vector<std::uint32_t> tokens;         // [n]
  std::vector<std::int32_t> window_offsets;  // [w + 1], 0 ... n; {0} when empty
  std::vector<std::int64_t> targets;         // [n] the next token, -1 where there is none; or kPredictedTarget
  // With a KvCache only: which of its sequences each window continues, and at which position. A sequence has one
  // window.
  std::vector<std::int32_t> sequence = {}, start = {};  // [w]

  std::int64_t n_tokens() const { return static_cast<std::int64_t>(tokens.size()); }
};

/// What the head says of each token.
struct TokenLosses {
  std::vector<float> loss;               // [n] nats, NaN where there is no target
  std::vector<std::uint32_t> predicted;  // [n] arg-max over the vocabulary; a tie goes to the lower id
};

}  // namespace switchyard
