#pragma once

#include <cstdint>
#include <span>

#include "pipeline/model/model_config.h"

namespace switchyard {

/// Floating-point operations of a forward pass, two for each multiply-add of its products:
///   a token: 2 (layers d head_dim (2 heads + 2 kv_heads) + MoE layers (3 d (k d_ff + shared_d_ff) + d E)
///            + dense layers 3 d dense_d_ff + d vocabulary)
///   a token and key that it sees, itself included: 4 layers heads head_dim, for the score and the weighted value
/// Norms, softmax, rotary positions, activations and the embedding, which is looked up, are not counted.
struct ModelFlops {
  double per_token = 0;
  double feed_forward = 0;  // of per_token: experts, shared experts and dense blocks
  double per_key = 0;
  int sliding_window = 0;  // most keys of a token; 0: no limit

  ModelFlops() = default;
  explicit ModelFlops(const ModelConfig& config);
  /// Of tokens at these positions of their windows.
  double of(std::span<const std::uint32_t> positions) const;
  /// Of a token on average, in windows of `context` tokens.
  double mean(std::int64_t context) const;
};

}  // namespace switchyard
