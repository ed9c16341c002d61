#include <algorithm>
#include <vector>

#include "pipeline/kernels/cuda/attention_core.h"
#include "pipeline/kernels/cuda/attention_launch.h"
#include "tests/support/fake_gpu/fake_gpu.h"

/// The launches of attention.cu.
namespace switchyard::gpu {
namespace {

using cores::HostWarp;

constexpr int kKeyTile = 64;
constexpr int kQueriesOfBlock = 4 * cores::kQueriesOfWarp;

cores::HeadCounts counts_of(const AttentionShape& shape) {
  return {.queries = shape.n_heads, .keys = shape.n_kv_heads, .head_dim = shape.head_dim};
}

template <typename T>
void attend_plainly(const HeadArrays<T>& all, const WindowPlace& window, int head, cores::HeadCounts heads,
                    const cores::AttentionRule& rule) {
  const std::int64_t stride = static_cast<std::int64_t>(heads.keys) * heads.head_dim;
  const std::int64_t keys = window.first_key * stride + head / (heads.queries / heads.keys) * heads.head_dim;
  for (int query = 0; query < window.n; ++query) {
    const std::int64_t row = window.first_row + query;
    const std::int64_t at = (row * heads.queries + head) * heads.head_dim;
    cores::attend_query<kWidestHead / 32>(HostWarp{}, all.q + at, all.k + keys, all.v + keys, stride,
                                          window.start + query, heads.head_dim, rule, all.out + at);
  }
}

/// Keys [key0, key0 + kKeyTile); the last key again where there are no more.
template <int kHeadDim>
std::vector<Bf16> load_tile(const Bf16* from, std::int64_t stride, int key0, int n) {
  std::vector<Bf16> tile;
  for (int key = key0; key < key0 + kKeyTile; ++key) {
    const Bf16* row = from + std::min(key, n - 1) * stride;
    tile.insert(tile.end(), row, row + kHeadDim);
  }
  return tile;
}

template <int kHeadDim>
void attend_on_matrix_units(const HeadArrays<Bf16>& all, const WindowPlace& window, int head, cores::HeadCounts heads,
                            const cores::AttentionRule& rule) {
  const std::int64_t key_stride = static_cast<std::int64_t>(heads.keys) * kHeadDim;
  const std::int64_t from = window.first_key * key_stride + head / (heads.queries / heads.keys) * kHeadDim;
  const std::int64_t query_stride = static_cast<std::int64_t>(heads.queries) * kHeadDim;
  const int n_keys = window.start + window.n;
  for (int query0 = 0; query0 < window.n; query0 += cores::kQueriesOfWarp) {
    const int block_query = query0 / kQueriesOfBlock * kQueriesOfBlock;
    const std::int64_t at = (window.first_row + query0) * query_stride + head * kHeadDim;
    cores::QueryTile<kHeadDim, HostWarp> tile;
    cores::begin_queries(HostWarp{}, tile, all.q + at, query_stride, window.n - query0);
    const int end = std::min(n_keys, window.start + block_query + kQueriesOfBlock);
    for (int key0 = cores::first_key(window.start + block_query, rule) / kKeyTile * kKeyTile; key0 < end;
         key0 += kKeyTile) {
      const std::vector<Bf16> keys = load_tile<kHeadDim>(all.k + from, key_stride, key0, n_keys);
      const std::vector<Bf16> values = load_tile<kHeadDim>(all.v + from, key_stride, key0, n_keys);
      cores::attend_tile<kHeadDim, kKeyTile>(HostWarp{}, tile, keys.data(), values.data(), kHeadDim,
                                             window.start + query0, key0, rule);
    }
    cores::end_queries(HostWarp{}, tile, all.out + at, query_stride, window.n - query0);
  }
}

void attend(const HeadArrays<float>& all, const WindowPlace& window, int head, cores::HeadCounts heads,
            const cores::AttentionRule& rule) {
  attend_plainly(all, window, head, heads, rule);
}

void attend(const HeadArrays<Bf16>& all, const WindowPlace& window, int head, cores::HeadCounts heads,
            const cores::AttentionRule& rule) {
  if (heads.head_dim == 64) {
    attend_on_matrix_units<64>(all, window, head, heads, rule);
  } else if (heads.head_dim == 128) {
    attend_on_matrix_units<128>(all, window, head, heads, rule);
  } else {
    attend_plainly(all, window, head, heads, rule);
  }
}

}  // namespace

template <typename T>
void launch_split(const SplitArrays<T>& all, std::int64_t n_tokens, const AttentionShape& shape) {
  const cores::HeadCounts heads = counts_of(shape);
  fake_gpu::launch({all.qkv, all.position, all.key_row, all.cosines, all.sines, all.q, all.k, all.v}, [=] {
    for (std::int64_t token = 0; token < n_tokens; ++token) {
      const std::int64_t angles = static_cast<std::int64_t>(all.position[token]) * (heads.head_dim / 2);
      const std::int64_t queries = token * heads.queries * heads.head_dim;
      const std::int64_t keys = static_cast<std::int64_t>(all.key_row[token]) * heads.keys * heads.head_dim;
      for (int pair = 0; pair < heads.pairs(); ++pair)
        cores::split_pair(all.qkv + token * 2 * heads.pairs(), heads, pair, all.cosines + angles, all.sines + angles,
                          all.q + queries, all.k + keys, all.v + keys);
    }
  });
}
template void launch_split(const SplitArrays<float>& all, std::int64_t n_tokens, const AttentionShape& shape);
template void launch_split(const SplitArrays<Bf16>& all, std::int64_t n_tokens, const AttentionShape& shape);

template <typename T>
void launch_attention(const HeadArrays<T>& all, const AttentionShape& shape, float scale) {
  const cores::HeadCounts heads = counts_of(shape);
  const cores::AttentionRule rule = {.sliding_window = shape.sliding_window, .scale = scale, .softcap = shape.softcap};
  fake_gpu::launch({all.q, all.k, all.v, all.out, all.windows}, [=] {
    for (int w = 0; w < all.n_windows; ++w)
      for (int head = 0; head < heads.queries; ++head) attend(all, all.windows[w], head, heads, rule);
  });
}
template void launch_attention(const HeadArrays<float>& all, const AttentionShape& shape, float scale);
template void launch_attention(const HeadArrays<Bf16>& all, const AttentionShape& shape, float scale);

}  // namespace switchyard::gpu
