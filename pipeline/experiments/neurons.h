#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "parallel/tensor.h"
#include "pipeline/model/checkpoint_tensors.h"

namespace switchyard {

/// The matrices of a gated feed-forward block. A neuron is row i of gate and of up and column i of down.
enum class FfnMatrix : std::uint8_t { gate, up, down };
inline constexpr int kFfnMatrices = 3;
/// "gate" | "up" | "down".
std::string_view name_of(FfnMatrix matrix);

/// The neurons of one matrix of one block, a row each.
struct Neurons {
  Tensor rows;                // [d_ff, d_model] f32 or bf16
  std::vector<double> norms;  // [d_ff] Euclidean
};

/// Takes one matrix of a block apart. where: the block in words, for the Error thrown when a weight is infinite or not
/// a number.
Neurons make_neurons(FfnTensors block, FfnMatrix matrix, const std::string& where);

/// Dot product of neuron i of a and neuron j of b, which are of one width and type, summed in double.
double dot(TensorView a, std::int64_t i, TensorView b, std::int64_t j);

/// [cols, rows].
Tensor transposed(TensorView in);

/// `count` of the numbers below n, ascending; all of them when count is 0 or at least n. The same for the same seed.
std::vector<std::int32_t> sample_indices(std::int64_t n, std::int64_t count, std::uint64_t seed);
/// Those rows.
Tensor select_rows(TensorView rows, std::span<const std::int32_t> which);

}  // namespace switchyard
