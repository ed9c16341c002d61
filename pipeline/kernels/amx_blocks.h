#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "parallel/tensor.h"
#include "pipeline/kernels/amx.h"

/// Large bf16 products on AMX tiles. kAmxBlock rows at a time pass a strip of kAmxBlock columns, kAmxDepth of k long:
/// so much of a strip stays in the first-level cache while all rows pass by, whose tiles come from the second level
/// around the first. What becomes of a block's sums is done while the next block is summed. As with amx_multiply, every
/// row is summed over k in ascending steps of 32, whatever stands beside it.
namespace switchyard {

inline constexpr std::int64_t kAmxBlock = 32;
inline constexpr std::int64_t kAmxDepth = 512;
/// k past which all strips are taken before it goes on, so that rows' tiles stay in the second-level cache.
constexpr std::int64_t amx_span(std::int64_t k) { return k <= 2 * kAmxDepth ? k : kAmxDepth; }

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

/// Sums of a block: its left 16 columns [32, 16], then its right ones.
struct alignas(64) AmxBlock {
  static constexpr std::int64_t kColumns = kAmxBlock / 2;
  std::array<float, kAmxBlock * kColumns> left, right;
};

/// What becomes of a block's sums. `out`: of its first row; `stride` bytes to the next; of `rows` rows.
struct AmxFinish {
  enum class Kind : std::uint8_t {
    nothing,
    store,   // f32 [rows, 32] = sums
    add,     // f32 [rows, 32] += sums
    narrow,  // bf16 [rows, 32] = sums
    silu,    // bf16 [rows, 16] = silu(left) * right
    gelu     // bf16 [rows, 16] = gelu(left) * right
  };
  Kind kind = Kind::nothing;
  void* out = nullptr;
  std::int64_t stride = 0;
  std::int64_t rows = 0;
};

/// Part of a strip: from `tiles` on, its second column of tiles `stride` bytes behind its first.
struct AmxStrip {
  const std::byte* tiles;
  std::int64_t stride;
};

/// A block and what becomes of it.
struct AmxDone {
  const AmxBlock* sums = nullptr;
  AmxFinish finish;
};

/// Lines that are asked for at each step: `of_strip` of either column of a strip, `of_rows` of rows' tiles.
struct AmxAhead {
  const std::byte* strip = nullptr;
  std::int64_t of_strip = 0;
  const std::byte* rows = nullptr;
  std::int64_t of_rows = 0;

  void pass(std::int64_t steps) {
    strip += steps * of_strip * 64;
    rows += steps * of_rows * 64;
  }
};

/// to = sums (nullptr: 0) + rows' tiles * strip, `steps` of 32 long. At each step lines are asked for of what is read
/// next and of what `coming`, the finish of this block, will write; and some rows of a block that was summed before are
/// finished: the vector units are idle meanwhile.
void amx_add_block(const std::byte* rows, AmxStrip strip, std::int64_t steps, const AmxBlock* sums, AmxBlock& to,
                   AmxAhead ahead, const AmxDone& before, const AmxFinish& coming);
void amx_finish_block(const AmxDone& done);

/// Blocks of sums that amx_multiply_blocks keeps.
constexpr std::int64_t amx_kept_blocks(std::int64_t rows, std::int64_t n, std::int64_t k) {
  return rows / kAmxBlock * (k > amx_span(k) ? n / kAmxBlock : 1);
}

/// Products of left's rows [row, row + rows) with packed [k, n] of amx_pack_columns; finish_of(r, column): the
/// AmxFinish of the block there, r from 0 on. row, rows: multiples of kAmxBlock; packed: 64-byte aligned; sums: room
/// for amx_kept_blocks.
template <typename FinishOf>
void amx_multiply_blocks(const AmxRows& left, std::int64_t row, std::int64_t rows, const std::byte* packed,
                         std::int64_t n, AmxBlock* sums, FinishOf finish_of) {
  const AmxTiles tiles;
  const std::int64_t k = left.k();
  const std::int64_t stride = amx_stride(k);
  const auto part = [=](std::int64_t column, std::int64_t at) { return packed + column / 16 * stride + at * 32; };
  const std::int64_t blocks = rows / kAmxBlock;
  AmxAhead ahead;
  ahead.of_strip = std::clamp<std::int64_t>(16 / blocks, 1, 4);  // a step has 16 lines of a column
  std::array<AmxBlock, 2> whole;                                 // in turns: one is finished while the other is summed
  std::size_t turn = 0;
  AmxDone before;
  const std::int64_t span = amx_span(k);
  for (std::int64_t begin = 0; begin < k; begin += span) {
    const std::int64_t end = std::min(k, begin + span);
    ahead.rows = left.tiles(row, std::min(end, k - 32));
    ahead.of_rows = end < k ? (kAmxBlock * kAmxBlock + n - 1) / n : 0;
    for (std::int64_t column = 0; column < n; column += kAmxBlock) {
      AmxBlock* const of_strip = sums + (k > span ? column / kAmxBlock * blocks : 0);
      for (std::int64_t at = begin; at < end; at += kAmxDepth) {
        const std::int64_t steps = std::min(kAmxDepth, end - at) / 32;
        const bool last = at + steps * 32 == k;
        ahead.strip = part(column, at + steps * 32);
        if (at + steps * 32 == end) {
          const std::byte* const behind = end < k ? part(0, end) : part(n, 0);  // where the next panel may begin
          ahead.strip = column + kAmxBlock < n ? part(column + kAmxBlock, begin) : behind;
        }
        for (std::int64_t b = 0; b < blocks; ++b, ahead.pass(steps)) {
          AmxBlock& to = last ? whole[turn] : of_strip[b];
          const AmxFinish coming = last ? finish_of(b * kAmxBlock, column) : AmxFinish();
          amx_add_block(left.tiles(row + b * kAmxBlock, at), {part(column, at), stride}, steps,
                        at > 0 ? of_strip + b : nullptr, to, ahead, before, coming);
          before = {};
          if (!last) continue;
          before = {&to, coming};
          turn = 1 - turn;
        }
      }
    }
  }
  amx_finish_block(before);
}

}  // namespace switchyard
