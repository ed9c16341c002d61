#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/tensor.h"

namespace switchyard::gpu {

/// [layers][E] sums over included tokens of the router probabilities of several layers, each [n, E] f32 in GPU memory.
/// included: [n] flags, host; empty: all tokens. As the CPU's probability_sums, but summed by 64 tokens first: an order
/// that n alone decides. Blocks until the sums are on the host; nothing else travels. Throws Error in a build without
/// CUDA.
std::vector<std::vector<double>> probability_sums(std::span<const TensorView> probabilities,
                                                  std::span<const std::uint8_t> included);

}  // namespace switchyard::gpu
