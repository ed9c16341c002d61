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

/// Row i is h[slots[i] / top_k], converted to `out`: h [n, d] f32, slots [m] -> [m, d], in memory of that source.
Tensor gather_slots(TensorView h, const DeviceArray<std::int32_t>& slots, int top_k, DType out,
                    BufferSource* memory = nullptr);

/// Row i is rows[order[i]].
Tensor gather(TensorView rows, const DeviceArray<std::int32_t>& order);

/// Row order[i] is rows[i], in memory of that source: undoes gather. order is a permutation.
Tensor scatter(TensorView rows, const DeviceArray<std::int32_t>& order, BufferSource* memory = nullptr);

/// x [n, d] f32 += rows [n, d] f32.
void add_rows(Tensor& x, TensorView rows);

/// x [n, d] f32 += sum over j of weights[t, j] * the row of slot t * k + j, summed in slot order, of m tokens from
/// `first` on. rows: [m * k, d] f32 or bf16, row i belonging to slots[i]; weights: [m, k] f32, of those tokens.
void add_weighted(Tensor& x, std::int64_t first, TensorView rows, TensorView weights,
                  const DeviceArray<std::int32_t>& slots);

}  // namespace switchyard::gpu
