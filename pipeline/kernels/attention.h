#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/tensor.h"

namespace switchyard {

struct AttentionShape {
  int n_heads = 0;
  int n_kv_heads = 0;  // divides n_heads; query head q reads key head q / (n_heads / n_kv_heads)
  int head_dim = 0;
  int sliding_window = 0;  // 0: none; else keys a query sees, its own included
  float scale = 0;         // of scores; 0: 1 / sqrt(head_dim)
  float softcap = 0;       // scaled scores s become cap * tanh(s / cap); 0: they stay

  int group() const { return n_heads / n_kv_heads; }
  std::int64_t qkv_columns() const { return static_cast<std::int64_t>(n_heads + 2 * n_kv_heads) * head_dim; }
};

/// Rotary position embedding: cosines and sines of position * theta^(-2i / head_dim), for the half-rotation that pairs
/// element i with i + head_dim / 2.
class RopeTable {
 public:
  RopeTable(float theta, int head_dim) : theta_(theta), half_(head_dim / 2) {}
  /// Makes positions [0, n) known.
  void grow(std::int64_t n);
  std::span<const float> cosines(std::int64_t position) const;
  std::span<const float> sines(std::int64_t position) const;

 private:
  float theta_;
  std::int64_t half_;
  std::vector<float> cosines_, sines_;  // [positions, half]
};

/// Queries, keys and values of a batch, split by key head, each window starting at a multiple of kTileRows and filled
/// up with zeros: what follows a window is never another one. Where AMX tiles multiply them, each window's keys and
/// values of a head are packed for it (amx.h) once, and read by every block of queries.
struct Heads {
  std::vector<std::int64_t> padded_offsets;  // [w + 1]
  Tensor q;                                  // [n_kv_heads * padded tokens, group * head_dim], rotated
  Tensor k;                                  // [n_kv_heads * padded tokens, head_dim], rotated
  Tensor v;                                  // [n_kv_heads * padded tokens, head_dim]

  bool packed = false;

  std::int64_t padded_tokens() const { return padded_offsets.back(); }
};

/// qkv: [n, all query heads | all key heads | all value heads] f32 -> heads of type `out`, queries and keys rotated by
/// their position within their window. Grows `rope` to the longest window.
Heads split_heads(TensorView qkv, std::span<const std::int32_t> window_offsets, const AttentionShape& shape,
                  RopeTable& rope, DType out);

/// softmax(cap(scale * q k^T)) v, causal, within windows -> [n, n_heads * head_dim] of the heads' type. The softmax
/// is f32. A window's result depends on that window alone.
Tensor attention(const Heads& heads, std::span<const std::int32_t> window_offsets, const AttentionShape& shape);

/// Keys and values of one layer of several sequences, each with room of its own, a multiple of kTileRows tokens that
/// are zeros until they are known.
struct CachedKeys {
  std::span<const std::int64_t> offsets;  // [sequences + 1]
  Tensor* k;                              // [n_kv_heads * offsets.back(), head_dim], rotated
  Tensor* v;                              // the same
};

/// Windows that continue sequences of a cache.
struct ContinuedWindows {
  std::span<const std::int32_t> offsets;   // [w + 1] into the batch
  std::span<const std::int32_t> sequence;  // [w] of the cache, each once
  std::span<const std::int32_t> start;     // [w] position in the sequence of the window's first token
};

/// Attention of windows that continue sequences: adds their keys and values to the cache, and lets each query see all
/// keys of its sequence up to its own. qkv as for split_heads -> as attention. In f32 a row's bits are those of
/// attention over the whole sequence: each is made of the same products, summed in the same order.
Tensor continue_attention(TensorView qkv, const ContinuedWindows& windows, const AttentionShape& shape, RopeTable& rope,
                          DType type, const CachedKeys& cache);

}  // namespace switchyard
