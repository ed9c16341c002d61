#include "pipeline/model/kv_cache.h"

#include <cstring>

#include "pipeline/kernels/matmul.h"

namespace switchyard {
namespace {

/// The CPU's kernels read rows that are not known yet, and want numbers there.
Tensor make_keys(DType type, std::int64_t rows, std::int64_t cols, Device device) {
  Tensor tensor(type, rows, cols, device);
  if (rows > 0 && device == Device::cpu)
    std::memset(tensor.bytes(), 0, static_cast<std::size_t>(rows * tensor.row_bytes()));
  return tensor;
}

}  // namespace

KvCache::KvCache(const ModelConfig& config, std::span<const std::int64_t> most_tokens, DType type, Device device)
    : most_tokens_(most_tokens.begin(), most_tokens.end()), offsets_(1, 0) {
  for (const std::int64_t tokens : most_tokens)
    offsets_.push_back(offsets_.back() + (tokens + kTileRows - 1) / kTileRows * kTileRows);
  const std::int64_t rows = config.n_kv_heads * offsets_.back();
  for (int layer = 0; layer < config.n_layers; ++layer)
    layers_.push_back({make_keys(type, rows, config.head_dim, device), make_keys(type, rows, config.head_dim, device)});
}

CachedKeys KvCache::layer(int layer) {
  Layer& of_layer = layers_[static_cast<std::size_t>(layer)];
  return {offsets_, &of_layer.k, &of_layer.v};
}

std::uint64_t KvCache::bytes(const ModelConfig& config, std::int64_t sequences, std::int64_t tokens, DType type) {
  const std::int64_t row = std::int64_t{2} * config.n_layers * config.n_kv_heads * config.head_dim * size_of(type);
  return static_cast<std::uint64_t>((tokens + sequences * (kTileRows - 1)) * row);
}

}  // namespace switchyard
