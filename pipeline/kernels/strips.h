#pragma once

#include <cstdint>

/// f32 products on the CPU's vector units. Ours beside oneDNN's, whose f32 matmul on CPUs without AVX-512 takes no
/// packed weights and packs them anew at each call: on tiles of 64 rows these take 0.6 of its time. Every element is
/// one chain of multiply-adds over k in ascending order, whatever stands beside it.
///
/// A right-hand matrix [k, n] is packed in strips of strip_columns() columns: for each strip, its columns' values of
/// k = 0, then of k = 1 and so on. The last strip is filled up with zeros.
namespace switchyard {

/// As many columns as the innermost loop of this CPU takes; divides 32.
std::int64_t strip_columns();
/// Floats of a packed right-hand matrix.
std::int64_t strip_floats(std::int64_t n, std::int64_t k);
/// Packs right-hand columns that lie as rows: weights [n, k].
void pack_strips_of_columns(const float* weights, std::int64_t n, std::int64_t k, float* packed);
/// Packs a right-hand matrix [k, n].
void pack_strips_of_rows(const float* right, std::int64_t n, std::int64_t k, float* packed);

/// out [m, n] = left [m, k] * packed, left and out dense.
void multiply_strips(const float* left, const float* packed, std::int64_t m, std::int64_t n, std::int64_t k,
                     float* out);

}  // namespace switchyard
