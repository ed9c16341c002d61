#pragma once

#include <cstddef>
#include <cstdint>

#include "parallel/tensor.h"

/// bf16 products on Intel's AMX tiles, f32 accumulation. Ours beside oneDNN's because a forward pass of small experts
/// is made of small products: without the library's cost per call, and with results kept in the first-level cache, they
/// take half the time. Every row is summed over k in ascending steps of 32, whatever stands beside it.
namespace switchyard {

/// Whether this CPU and kernel let the process use AMX tiles.
bool has_amx();

/// Tiles are set up in the calling thread while one lives.
class AmxTiles {
 public:
  AmxTiles();
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;
  ~AmxTiles();
};

/// Whether [m, k] x [k, n] divides into tiles.
constexpr bool fits_amx(std::int64_t m, std::int64_t n, std::int64_t k) {
  return m % 16 == 0 && n % 16 == 0 && k % 32 == 0;
}

/// Bytes of a packed right-hand matrix: as many as it has.
constexpr std::int64_t amx_packed_bytes(std::int64_t n, std::int64_t k) { return n * k * 2; }
/// Packs right-hand columns that lie as rows: weights [n, k].
void amx_pack_columns(const Bf16* weights, std::int64_t n, std::int64_t k, std::byte* packed);
/// Packs a right-hand matrix [k, n].
void amx_pack_rows(const Bf16* right, std::int64_t n, std::int64_t k, std::byte* packed);

/// Bytes between the packed column tiles of a matrix with k rows. The first rows of a packed matrix, in steps of 32,
/// are found at its start, with the stride of the whole.
constexpr std::int64_t amx_stride(std::int64_t k) { return k * 32; }

/// out [m, n] = left [m, k] * packed. out: f32 or bf16, dense. stride: amx_stride of the whole packed matrix.
void amx_multiply(const Bf16* left, const std::byte* packed, std::int64_t stride, std::int64_t m, std::int64_t n,
                  std::int64_t k, void* out, DType out_type);

}  // namespace switchyard
