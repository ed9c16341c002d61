#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "parallel/device/device_memory.h"
#include "parallel/tensor.h"

namespace switchyard::testing_support {

/// [rows, cols] f32 on the host, normally distributed; the same for the same seed.
inline Tensor random_matrix(std::int64_t rows, std::int64_t cols, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Tensor matrix(DType::f32, rows, cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) matrix.data<float>()[i] = normal(generator);
  return matrix;
}

/// The numbers of a matrix of f32, wherever it lies.
inline std::vector<float> values_of(TensorView matrix) {
  if (matrix.device() == Device::gpu) return values_of(copy_to(Device::cpu, matrix));
  return {matrix.data<float>(), matrix.data<float>() + matrix.rows() * matrix.cols()};
}

}  // namespace switchyard::testing_support
