#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/tensor.h"
#include "pipeline/kernels/attention.h"
#include "pipeline/model/model_config.h"

namespace switchyard {

/// Keys and values that attention has seen of a set of sequences, in every decoder layer, so that a sequence's next
/// token is one row of work. This rank's sequences alone; made by Model::make_cache.
class KvCache {
 public:
  /// most_tokens: [sequences] tokens that each will have at most. Throws Error when memory is exhausted.
  KvCache(const ModelConfig& config, std::span<const std::int64_t> most_tokens, DType type,
          Device device = Device::cpu);

  std::size_t n_sequences() const { return most_tokens_.size(); }
  std::int64_t most_tokens(std::size_t sequence) const { return most_tokens_[sequence]; }
  CachedKeys layer(int layer);

  /// Bytes of `sequences` sequences that have `tokens` tokens together at most: layers * 2 * kv_heads * head_dim * the
  /// element's size for each token, a sequence filled up to a multiple of kTileRows.
  static std::uint64_t bytes(const ModelConfig& config, std::int64_t sequences, std::int64_t tokens, DType type);

 private:
  struct Layer {
    Tensor k, v;
  };
  std::vector<std::int64_t> most_tokens_;
  std::vector<std::int64_t> offsets_;  // [sequences + 1]
  std::vector<Layer> layers_;
};

}  // namespace switchyard
