#include "pipeline/kernels/attention.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <type_traits>
#include <utility>

#include "pipeline/kernels/amx.h"
#include "pipeline/kernels/leaf_loops.h"
#include "pipeline/kernels/matmul.h"
#include "pipeline/kernels/tile_kernel.h"

namespace switchyard {

namespace {

constexpr std::int64_t kQueryStep = 16;   // a block's queries are filled up to a multiple of this
constexpr std::int64_t kPackedStep = 32;  // and its keys, when they are packed

std::int64_t round_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

/// One key head of one window: where its rows are, and which tokens it has.
struct HeadOfWindow {
  std::int64_t first_token;  // of the batch
  std::int64_t key_head;
  std::int64_t begin, end;   // positions in the sequence
  const std::byte* queries;  // of position `begin`
  const std::byte* keys;     // of position 0
  const std::byte* values;
  std::int64_t room;  // keys, filled up
};

/// A run of queries of one window and key head, with the keys that any of them sees.
struct QueryBlock {
  HeadOfWindow head;
  std::int64_t begin, end;   // queries, positions in the sequence
  std::int64_t key_begin;    // first key, a multiple of kTileRows
  std::int64_t rows;         // queries * group, filled up
  std::int64_t n_keys;       // filled up
  const TileKernel* scores;  // [rows, keys]; nullptr when keys and values are packed
  const TileKernel* mix;     // [rows, head_dim]
};

/// Queries taken at once: fewer for long windows, so that their scores stay in the second-level cache; packed keys cost
/// nothing to read again, so then as few as fill two tiles, and most scores stay in the first-level one.
std::int64_t queries_at_once(std::int64_t length, int group, bool packed) {
  if (packed) return group == 1 ? 2 * kQueryStep : kQueryStep;
  constexpr std::int64_t kScores = 256 << 10;
  return std::clamp<std::int64_t>(kScores / (round_up(length, kTileRows) * group) / kQueryStep * kQueryStep, kQueryStep,
                                  kTileRows);
}

/// Rows of a block's products. A window of one token, as in decoding, fills one step with its group alone.
std::int64_t product_rows(std::int64_t queries, int group) {
  return queries == 1 ? round_up(group, kQueryStep) : round_up(queries, kQueryStep) * group;
}

class BlockPlanner {
 public:
  BlockPlanner(const AttentionShape& shape, DType type, bool packed) : shape_(shape), type_(type), packed_(packed) {}

  void add(const HeadOfWindow& head) {
    const std::int64_t at_once = queries_at_once(head.end, shape_.group(), packed_);
    for (std::int64_t begin = head.begin; begin < head.end; begin += at_once) {
      QueryBlock block{.head = head,
                       .begin = begin,
                       .end = std::min(head.end, begin + at_once),
                       .key_begin = 0,
                       .rows = 0,
                       .n_keys = 0,
                       .scores = nullptr,
                       .mix = nullptr};
      if (shape_.sliding_window > 0) {
        block.key_begin = std::max<std::int64_t>(0, begin - shape_.sliding_window + 1) / kTileRows * kTileRows;
      }
      set_sizes(block);
      blocks_.push_back(block);
    }
  }
  std::span<const QueryBlock> blocks() const { return blocks_; }

 private:
  void set_sizes(QueryBlock& block) {
    const std::int64_t rows = product_rows(block.end - block.begin, shape_.group());
    const std::int64_t keys = round_up(block.end, packed_ ? kPackedStep : kTileRows) - block.key_begin;
    block.rows = rows;
    block.n_keys = keys;
    if (packed_) return;
    auto& [scores, mix] = kernels_[{rows, keys}];
    if (scores == nullptr) {
      scores = &TileKernel::get({.m = rows,
                                 .n = keys,
                                 .k = shape_.head_dim,
                                 .in = type_,
                                 .out = DType::f32,
                                 .right = RightLayout::transposed});
      mix = &TileKernel::get(
          {.m = rows, .n = shape_.head_dim, .k = keys, .in = type_, .out = DType::f32, .right = RightLayout::rows});
    }
    block.scores = scores;
    block.mix = mix;
  }

