#pragma once

#include <cstdint>

#include "parallel/device/device_array.h"
#include "parallel/tensor.h"

/// What kernels/rows.h does, for matrices in GPU memory; in the compute stream, without waiting for it.
namespace switchyard::gpu {

/// table [vocabulary, d] f32 or bf16, tokens [n] -> [n, d] f32, times `scale`.
Tensor embed(TensorView table, const DeviceArray<std::uint32_t>& tokens, float scale);

/// x [n, d] f32 / sqrt(mean(x^2) + epsilon) * weight [1, d] f32 -> [n, d] of type `out`.
Tensor rms_norm(TensorView x, TensorView weight, float epsilon, DType out);

/// Each token's row for each of its slots: of h [n, d] f32, for m / top_k tokens from `first` on, row row_of_slot[j] of
/// the result [m, d] is that of token first + j / top_k, converted to `out`, in memory of that source. row_of_slot [m]:
/// a permutation.
Tensor gather_slots(TensorView h, std::int64_t first, const DeviceArray<std::int32_t>& row_of_slot, int top_k,
                    DType out, BufferSource* memory = nullptr);

/// Row i is rows[order[i]].
Tensor gather(TensorView rows, const DeviceArray<std::int32_t>& order);

/// Row order[i] is rows[i], in memory of that source: undoes gather. order is a permutation.
Tensor scatter(TensorView rows, const DeviceArray<std::int32_t>& order, BufferSource* memory = nullptr);

/// x [n, d] f32 += rows [n, d] f32.
void add_rows(Tensor& x, TensorView rows);

/// x [n, d] f32 += sum over j of weights[t, j] * rows[row_of_slot[t * k + j]], summed in slot order, of m tokens from
/// `first` on. rows: [m * k, d] f32 or bf16; weights [m, k] f32 and row_of_slot [m * k], of those tokens.
void add_weighted(Tensor& x, std::int64_t first, TensorView rows, TensorView weights,
                  const DeviceArray<std::int32_t>& row_of_slot);

/// [m] Euclidean norm of each slot's row, in f64. rows: [m, d] f32 or bf16; row_of_slot [m].
DeviceArray<double> slot_norms(TensorView rows, const DeviceArray<std::int32_t>& row_of_slot);

}  // namespace switchyard::gpu
