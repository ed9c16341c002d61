#include "pipeline/experiments/neurons.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "parallel/bf16.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

template <typename T>
double dot_of(const T* a, const T* b, std::int64_t n) {
  constexpr std::int64_t kSums = 16;  // independent ones, so that additions overlap
  std::array<double, kSums> sums{};
  std::int64_t k = 0;
  for (; k + kSums <= n; k += kSums)
    for (std::int64_t s = 0; s < kSums; ++s)
      sums[static_cast<std::size_t>(s)] +=
          static_cast<double>(static_cast<float>(a[k + s])) * static_cast<double>(static_cast<float>(b[k + s]));
  for (; k < n; ++k)
    sums[0] += static_cast<double>(static_cast<float>(a[k])) * static_cast<double>(static_cast<float>(b[k]));
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

template <typename T>
void transpose(TensorView in, Tensor& out) {
  constexpr std::int64_t kTile = 64;  // both sides of a tile stay in the first-level cache
#pragma omp parallel for
  for (std::int64_t top = 0; top < in.rows(); top += kTile)
    for (std::int64_t left = 0; left < in.cols(); left += kTile)
      for (std::int64_t c = left; c < std::min(in.cols(), left + kTile); ++c)
        for (std::int64_t r = top; r < std::min(in.rows(), top + kTile); ++r)
          out.data<T>()[c * in.rows() + r] = in.data<T>()[r * in.cols() + c];
}

}  // namespace

std::string_view name_of(FfnMatrix matrix) {
  constexpr std::array<std::string_view, kFfnMatrices> kNames = {"gate", "up", "down"};
  return kNames[static_cast<std::size_t>(matrix)];
}

Neurons make_neurons(FfnTensors block, FfnMatrix matrix, const std::string& where) {
  Neurons neurons{.rows = matrix == FfnMatrix::gate ? std::move(block.gate)
                          : matrix == FfnMatrix::up ? std::move(block.up)
                                                    : transposed(block.down),
                  .norms = {}};
  neurons.norms.resize(static_cast<std::size_t>(neurons.rows.rows()));
#pragma omp parallel for
  for (std::int64_t i = 0; i < neurons.rows.rows(); ++i)
    neurons.norms[static_cast<std::size_t>(i)] = std::sqrt(dot(neurons.rows, i, neurons.rows, i));
  if (!std::all_of(neurons.norms.begin(), neurons.norms.end(), [](double norm) { return std::isfinite(norm); }))
    throw Error("the " + std::string(name_of(matrix)) + " matrix holds values that are infinite or no numbers", where,
                "copy the checkpoint again");
  return neurons;
}

double dot(TensorView a, std::int64_t i, TensorView b, std::int64_t j) {
  if (a.dtype() == DType::f32) return dot_of(a.row<float>(i).data(), b.row<float>(j).data(), a.cols());
  return dot_of(a.row<Bf16>(i).data(), b.row<Bf16>(j).data(), a.cols());
}

Tensor transposed(TensorView in) {
  Tensor out(in.dtype(), in.cols(), in.rows());
  in.dtype() == DType::f32 ? transpose<float>(in, out) : transpose<Bf16>(in, out);
  return out;
}

std::vector<std::int32_t> sample_indices(std::int64_t n, std::int64_t count, std::uint64_t seed) {
  std::vector<std::int32_t> indices(static_cast<std::size_t>(n));
  std::iota(indices.begin(), indices.end(), 0);
  if (count == 0 || count >= n) return indices;
  std::mt19937_64 engine(seed);
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i)
    std::swap(indices[i], indices[i + engine() % (indices.size() - i)]);
  indices.resize(static_cast<std::size_t>(count));
  std::sort(indices.begin(), indices.end());
  return indices;
}

Tensor select_rows(TensorView rows, std::span<const std::int32_t> which) {
  Tensor out(rows.dtype(), std::ssize(which), rows.cols());
  std::byte* to = out.bytes();
  for (const std::int32_t r : which) {
    std::memcpy(to, rows.rows(r, r + 1).bytes(), static_cast<std::size_t>(rows.row_bytes()));
    to += rows.row_bytes();
  }
  return out;
}

}  // namespace switchyard
