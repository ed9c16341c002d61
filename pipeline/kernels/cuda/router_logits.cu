#include <cuda_pipeline.h>

#include <cassert>

#include "pipeline/kernels/cuda/launch.h"
#include "pipeline/kernels/cuda/matmul.h"
#include "pipeline/kernels/cuda/router_logits.h"

namespace switchyard::gpu {
namespace {

constexpr int kBlock = 128;         // threads
constexpr int kTokens = 32;         // of a block
constexpr int kDepth = 32;          // columns of h and weights at a time
constexpr int kStages = 3;          // such pieces on their way at once
constexpr int kPitch = kDepth + 4;  // of a row in shared memory: eight rows' same columns lie in all banks

using Four = cores::Pack<float, 4>;

/// A piece of some rows, zeros where there are none.
template <int kRows>
__device__ void fetch(const float* from, int rows, int d, int column, float (*to)[kPitch]) {
  constexpr int kPacks = kDepth / 4;
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kPacks; i += kBlock) {
    const int row = i / kPacks;
    const int at = i % kPacks * 4;
    const bool is_there = row < rows && column + at < d;
    const float* source = is_there ? from + static_cast<std::int64_t>(row) * d + column + at : from;
    __pipeline_memcpy_async(&to[row][at], source, sizeof(Four), is_there ? 0 : sizeof(Four));
  }
}

/// kExperts columns of the logits of kTokens tokens: a thread sums some tokens' products with some experts, column by
/// column of h. d is a multiple of 4.
template <int kExperts>
__global__ void __launch_bounds__(kBlock)
    router_logits_kernel(const float* h, const float* weights, int n, int n_experts, int d, float* logits) {
  constexpr int kColumns = kExperts < 16 ? kExperts : 16;  // threads side by side, an expert each in turns
  constexpr int kOwnExperts = kExperts / kColumns;
  constexpr int kLines = kBlock / kColumns;
  constexpr int kOwnTokens = kTokens / kLines;
  __shared__ alignas(16) float h_pieces[kStages][kTokens][kPitch];
  __shared__ alignas(16) float w_pieces[kStages][kExperts][kPitch];

  const int first_token = static_cast<int>(blockIdx.x) * kTokens;
  const int first_expert = static_cast<int>(blockIdx.y) * kExperts;
  const float* from_h = h + static_cast<std::int64_t>(first_token) * d;
  const float* from_w = weights + static_cast<std::int64_t>(first_expert) * d;
  const int line = static_cast<int>(threadIdx.x) / kColumns;
  const int column = static_cast<int>(threadIdx.x) % kColumns;

  const int n_pieces = (d + kDepth - 1) / kDepth;
  const auto start = [&](int piece) {  // beyond the last: nothing, which counts as one
    if (piece < n_pieces) {
      fetch<kTokens>(from_h, n - first_token, d, piece * kDepth, h_pieces[piece % kStages]);
      fetch<kExperts>(from_w, n_experts - first_expert, d, piece * kDepth, w_pieces[piece % kStages]);
    }
    __pipeline_commit();
  };

  float sums[kOwnTokens][kOwnExperts] = {};
  for (int piece = 0; piece < kStages - 1; ++piece) start(piece);
  for (int piece = 0; piece < n_pieces; ++piece) {
    __pipeline_wait_prior(kStages - 2);
    __syncthreads();  // the piece is there for all, and all have done with the one whose place the next one takes
    start(piece + kStages - 1);
    const auto& own_h = h_pieces[piece % kStages];
    const auto& own_w = w_pieces[piece % kStages];
    SWITCHYARD_UNROLL
    for (int k = 0; k < kDepth; k += 4) {
      Four w[kOwnExperts];
      SWITCHYARD_UNROLL
      for (int e = 0; e < kOwnExperts; ++e) w[e] = cores::load<4>(&own_w[e * kColumns + column][k]);
      SWITCHYARD_UNROLL
      for (int t = 0; t < kOwnTokens; ++t) {
        const Four x = cores::load<4>(&own_h[t * kLines + line][k]);
        SWITCHYARD_UNROLL
        for (int e = 0; e < kOwnExperts; ++e) {
          SWITCHYARD_UNROLL
          for (int i = 0; i < 4; ++i) sums[t][e] = fmaf(x.at[i], w[e].at[i], sums[t][e]);
        }
      }
    }
  }

  SWITCHYARD_UNROLL
  for (int t = 0; t < kOwnTokens; ++t) {
    const int token = first_token + t * kLines + line;
    SWITCHYARD_UNROLL
    for (int e = 0; e < kOwnExperts; ++e) {
      const int expert = first_expert + e * kColumns + column;
      if (token < n && expert < n_experts) logits[static_cast<std::int64_t>(token) * n_experts + expert] = sums[t][e];
    }
  }
}

}  // namespace

Tensor router_logits(TensorView h, TensorView weights) {
  assert(h.cols() == weights.cols() && h.dtype() == DType::f32 && weights.dtype() == DType::f32);
  if (h.cols() % 4 != 0) return matmul(h, weights);
  const auto n = static_cast<int>(h.rows());
  const auto n_experts = static_cast<int>(weights.rows());
  Tensor logits(DType::f32, n, n_experts, Device::gpu);
  if (n == 0) return logits;
  const auto launch = [&]<int kExperts>(Width<kExperts>) {
    const dim3 blocks(blocks_for(n, kTokens), blocks_for(n_experts, kExperts));
    router_logits_kernel<kExperts><<<blocks, kBlock, 0, compute_stream().handle()>>>(
        h.data<float>(), weights.data<float>(), n, n_experts, static_cast<int>(h.cols()), logits.data<float>());
  };
  if (n_experts <= 8) {
    launch(Width<8>());
  } else if (n_experts <= 16) {
    launch(Width<16>());
  } else if (n_experts <= 32) {
    launch(Width<32>());
  } else {
    launch(Width<64>());
  }
  check_launch("router_logits_kernel");
  return logits;
}

}  // namespace switchyard::gpu
