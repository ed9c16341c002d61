#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "parallel/error.h"
#include "pipeline/kernels/cuda/attention.h"
#include "pipeline/kernels/cuda/attention_core.h"
#include "pipeline/kernels/cuda/device_warp.h"
#include "pipeline/kernels/cuda/launch.h"

namespace switchyard::gpu {
namespace {

constexpr int kKeyTile = 64;
constexpr int kQueriesOfBlock = kWarpsOfBlock * cores::kQueriesOfWarp;
constexpr int kWidestHead = 256;

template <typename T>
struct HeadArrays {
  const T* q;
  const T* k;
  const T* v;
  T* out;
  const std::int32_t* window_offsets;
  int n_heads, n_kv_heads, head_dim;
};

/// One block a token.
template <typename T>
__global__ void split_kernel(const float* qkv, const std::int32_t* position, const float* cosines, const float* sines,
                             cores::HeadCounts heads, T* q, T* k, T* v) {
  const std::int64_t token = blockIdx.x;
  const std::int64_t columns = 2 * static_cast<std::int64_t>(heads.pairs());
  const std::int64_t angles = static_cast<std::int64_t>(position[token]) * (heads.head_dim / 2);
  const std::int64_t queries = token * heads.queries * heads.head_dim;
  const std::int64_t keys = token * heads.keys * heads.head_dim;
  for (int pair = static_cast<int>(threadIdx.x); pair < heads.pairs(); pair += static_cast<int>(blockDim.x))
    cores::split_pair(qkv + token * columns, heads, pair, cosines + angles, sines + angles, q + queries, k + keys,
                      v + keys);
}

/// Grid: (queries in steps of kWarpsOfBlock, heads, windows); a query a warp.
template <typename T>
__global__ void __launch_bounds__(kWarpThreads) plain_kernel(HeadArrays<T> all, cores::AttentionRule rule) {
  const std::int64_t first = all.window_offsets[blockIdx.z];
  const int n = all.window_offsets[blockIdx.z + 1] - static_cast<int>(first);
  const int query = static_cast<int>(blockIdx.x) * kWarpsOfBlock + static_cast<int>(threadIdx.x) / 32;
  if (query >= n) return;
  const int head = static_cast<int>(blockIdx.y);
  const std::int64_t stride = static_cast<std::int64_t>(all.n_kv_heads) * all.head_dim;
  const std::int64_t keys = first * stride + head / (all.n_heads / all.n_kv_heads) * all.head_dim;
  const std::int64_t at = ((first + query) * all.n_heads + head) * all.head_dim;
  cores::attend_query<kWidestHead / 32>(cores::DeviceWarp{}, all.q + at, all.k + keys, all.v + keys, stride, query,
                                        all.head_dim, rule, all.out + at);
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
__global__ void __launch_bounds__(kWarpThreads) matrix_unit_kernel(HeadArrays<Bf16> all, cores::AttentionRule rule) {
  constexpr int kStride = kHeadDim + 8;  // rows then begin in different banks
  __shared__ __align__(16) Bf16 keys[kKeyTile * kStride];
  __shared__ __align__(16) Bf16 values[kKeyTile * kStride];
  const std::int64_t first = all.window_offsets[blockIdx.z];
  const int n = all.window_offsets[blockIdx.z + 1] - static_cast<int>(first);
  const int block_query = static_cast<int>(blockIdx.x) * kQueriesOfBlock;
  if (block_query >= n) return;
  const int head = static_cast<int>(blockIdx.y);
  const int query0 = block_query + static_cast<int>(threadIdx.x) / 32 * cores::kQueriesOfWarp;
  const std::int64_t key_stride = static_cast<std::int64_t>(all.n_kv_heads) * kHeadDim;
  const std::int64_t from = first * key_stride + head / (all.n_heads / all.n_kv_heads) * kHeadDim;
  const std::int64_t query_stride = static_cast<std::int64_t>(all.n_heads) * kHeadDim;
  const std::int64_t at = (first + query0) * query_stride + head * kHeadDim;

  const cores::DeviceWarp warp;
  cores::QueryTile<kHeadDim, cores::DeviceWarp> tile;
  cores::begin_queries(warp, tile, all.q + at, query_stride, n - query0);
  const int end = min(n, block_query + kQueriesOfBlock);
  for (int key0 = cores::first_key(block_query, rule) / kKeyTile * kKeyTile; key0 < end; key0 += kKeyTile) {
    load_tile<kHeadDim, kStride>(all.k + from, key_stride, key0, n, keys);
    load_tile<kHeadDim, kStride>(all.v + from, key_stride, key0, n, values);
    __syncthreads();
    cores::attend_tile<kHeadDim, kKeyTile>(warp, tile, keys, values, kStride, query0, key0, rule);
    __syncthreads();
  }
  cores::end_queries(warp, tile, all.out + at, query_stride, n - query0);
}

template <typename T>
HeadArrays<T> arrays_of(const DeviceHeads& heads, const DeviceWindows& windows, const AttentionShape& shape,
                        Tensor& out) {
  return {.q = heads.q.data<T>(),
          .k = heads.k.data<T>(),
          .v = heads.v.data<T>(),
          .out = out.data<T>(),
          .window_offsets = windows.offsets.data(),
          .n_heads = shape.n_heads,
          .n_kv_heads = shape.n_kv_heads,
          .head_dim = shape.head_dim};
}

std::vector<std::int32_t> positions_of(std::span<const std::int32_t> offsets) {
  std::vector<std::int32_t> positions(static_cast<std::size_t>(offsets.back()));
  for (std::size_t w = 0; w + 1 < offsets.size(); ++w)
    for (std::int32_t t = offsets[w]; t < offsets[w + 1]; ++t) positions[static_cast<std::size_t>(t)] = t - offsets[w];
  return positions;
}

}  // namespace

DeviceWindows::DeviceWindows(std::span<const std::int32_t> window_offsets)
    : n_windows(static_cast<int>(window_offsets.size()) - 1),
      longest(0),
      offsets(window_offsets),
      position(std::span<const std::int32_t>(positions_of(window_offsets))) {
  for (std::size_t w = 0; w + 1 < window_offsets.size(); ++w)
    longest = std::max(longest, window_offsets[w + 1] - window_offsets[w]);
}

DeviceRope copy_rope(RopeTable& table, std::int64_t positions, int head_dim) {
  table.grow(positions);
  const std::int64_t half = head_dim / 2;
  Tensor cosines(DType::f32, positions, half);
  Tensor sines(DType::f32, positions, half);
  for (std::int64_t p = 0; p < positions; ++p) {
    std::ranges::copy(table.cosines(p), cosines.row<float>(p).begin());
    std::ranges::copy(table.sines(p), sines.row<float>(p).begin());
  }
  return {copy_to(Device::gpu, cosines), copy_to(Device::gpu, sines)};
}

DeviceHeads split_heads(TensorView qkv, const DeviceWindows& windows, const AttentionShape& shape,
                        const DeviceRope& rope, DType out) {
  const std::int64_t n = qkv.rows();
  const std::int64_t key_columns = static_cast<std::int64_t>(shape.n_kv_heads) * shape.head_dim;
  DeviceHeads heads{Tensor(out, n, static_cast<std::int64_t>(shape.n_heads) * shape.head_dim, Device::gpu),
                    Tensor(out, n, key_columns, Device::gpu), Tensor(out, n, key_columns, Device::gpu)};
  if (n == 0) return heads;
  const cores::HeadCounts counts = {shape.n_heads, shape.n_kv_heads, shape.head_dim};
  const auto launch = [&]<typename T>(T* q) {
    split_kernel<<<static_cast<unsigned>(n), kThreads, 0, compute_stream().handle()>>>(
        qkv.data<float>(), windows.position.data(), rope.cosines.data<float>(), rope.sines.data<float>(), counts, q,
        heads.k.data<T>(), heads.v.data<T>());
  };
  out == DType::bf16 ? launch(heads.q.data<Bf16>()) : launch(heads.q.data<float>());
  check_launch("split_kernel");
  return heads;
}

Tensor attention(const DeviceHeads& heads, const DeviceWindows& windows, const AttentionShape& shape) {
  if (shape.head_dim > kWidestHead) {
    throw Error("the GPU's attention has room for heads of " + std::to_string(kWidestHead) + " columns, not of " +
                    std::to_string(shape.head_dim),
                {}, "route this model on the CPU");
  }
  Tensor out(heads.q.dtype(), heads.q.rows(), heads.q.cols(), Device::gpu);
  if (out.rows() == 0) return out;
  const cores::AttentionRule rule = {
      .sliding_window = shape.sliding_window,
      .scale = shape.scale > 0 ? shape.scale : 1.0F / std::sqrt(static_cast<float>(shape.head_dim)),
      .softcap = shape.softcap};
  const auto grid = [&](int queries) {
    return dim3(blocks_for(windows.longest, queries), static_cast<unsigned>(shape.n_heads),
                static_cast<unsigned>(windows.n_windows));
  };
  CUstream_st* stream = compute_stream().handle();
  if (out.dtype() == DType::f32) {
    plain_kernel<<<grid(kWarpsOfBlock), kWarpThreads, 0, stream>>>(arrays_of<float>(heads, windows, shape, out), rule);
  } else if (shape.head_dim == 64) {
    matrix_unit_kernel<64>
        <<<grid(kQueriesOfBlock), kWarpThreads, 0, stream>>>(arrays_of<Bf16>(heads, windows, shape, out), rule);
  } else if (shape.head_dim == 128) {
    matrix_unit_kernel<128>
        <<<grid(kQueriesOfBlock), kWarpThreads, 0, stream>>>(arrays_of<Bf16>(heads, windows, shape, out), rule);
  } else {
    plain_kernel<<<grid(kWarpsOfBlock), kWarpThreads, 0, stream>>>(arrays_of<Bf16>(heads, windows, shape, out), rule);
  }
  check_launch("attention");
  return out;
}

}  // namespace switchyard::gpu
