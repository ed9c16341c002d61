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

// Large products. They run in blocks of kAmxBlock rows and columns, past kAmxDepth of k at a time: so much of a strip
// of kAmxBlock columns stays in the first-level cache while all rows pass by, whose tiles come from the second level.

inline constexpr std::int64_t kAmxBlock = 32;
inline constexpr std::int64_t kAmxDepth = 256;

/// Whether [any, k] x [k, n] divides into blocks.
constexpr bool fits_amx_blocks(std::int64_t n, std::int64_t k) { return n % kAmxBlock == 0 && k % 32 == 0; }

/// Left-hand rows [rows, k] bf16 in the order in which blocks read them, so that their pages and lines follow one
/// another: kAmxDepth of k at a time, of these the blocks of rows, of each its steps of 32, of each two tiles.
class AmxRows {
 public:
  /// Room for rows, a multiple of kAmxBlock.
  AmxRows(std::int64_t rows, std::int64_t k) : memory_(DType::bf16, rows, k) {}

  std::int64_t k() const { return memory_.cols(); }
  /// Where the block of rows from `row` on keeps 32 of k from `at` on: [32, 32].
  std::byte* tiles(std::int64_t row, std::int64_t at) { return memory_.bytes() + offset(row, at); }
  const std::byte* tiles(std::int64_t row, std::int64_t at) const { return memory_.bytes() + offset(row, at); }
  /// Puts n rows [n, k] from `row` on, the first of a block; the rest of their last block becomes 0.
  void set(std::int64_t row, const Bf16* from, std::int64_t n);

 private:
  std::int64_t offset(std::int64_t row, std::int64_t at) const {
    const std::int64_t chunk = at / kAmxDepth * kAmxDepth;
    const std::int64_t depth = k() - chunk < kAmxDepth ? k() - chunk : kAmxDepth;
    return 2 * (chunk * memory_.rows() + row * depth + (at - chunk) * kAmxBlock);
  }

  Tensor memory_;
};

/// n, rounded up to whole blocks.
constexpr std::int64_t amx_block_rows(std::int64_t n) { return (n + kAmxBlock - 1) / kAmxBlock * kAmxBlock; }

/// blocks [n / 32][rows / 32][32][32] f32 = left's rows [row, row + rows) * packed [k, n]; row, rows: multiples of
/// kAmxBlock. packed: of amx_pack_columns; it and the blocks are 64-byte aligned.
void amx_multiply_blocks(const AmxRows& left, std::int64_t row, std::int64_t rows, const std::byte* packed,
                         std::int64_t n, float* blocks);

/// out [rows, n] = the blocks of a product of so many rows, the last ones perhaps not whole; `stride` elements from row
/// to row.
void amx_write_blocks(const float* blocks, std::int64_t rows, std::int64_t n, Bf16* out, std::int64_t stride);
/// The same; `add`: they are added to what is there.
void amx_write_blocks(const float* blocks, std::int64_t rows, std::int64_t n, bool add, float* out,
                      std::int64_t stride);

}  // namespace switchyard