  const AttentionShape& shape_;
  DType type_;
  bool packed_;
  std::map<std::pair<std::int64_t, std::int64_t>, std::pair<const TileKernel*, const TileKernel*>> kernels_;
  std::vector<QueryBlock> blocks_;
};

/// scores [rows, keys] = queries * keys^T
template <typename T>
void score(const QueryBlock& block, const T* queries, std::int64_t head_dim, float* scores) {
  const T* keys = reinterpret_cast<const T*>(block.head.keys) + block.key_begin * head_dim;
  if (block.scores != nullptr) {
    block.scores->run(queries, keys, scores);
  } else if constexpr (std::is_same_v<T, Bf16>) {
    amx_multiply(queries, reinterpret_cast<const std::byte*>(keys), amx_stride(head_dim), block.rows, block.n_keys,
                 head_dim, scores, DType::f32);
  }
}

/// mixed [rows, head_dim] = probabilities * values
template <typename T>
void mix(const QueryBlock& block, std::int64_t head_dim, const T* probabilities, float* mixed) {
  if (block.mix != nullptr) {
    block.mix->run(probabilities, reinterpret_cast<const T*>(block.head.values) + block.key_begin * head_dim, mixed);
  } else if constexpr (std::is_same_v<T, Bf16>) {
    amx_multiply(probabilities, block.head.values + amx_stride(block.key_begin), amx_stride(block.head.room),
                 block.rows, head_dim, block.n_keys, mixed, DType::f32);
  }
}

template <typename T>
void attend(const QueryBlock& block, const AttentionShape& shape, Tensor& out) {
  const std::int64_t group = shape.group();
  const std::int64_t head_dim = shape.head_dim;
  const std::int64_t rows = block.rows;
  const std::int64_t n_keys = block.n_keys;
  auto* scores = reinterpret_cast<float*>(
      thread_scratch(Scratch::scores, static_cast<std::size_t>(rows * n_keys) * sizeof(float)));
  auto* probabilities =
      reinterpret_cast<T*>(thread_scratch(Scratch::probabilities, static_cast<std::size_t>(rows * n_keys) * sizeof(T)));
  auto* mixed =
      reinterpret_cast<float*>(thread_scratch(Scratch::out, static_cast<std::size_t>(rows * head_dim) * sizeof(float)));

  const std::int64_t before = block.begin - block.head.begin;  // queries of the window
  score<T>(block, reinterpret_cast<const T*>(block.head.queries) + before * group * head_dim, head_dim, scores);
  const std::int64_t used = (block.end - block.begin) * group;
  std::vector<float> sums(static_cast<std::size_t>(used));
  const float scale = shape.scale > 0 ? shape.scale : 1.0F / std::sqrt(static_cast<float>(head_dim));
  const bool capped = shape.softcap > 0;
  for (std::int64_t r = 0; r < used; ++r) {
    const std::int64_t query = block.begin + r / group;
    const std::int64_t first =
        shape.sliding_window > 0 ? std::max<std::int64_t>(0, query - shape.sliding_window + 1) : 0;
    if (capped) {
      leaf().soft_cap(scores + r * n_keys + first - block.key_begin, scale, shape.softcap, query + 1 - first);
    }
    // Not yet divided by their sum.
    sums[static_cast<std::size_t>(r)] = row_loops<T>().masked_softmax(
        scores + r * n_keys, capped ? 1.0F : scale, static_cast<std::int32_t>(first - block.key_begin),
        static_cast<std::int32_t>(query + 1 - block.key_begin), static_cast<std::int32_t>(n_keys),
        probabilities + r * n_keys);
  }
  std::fill(probabilities + used * n_keys, probabilities + rows * n_keys, T{});
  mix<T>(block, head_dim, probabilities, mixed);
  for (std::int64_t r = 0; r < used; ++r) {
    T* to = out.row<T>(block.head.first_token + before + r / group).data();
    row_loops<T>().multiply(mixed + r * head_dim, 1.0F / sums[static_cast<std::size_t>(r)],
                            to + (block.head.key_head * group + r % group) * head_dim, head_dim);
  }
}

void attend_all(std::span<const QueryBlock> blocks, const AttentionShape& shape, Tensor& out) {
#pragma omp parallel for schedule(dynamic)
  for (const QueryBlock& block : blocks) {
    if (out.dtype() == DType::bf16) {
      attend<Bf16>(block, shape, out);
    } else {
      attend<float>(block, shape, out);
    }
  }
}

/// Where a token's rows go, counted from a key head's first row.
struct TokenPlace {
  std::int64_t position = 0;  // in the sequence
  std::int64_t query_row = 0;
  std::int64_t key_row = 0;
};

template <typename T>
void split_token(std::span<const float> qkv, const AttentionShape& shape, const RopeTable& rope,
                 const TokenPlace& place, Tensor& q, Tensor& k, Tensor& v) {
  const std::int64_t head_dim = shape.head_dim;
  const std::int64_t half = head_dim / 2;
  const std::int64_t query_stride = q.rows() / shape.n_kv_heads;
  const std::int64_t key_stride = k.rows() / shape.n_kv_heads;
  const float* cosines = rope.cosines(place.position).data();
  const float* sines = rope.sines(place.position).data();
  const float* from = qkv.data();
  for (int h = 0; h < shape.n_heads; ++h, from += head_dim) {
    const std::int64_t to = h / shape.group() * query_stride + place.query_row;
    row_loops<T>().rotate(from, cosines, sines, q.row<T>(to).data() + h % shape.group() * head_dim, half);
  }
  for (int h = 0; h < shape.n_kv_heads; ++h, from += head_dim) {
    row_loops<T>().rotate(from, cosines, sines, k.row<T>(h * key_stride + place.key_row).data(), half);
  }
  for (int h = 0; h < shape.n_kv_heads; ++h, from += head_dim) {
    row_loops<T>().narrow(from, v.row<T>(h * key_stride + place.key_row).data(), head_dim);
  }
}

void split_tokens(TensorView qkv, const AttentionShape& shape, const RopeTable& rope,
                  std::span<const TokenPlace> places, Tensor& q, Tensor& k, Tensor& v) {
#pragma omp parallel for
  for (std::int64_t t = 0; t < qkv.rows(); ++t) {
    const TokenPlace& place = places[static_cast<std::size_t>(t)];
    if (q.dtype() == DType::bf16) {
      split_token<Bf16>(qkv.row<float>(t), shape, rope, place, q, k, v);
    } else {
      split_token<float>(qkv.row<float>(t), shape, rope, place, q, k, v);
    }
  }
}

void zero_rows(Tensor& tensor, std::int64_t begin, std::int64_t end) {
  std::memset(tensor.bytes() + begin * tensor.row_bytes(), 0,
              static_cast<std::size_t>((end - begin) * tensor.row_bytes()));
}

void pack_keys_and_values(Heads& heads, const AttentionShape& shape) {
  const std::int64_t n_windows = static_cast<std::int64_t>(heads.padded_offsets.size()) - 1;
  Tensor k(DType::bf16, heads.k.rows(), heads.k.cols());
  Tensor v(DType::bf16, heads.v.rows(), heads.v.cols());
#pragma omp parallel for schedule(dynamic) collapse(2)
  for (std::int64_t head = 0; head < shape.n_kv_heads; ++head) {
    for (std::int64_t w = 0; w < n_windows; ++w) {
      const auto i = static_cast<std::size_t>(w);
      const std::int64_t base = head * heads.padded_tokens() + heads.padded_offsets[i];
      const std::int64_t keys = heads.padded_offsets[i + 1] - heads.padded_offsets[i];
      amx_pack_columns(heads.k.row<Bf16>(base).data(), keys, shape.head_dim, k.bytes() + base * k.row_bytes());
      amx_pack_rows(heads.v.row<Bf16>(base).data(), shape.head_dim, keys, v.bytes() + base * v.row_bytes());
    }
  }
  heads.k = std::move(k);
  heads.v = std::move(v);
  heads.packed = true;
}

}  // namespace

void RopeTable::grow(std::int64_t n) {
  for (auto position = static_cast<std::int64_t>(cosines_.size()) / std::max<std::int64_t>(half_, 1); position < n;
       ++position) {
    for (std::int64_t i = 0; i < half_; ++i) {
      // In float like the reference implementation, whose rounding is part of what the weights were trained with.
      const float frequency = 1.0F / std::pow(theta_, static_cast<float>(2 * i) / static_cast<float>(2 * half_));
      const float angle = static_cast<float>(position) * frequency;
      cosines_.push_back(std::cos(angle));
      sines_.push_back(std::sin(angle));
    }
  }
}

std::span<const float> RopeTable::cosines(std::int64_t position) const {
  return std::span(cosines_).subspan(static_cast<std::size_t>(position * half_), static_cast<std::size_t>(half_));
}

std::span<const float> RopeTable::sines(std::int64_t position) const {
  return std::span(sines_).subspan(static_cast<std::size_t>(position * half_), static_cast<std::size_t>(half_));
}

Heads split_heads(TensorView qkv, std::span<const std::int32_t> window_offsets, const AttentionShape& shape,
                  RopeTable& rope, DType out) {
  assert(qkv.cols() == shape.qkv_columns());
  Heads heads;
  heads.padded_offsets = {0};
  std::vector<TokenPlace> places(static_cast<std::size_t>(qkv.rows()));
  for (std::size_t w = 0; w + 1 < window_offsets.size(); ++w) {
    const std::int64_t length = window_offsets[w + 1] - window_offsets[w];
    rope.grow(length);
    for (std::int64_t i = 0; i < length; ++i) {
      const std::int64_t row = heads.padded_tokens() + i;
      places[static_cast<std::size_t>(window_offsets[w] + i)] = {i, row, row};
    }
    heads.padded_offsets.push_back(heads.padded_tokens() + round_up(length, kTileRows));
  }
  const std::int64_t padded = heads.padded_tokens();
  heads.q = Tensor(out, shape.n_kv_heads * padded, static_cast<std::int64_t>(shape.group()) * shape.head_dim);
  heads.k = Tensor(out, shape.n_kv_heads * padded, shape.head_dim);
  heads.v = Tensor(out, shape.n_kv_heads * padded, shape.head_dim);
  for (std::size_t w = 0; w + 1 < window_offsets.size(); ++w) {
    const std::int64_t used = heads.padded_offsets[w] + window_offsets[w + 1] - window_offsets[w];
    for (int h = 0; h < shape.n_kv_heads; ++h) {
      for (Tensor* tensor : {&heads.q, &heads.k, &heads.v}) {
        zero_rows(*tensor, h * padded + used, h * padded + heads.padded_offsets[w + 1]);
      }
    }
  }
  split_tokens(qkv, shape, rope, places, heads.q, heads.k, heads.v);
  if (out == DType::bf16 && has_amx() && shape.head_dim % kPackedStep == 0) pack_keys_and_values(heads, shape);
  return heads;
}

Tensor attention(const Heads& heads, std::span<const std::int32_t> window_offsets, const AttentionShape& shape) {
  Tensor out(heads.q.dtype(), window_offsets.back(), static_cast<std::int64_t>(shape.n_heads) * shape.head_dim);
  BlockPlanner planner(shape, heads.q.dtype(), heads.packed);
  for (std::size_t w = 0; w + 1 < window_offsets.size(); ++w) {
    for (int head = 0; head < shape.n_kv_heads; ++head) {
      const std::int64_t row = head * heads.padded_tokens() + heads.padded_offsets[w];
      planner.add({.first_token = window_offsets[w],
                   .key_head = head,
                   .begin = 0,
                   .end = window_offsets[w + 1] - window_offsets[w],
                   .queries = heads.q.bytes() + row * heads.q.row_bytes(),
                   .keys = heads.k.bytes() + row * heads.k.row_bytes(),
                   .values = heads.v.bytes() + row * heads.v.row_bytes(),
                   .room = heads.padded_offsets[w + 1] - heads.padded_offsets[w]});
    }
  }
  attend_all(planner.blocks(), shape, out);
  return out;
}

Tensor continue_attention(TensorView qkv, const ContinuedWindows& windows, const AttentionShape& shape, RopeTable& rope,
                          DType type, const CachedKeys& cache) {
  assert(qkv.cols() == shape.qkv_columns());
  const std::size_t n_windows = windows.sequence.size();
  std::vector<TokenPlace> places(static_cast<std::size_t>(qkv.rows()));
  std::vector<std::int64_t> query_rows = {0};  // [w + 1], each window's filled up
  for (std::size_t w = 0; w < n_windows; ++w) {
    const std::int64_t room = cache.offsets[static_cast<std::size_t>(windows.sequence[w])];
    const std::int64_t length = windows.offsets[w + 1] - windows.offsets[w];
    rope.grow(windows.start[w] + length);
    for (std::int64_t i = 0; i < length; ++i) {
      const std::int64_t position = windows.start[w] + i;
      places[static_cast<std::size_t>(windows.offsets[w] + i)] = {position, query_rows.back() + i, room + position};
    }
    query_rows.push_back(query_rows.back() + round_up(length, kQueryStep));
  }
  Tensor q(type, shape.n_kv_heads * query_rows.back(), static_cast<std::int64_t>(shape.group()) * shape.head_dim);
  zero_rows(q, 0, q.rows());
  split_tokens(qkv, shape, rope, places, q, *cache.k, *cache.v);

  Tensor out(type, qkv.rows(), static_cast<std::int64_t>(shape.n_heads) * shape.head_dim);
  BlockPlanner planner(shape, type, false);
  for (std::size_t w = 0; w < n_windows; ++w) {
    const auto sequence = static_cast<std::size_t>(windows.sequence[w]);
    for (int head = 0; head < shape.n_kv_heads; ++head) {
      const std::int64_t row = head * cache.offsets.back() + cache.offsets[sequence];
      planner.add({.first_token = windows.offsets[w],
                   .key_head = head,
                   .begin = windows.start[w],
                   .end = windows.start[w] + windows.offsets[w + 1] - windows.offsets[w],
                   .queries = q.bytes() + (head * query_rows.back() + query_rows[w]) * q.row_bytes(),
                   .keys = cache.k->bytes() + row * cache.k->row_bytes(),
                   .values = cache.v->bytes() + row * cache.v->row_bytes(),
                   .room = cache.offsets[sequence + 1] - cache.offsets[sequence]});
    }
  }
  attend_all(planner.blocks(), shape, out);
  return out;
}

}  // namespace switchyard
