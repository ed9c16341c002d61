#include "pipeline/kernels/cuda/launch.h"
#include "pipeline/kernels/cuda/probability_sums_launch.h"

namespace switchyard::gpu {
namespace {

// One block a chunk or a layer, a thread a column in turns.

__global__ void chunk_sums_kernel(ChunkSums all) {
  for (std::int64_t column = threadIdx.x; column < all.width; column += blockDim.x)
    cores::sum_chunk(all, blockIdx.x, column);
}

__global__ void layer_sums_kernel(LayerSums all) {
  for (std::int64_t column = threadIdx.x; column < all.width; column += blockDim.x)
    cores::sum_layer(all, blockIdx.x, column);
}

}  // namespace

void launch_chunk_sums(const ChunkSums& all) {
  chunk_sums_kernel<<<blocks_for(all.n, kSumChunk), kThreads, 0, compute_stream().handle()>>>(all);
  check_launch("chunk_sums_kernel");
}

void launch_layer_sums(const LayerSums& all) {
  layer_sums_kernel<<<static_cast<unsigned>(all.layers), kThreads, 0, compute_stream().handle()>>>(all);
  check_launch("layer_sums_kernel");
}

}  // namespace switchyard::gpu
