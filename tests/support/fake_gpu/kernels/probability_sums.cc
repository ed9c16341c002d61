#include "pipeline/kernels/cuda/probability_sums_launch.h"
#include "tests/support/fake_gpu/fake_gpu.h"

/// The launches of probability_sums.cu.
namespace switchyard::gpu {

void launch_chunk_sums(const ChunkSums& all) {
  fake_gpu::launch({all.rows, all.included, all.sums}, [all] {
    for (std::int64_t chunk = 0; chunk * kSumChunk < all.n; ++chunk)
      for (std::int64_t column = 0; column < all.width; ++column) cores::sum_chunk(all, chunk, column);
  });
}

void launch_layer_sums(const LayerSums& all) {
  fake_gpu::launch({all.chunks, all.sums}, [all] {
    for (std::int64_t layer = 0; layer < all.layers; ++layer)
      for (std::int64_t column = 0; column < all.width; ++column) cores::sum_layer(all, layer, column);
  });
}

}  // namespace switchyard::gpu
