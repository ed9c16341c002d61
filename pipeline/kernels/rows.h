#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/tensor.h"

/// Operations on rows: each row of a result depends on its own inputs alone. All are parallel over rows.
namespace switchyard {

/// table [vocabulary, d] f32 or bf16, tokens [n] -> [n, d] f32, times `scale`. Every token is below the vocabulary's
/// size.
Tensor embed(TensorView table, std::span<const std::uint32_t> tokens, float scale);

/// x [n, d] f32 / sqrt(mean(x^2) + epsilon) * weight [d] -> [n, d] of type `out`.
Tensor rms_norm(TensorView x, std::span<const float> weight, float epsilon, DType out);

/// Row i is h[slots[i] / top_k], converted to `out`: h [n, d] f32, slots [m] -> [m, d].
Tensor gather_slots(TensorView h, std::span<const std::int32_t> slots, int top_k, DType out);

/// Row i is rows[order[i]]. Hands `rows` back when the order changes nothing.
Tensor gather(Tensor rows, std::span<const std::int32_t> order);

/// Row order[i] is rows[i]: undoes gather. order is a permutation.
Tensor scatter(Tensor rows, std::span<const std::int32_t> order);

/// x [n, d] f32 += rows [n, d] f32.
void add_rows(Tensor& x, TensorView rows);

/// x [n, d] f32 += sum over j of weights[t, j] * the row of slot t * k + j, summed in slot order, of m tokens from
/// `first` on. rows: [m * k, d] f32 or bf16, row i belonging to slots[i]; weights: [n, k].
void add_weighted(Tensor& x, std::int64_t first, TensorView rows, std::span<const float> weights, int top_k,
                  std::span<const std::int32_t> slots);

/// [m] Euclidean norm of the row of each slot from `first` on, in f64. rows: [m, d] f32 or bf16, row i belonging to
/// slots[i].
std::vector<double> slot_norms(TensorView rows, std::span<const std::int32_t> slots, std::int64_t first);

}  // namespace switchyard
