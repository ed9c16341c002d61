#include "pipeline/kernels/cuda/probability_sums.h"

#include <cassert>

#include "parallel/device/device_array.h"
#include "pipeline/kernels/cuda/probability_sums_launch.h"

namespace switchyard::gpu {

std::vector<std::vector<double>> probability_sums(std::span<const TensorView> probabilities,
                                                  std::span<const std::uint8_t> included) {
  if (probabilities.empty()) return {};
  const std::int64_t n = probabilities.front().rows();
  const std::int64_t width = probabilities.front().cols();
  const auto layers = static_cast<std::int64_t>(probabilities.size());
  if (n == 0) return {probabilities.size(), std::vector<double>(static_cast<std::size_t>(width), 0)};

  const DeviceArray<std::uint8_t> flags(included);
  const std::int64_t n_chunks = (n + kSumChunk - 1) / kSumChunk;
  DeviceArray<double> chunks(static_cast<std::size_t>(layers * n_chunks * width));
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const TensorView rows = probabilities[static_cast<std::size_t>(layer)];
    assert(rows.rows() == n && rows.cols() == width);
    launch_chunk_sums({.rows = rows.data<float>(),
                       .n = n,
                       .width = width,
                       .included = flags.data(),
                       .sums = chunks.data() + layer * n_chunks * width});
  }
  DeviceArray<double> sums(static_cast<std::size_t>(layers * width));
  launch_layer_sums(
      {.chunks = chunks.data(), .layers = layers, .n_chunks = n_chunks, .width = width, .sums = sums.data()});

  const std::vector<double> all = sums.to_host();
  std::vector<std::vector<double>> of_layers;
  for (auto begin = all.begin(); begin != all.end(); begin += width) of_layers.emplace_back(begin, begin + width);
  return of_layers;
}

}  // namespace switchyard::gpu
