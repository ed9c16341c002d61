#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>

#include "parallel/device/device_memory.h"
#include "pipeline/analysis/live_accumulators.h"
#include "pipeline/kernels/cuda/probability_sums.h"

namespace switchyard::testing_support {

inline Tensor random_probabilities(std::int64_t n, std::int64_t width, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform;
  Tensor tensor(DType::f32, n, width);
  for (std::int64_t i = 0; i < n * width; ++i) tensor.data<float>()[i] = uniform(generator);
  return tensor;
}

/// Sums of a GPU, or of its stand-in, are those of the CPU: of full and part chunks of rows, with rows left out, of
/// several layers at once; and the same bits each time.
inline void expect_probability_sums() {
  for (const std::int64_t width : {8, 64, 128, 300}) {
    for (const std::int64_t n : {0, 1, 63, 64, 65, 1000}) {
      std::vector<Tensor> layers;
      std::vector<Tensor> copies;
      std::vector<TensorView> views;
      for (unsigned l = 0; l < 3; ++l) {
        layers.push_back(random_probabilities(n, width, l));
        copies.push_back(copy_to(Device::gpu, layers.back()));
      }
      for (const Tensor& copy : copies) views.emplace_back(copy);
      std::vector<std::uint8_t> flags;
      for (std::int64_t t = 0; t < n; ++t) flags.push_back(t % 5 == 0 || (t > 100 && t < 200) ? 0 : 1);
      for (const bool all : {true, false}) {
        const std::vector<std::uint8_t> included = all ? std::vector<std::uint8_t>() : flags;
        const std::vector<std::vector<double>> found = gpu::probability_sums(views, included);
        EXPECT_EQ(found, gpu::probability_sums(views, included));
        ASSERT_EQ(found.size(), layers.size());
        for (std::size_t l = 0; l < layers.size(); ++l) {
          const std::vector<double> expected = probability_sums(layers[l], included);
          ASSERT_EQ(found[l].size(), expected.size());
          for (std::size_t e = 0; e < expected.size(); ++e)
            EXPECT_NEAR(found[l][e], expected[e], 1e-12 * expected[e]) << n << " tokens, " << width << " experts";
        }
      }
    }
  }
}

}  // namespace switchyard::testing_support
