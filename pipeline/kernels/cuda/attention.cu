#include "pipeline/kernels/cuda/attention_core.h"
#include "pipeline/kernels/cuda/attention_launch.h"
#include "pipeline/kernels/cuda/device_warp.h"
#include "pipeline/kernels/cuda/launch.h"

namespace switchyard::gpu {
namespace {

constexpr int kKeyTile = 64;
constexpr int kQueriesOfBlock = kWarpsOfBlock * cores::kQueriesOfWarp;

/// One block a token.
template <typename T>
__global__ void split_kernel(SplitArrays<T> all, cores::HeadCounts heads) {
  const std::int64_t token = blockIdx.x;
  const std::int64_t columns = 2 * static_cast<std::int64_t>(heads.pairs());
  const std::int64_t angles = static_cast<std::int64_t>(all.position[token]) * (heads.head_dim / 2);
  const std::int64_t queries = token * heads.queries * heads.head_dim;
  const std::int64_t keys = static_cast<std::int64_t>(all.key_row[token]) * heads.keys * heads.head_dim;
  for (int pair = static_cast<int>(threadIdx.x); pair < heads.pairs(); pair += static_cast<int>(blockDim.x))
    cores::split_pair(all.qkv + token * columns, heads, pair, all.cosines + angles, all.sines + angles, all.q + queries,
                      all.k + keys, all.v + keys);
}

/// Grid: (queries in steps of kWarpsOfBlock, heads, windows); a query a warp.
template <typename T>
__global__ void __launch_bounds__(kWarpThreads)
    plain_kernel(HeadArrays<T> all, cores::HeadCounts heads, cores::AttentionRule rule) {
  const WindowPlace window = all.windows[blockIdx.z];
  const int query = static_cast<int>(blockIdx.x) * kWarpsOfBlock + static_cast<int>(threadIdx.x) / 32;
  if (query >= window.n) return;
  const int head = static_cast<int>(blockIdx.y);
  const std::int64_t stride = static_cast<std::int64_t>(heads.keys) * heads.head_dim;
  const std::int64_t keys = window.first_key * stride + head / (heads.queries / heads.keys) * heads.head_dim;
  const std::int64_t row = window.first_row + query;
  const std::int64_t at = (row * heads.queries + head) * heads.head_dim;
  cores::attend_query<kWidestHead / 32>(cores::DeviceWarp{}, all.q + at, all.k + keys, all.v + keys, stride,
                                        window.start + query, heads.head_dim, rule, all.out + at);
}

/// Keys [key0, key0 + kKeyTile) of one head, and their values, into shared memory; the last key again where a window
/// has no more.
template <int kHeadDim, int kStride>
__device__ void load_tile(const Bf16* from, std::int64_t stride, int key0, int n, Bf16* tile) {
  constexpr int kVector = 8;  // bf16 of 16 bytes
  for (int i = static_cast<int>(threadIdx.x); i < kKeyTile * kHeadDim / kVector; i += kWarpThreads) {
    const int key = i / (kHeadDim / kVector);
    const int column = i % (kHeadDim / kVector) * kVector;
    *reinterpret_cast<uint4*>(tile + key * kStride + column) =
        *reinterpret_cast<const uint4*>(from + min(key0 + key, n - 1) * stride + column);
  }
}

/// Grid: (queries in steps of kQueriesOfBlock, heads, windows); 16 queries a warp, keys through shared memory.
template <int kHeadDim>
__global__ void __launch_bounds__(kWarpThreads)
    matrix_unit_kernel(HeadArrays<Bf16> all, cores::HeadCounts heads, cores::AttentionRule rule) {
  constexpr int kStride = kHeadDim + 8;  // rows then begin in different banks
  __shared__ __align__(16) Bf16 keys[kKeyTile * kStride];
  __shared__ __align__(16) Bf16 values[kKeyTile * kStride];
  const WindowPlace window = all.windows[blockIdx.z];
  const int block_query = static_cast<int>(blockIdx.x) * kQueriesOfBlock;
  if (block_query >= window.n) return;
  const int head = static_cast<int>(blockIdx.y);
  const int query0 = block_query + static_cast<int>(threadIdx.x) / 32 * cores::kQueriesOfWarp;
  const std::int64_t key_stride = static_cast<std::int64_t>(heads.keys) * kHeadDim;
  const std::int64_t from = window.first_key * key_stride + head / (heads.queries / heads.keys) * kHeadDim;
  const std::int64_t query_stride = static_cast<std::int64_t>(heads.queries) * kHeadDim;
  const std::int64_t at = (window.first_row + query0) * query_stride + head * kHeadDim;

  const cores::DeviceWarp warp;
  cores::QueryTile<kHeadDim, cores::DeviceWarp> tile;
  cores::begin_queries(warp, tile, all.q + at, query_stride, window.n - query0);
  const int n_keys = window.start + window.n;
  const int end = min(n_keys, window.start + block_query + kQueriesOfBlock);
  for (int key0 = cores::first_key(window.start + block_query, rule) / kKeyTile * kKeyTile; key0 < end;
       key0 += kKeyTile) {
    load_tile<kHeadDim, kStride>(all.k + from, key_stride, key0, n_keys, keys);
    load_tile<kHeadDim, kStride>(all.v + from, key_stride, key0, n_keys, values);
    __syncthreads();
    cores::attend_tile<kHeadDim, kKeyTile>(warp, tile, keys, values, kStride, window.start + query0, key0, rule);
    __syncthreads();
  }
  cores::end_queries(warp, tile, all.out + at, query_stride, window.n - query0);
}

cores::HeadCounts counts_of(const AttentionShape& shape) {
  return {.queries = shape.n_heads, .keys = shape.n_kv_heads, .head_dim = shape.head_dim};
}

cores::AttentionRule rule_of(const AttentionShape& shape, float scale) {
  return {.sliding_window = shape.sliding_window, .scale = scale, .softcap = shape.softcap};
}

template <typename T>
dim3 grid_of(const HeadArrays<T>& all, const AttentionShape& shape, int queries) {
  return dim3(blocks_for(all.longest, queries), static_cast<unsigned>(shape.n_heads),
              static_cast<unsigned>(all.n_windows));
}

template <typename T>
void launch_plain(const HeadArrays<T>& all, const AttentionShape& shape, float scale) {
  plain_kernel<<<grid_of(all, shape, kWarpsOfBlock), kWarpThreads, 0, compute_stream().handle()>>>(
      all, counts_of(shape), rule_of(shape, scale));
}

template <int kHeadDim>
void launch_matrix_unit(const HeadArrays<Bf16>& all, const AttentionShape& shape, float scale) {
  matrix_unit_kernel<kHeadDim><<<grid_of(all, shape, kQueriesOfBlock), kWarpThreads, 0, compute_stream().handle()>>>(
      all, counts_of(shape), rule_of(shape, scale));
}

void start_attention(const HeadArrays<float>& all, const AttentionShape& shape, float scale) {
  launch_plain(all, shape, scale);
}

void start_attention(const HeadArrays<Bf16>& all, const AttentionShape& shape, float scale) {
  if (shape.head_dim == 64) {
    launch_matrix_unit<64>(all, shape, scale);
  } else if (shape.head_dim == 128) {
    launch_matrix_unit<128>(all, shape, scale);
  } else {
    launch_plain(all, shape, scale);
  }
}

}  // namespace

template <typename T>
void launch_split(const SplitArrays<T>& all, std::int64_t n_tokens, const AttentionShape& shape) {
  split_kernel<<<static_cast<unsigned>(n_tokens), kThreads, 0, compute_stream().handle()>>>(all, counts_of(shape));
  check_launch("split_kernel");
}
template void launch_split(const SplitArrays<float>& all, std::int64_t n_tokens, const AttentionShape& shape);
template void launch_split(const SplitArrays<Bf16>& all, std::int64_t n_tokens, const AttentionShape& shape);

template <typename T>
void launch_attention(const HeadArrays<T>& all, const AttentionShape& shape, float scale) {
  start_attention(all, shape, scale);
  check_launch("attention");
}
template void launch_attention(const HeadArrays<float>& all, const AttentionShape& shape, float scale);
template void launch_attention(const HeadArrays<Bf16>& all, const AttentionShape& shape, float scale);

}  // namespace switchyard::gpu
