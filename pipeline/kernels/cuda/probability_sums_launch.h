#pragma once

#include <cstdint>

#include "pipeline/kernels/cuda/warp.h"

/// Arrays are in GPU memory, launches in the compute stream.
namespace switchyard::gpu {

inline constexpr std::int64_t kSumChunk = 64;  // rows

/// Sums [ceil(n / kSumChunk), width] of the columns of each chunk of rows [n, width]. included: [n] flags of the rows
/// that count; nullptr: all.
struct ChunkSums {
  const float* rows;
  std::int64_t n, width;
  const std::uint8_t* included;
  double* sums;
};

/// Sums [layers, width] over chunks of what is [layers, n_chunks, width].
struct LayerSums {
  const double* chunks;
  std::int64_t layers, n_chunks, width;
  double* sums;
};

void launch_chunk_sums(const ChunkSums& all);
void launch_layer_sums(const LayerSums& all);

}  // namespace switchyard::gpu

namespace switchyard::cores {

/// One column of a chunk, in the order of rows.
SWITCHYARD_CORE void sum_chunk(const gpu::ChunkSums& all, std::int64_t chunk, std::int64_t column) {
  const std::int64_t begin = chunk * gpu::kSumChunk;
  const std::int64_t end = begin + gpu::kSumChunk < all.n ? begin + gpu::kSumChunk : all.n;
  double sum = 0;
  for (std::int64_t row = begin; row < end; ++row)
    if (all.included == nullptr || all.included[row] != 0)
      sum += static_cast<double>(all.rows[row * all.width + column]);
  all.sums[chunk * all.width + column] = sum;
}

/// One column of a layer, in the order of chunks.
SWITCHYARD_CORE void sum_layer(const gpu::LayerSums& all, std::int64_t layer, std::int64_t column) {
  const double* chunks = all.chunks + layer * all.n_chunks * all.width;
  double sum = 0;
  for (std::int64_t chunk = 0; chunk < all.n_chunks; ++chunk) sum += chunks[chunk * all.width + column];
  all.sums[layer * all.width + column] = sum;
}

}  // namespace switchyard::cores
