#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

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
  /// Bytes from a block's tiles to those of the block below.
  std::int64_t block_stride(std::int64_t at) const { return 2 * kAmxBlock * depth(at); }
  /// Puts n rows [n, k] from `row` on, the first of a block; the rest of their last block becomes 0.
  void set(std::int64_t row, const Bf16* from, std::int64_t n);

 private:
  std::int64_t offset(std::int64_t row, std::int64_t at) const {
    const std::int64_t chunk = at / kAmxDepth * kAmxDepth;
    return 2 * (chunk * memory_.rows() + row * depth(at) + (at - chunk) * kAmxBlock);
  }
  /// Of the chunk of k that `at` is in.
  std::int64_t depth(std::int64_t at) const {
    const std::int64_t chunk = at / kAmxDepth * kAmxDepth;
    return k() - chunk < kAmxDepth ? k() - chunk : kAmxDepth;
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

/// What becomes of the sums of blocks below one another. `out`: of their first row; `stride` bytes to the next within a
/// block, `block_stride` from block to block; of `rows` rows.
struct AmxFinish {
  enum class Kind : std::uint8_t {
    store,   // f32 [rows, 32] = sums
    add,     // f32 [rows, 32] += sums
    narrow,  // bf16 [rows, 32] = sums
    silu,    // bf16 [rows, 16] = silu(left) * right
    gelu,    // bf16 [rows, 16] = gelu(left) * right
    loss     // AmxLoss [rows] takes in the sums, which are logits
  };
  Kind kind;
  std::byte* out;
  std::int64_t stride, block_stride;
  std::int64_t rows;
  std::int32_t column = 0;  // of the blocks, in the whole right-hand matrix: where kind is loss
};

/// What is known of a row of logits after some of its columns, taken in ascending order.
struct AmxLoss {
  std::array<float, 16> sums{};  // of e^(logit - largest), by column modulo 16
  float largest = -std::numeric_limits<float>::infinity();
  std::int32_t predicted = 0;  // the lowest column of the largest
  std::int32_t target = -1;    // a column, or -1
  float target_logit = std::numeric_limits<float>::quiet_NaN();
};

/// Part of a strip: from `tiles` on, its second column of tiles `stride` bytes behind its first.
struct AmxStrip {
  const std::byte* tiles;
  std::int64_t stride;
};

/// Lines that are asked for at each step: `of_strip` of either column of a strip, `of_rows` of rows' tiles.
struct AmxAhead {
  const std::byte* strip = nullptr;
  std::int64_t of_strip = 0;
  const std::byte* rows = nullptr;
  std::int64_t of_rows = 0;
};

/// Blocks that pass a part of a strip one below the other.
struct AmxPass {
  const std::byte* rows;  // their tiles
  AmxStrip strip;
  std::int64_t steps;  // of 32 of k
  std::int64_t blocks;
  bool begins;     // sums are 0 before it
  bool ends;       // sums are whole after it
  AmxBlock* sums;  // [blocks] before it, unless it begins; after it, unless it ends
  AmxAhead ahead;
};

/// Sums that are whole and not yet finished: in turns one block is finished while the next is summed.
struct AmxTurns {
  std::array<AmxBlock, 2> sums;
  std::size_t next = 0;               // which the next block takes
  std::byte* out = nullptr;           // of the one before
  std::int64_t stride = 0, rows = 0;  // rows: 0 where there is none
  std::int32_t column = 0;            // AmxFinish::column
};

/// sums += rows' tiles * strip. At each step lines are asked for of what is read next, and, where the pass ends, of
/// what this block's finish will write; and some rows of the block that was summed before are finished: the vector
/// units are idle meanwhile. finish: of the pass' blocks where it ends, else its kind alone counts.
void amx_pass_blocks(const AmxPass& pass, const AmxFinish& finish, AmxTurns& turns);
/// Finishes the last block.
void amx_finish_last(AmxFinish::Kind kind, AmxTurns& turns);

/// Blocks of sums that amx_multiply_blocks keeps.
constexpr std::int64_t amx_kept_blocks(std::int64_t rows, std::int64_t n, std::int64_t k) {
  return rows / kAmxBlock * (k > amx_span(k) ? n / kAmxBlock : 1);
}

/// Products of left's rows [row, row + rows) with packed [k, n] of amx_pack_columns; finish_of(column): the AmxFinish
/// of the blocks there, all of one kind. row, rows: multiples of kAmxBlock; packed: 64-byte aligned; sums: room for
/// amx_kept_blocks.
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
  AmxTurns turns;
  const std::int64_t span = amx_span(k);
  for (std::int64_t begin = 0; begin < k; begin += span) {
    const std::int64_t end = std::min(k, begin + span);
    ahead.rows = left.tiles(row, std::min(end, k - 32));
    ahead.of_rows = end < k ? (kAmxBlock * kAmxBlock + n - 1) / n : 0;
    for (std::int64_t column = 0; column < n; column += kAmxBlock) {
      const AmxFinish finish = finish_of(column);
      for (std::int64_t at = begin; at < end; at += kAmxDepth) {
        const std::int64_t steps = std::min(kAmxDepth, end - at) / 32;
        ahead.strip = part(column, at + steps * 32);
        if (at + steps * 32 == end) {
          const std::byte* const behind = end < k ? part(0, end) : part(n, 0);  // where the next panel may begin
          ahead.strip = column + kAmxBlock < n ? part(column + kAmxBlock, begin) : behind;
        }
        amx_pass_blocks({.rows = left.tiles(row, at),
                         .strip = {part(column, at), stride},
                         .steps = steps,
                         .blocks = blocks,
                         .begins = at == 0,
                         .ends = at + steps * 32 == k,
                         .sums = sums + (k > span ? column / kAmxBlock * blocks : 0),
                         .ahead = ahead},
                        finish, turns);
        ahead.rows += blocks * steps * ahead.of_rows * 64;
      }
    }
  }
  amx_finish_last(finish_of(0).kind, turns);
}

}  // namespace switchyard
