#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

#include "pipeline/kernels/amx_blocks.h"
#include "pipeline/kernels/leaf_loops.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// After the headers: what they define must stay callable everywhere.
#pragma GCC target("arch=x86-64-v4,avx512bf16,prfchw,amx-tile,amx-bf16")
#define SWITCHYARD_HAS_AVX512
#define SWITCHYARD_HAS_AVX512BF16
#endif

#define SWITCHYARD_ISA amx
#include "pipeline/kernels/leaf_loops.inc"

namespace switchyard {

#if defined(__x86_64__)

#define SWITCHYARD_AMX __attribute__((target("amx-tile,amx-bf16")))

namespace {

using Row = amx::Loops<Bf16>;
using Kind = AmxFinish::Kind;

void ask_for(const std::byte* line) { _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T1); }

/// Takes in a row's logits of 32 columns from `column` on.
void take_logits(AmxLoss& loss, const float* left, const float* right, std::int32_t column) {
  constexpr std::int64_t kColumns = AmxBlock::kColumns;
  using amx::Floats;
  const auto logits = [](const float* from, std::int64_t i) { return amx::load(from + i, amx::All{}); };
  Floats most = logits(left, 0);
  for (std::int64_t i = 0; i < kColumns; i += amx::kWidth)
    most = amx::max(amx::max(most, logits(left, i)), logits(right, i));
  if (amx::any_above(most, loss.largest)) [[unlikely]] {
    const float largest = amx::largest(most);
    const float factor = std::exp(loss.largest - largest);
    for (float& sum : loss.sums) sum *= factor;
    loss.largest = largest;
    const std::int64_t in_left = amx::index_of(left, largest, kColumns);
    const std::int64_t place = in_left < kColumns ? in_left : kColumns + amx::index_of(right, largest, kColumns);
    loss.predicted = column + static_cast<std::int32_t>(place);
  }
  for (std::int64_t i = 0; i < kColumns; i += amx::kWidth) {
    Floats sums = amx::load(loss.sums.data() + i, amx::All{});
    sums += amx::exp_to_88(logits(left, i) - loss.largest) + amx::exp_to_88(logits(right, i) - loss.largest);
    amx::store(loss.sums.data() + i, sums, amx::All{});
  }
  const auto target = static_cast<std::uint32_t>(loss.target - column);
  if (target < kAmxBlock) [[unlikely]]
    loss.target_logit = target < kColumns ? left[target] : right[target - kColumns];
}

template <Kind kKind>
void finish_row(const AmxBlock& block, std::int64_t row, void* out, [[maybe_unused]] std::int32_t column) {
  constexpr std::int64_t kColumns = AmxBlock::kColumns;
  const float* left = block.left.data() + row * kColumns;
  const float* right = block.right.data() + row * kColumns;
  auto* wide = static_cast<float*>(out);
  auto* narrow = static_cast<Bf16*>(out);
  if constexpr (kKind == Kind::store) {
    std::memcpy(wide, left, sizeof(float) * kColumns);
    std::memcpy(wide + kColumns, right, sizeof(float) * kColumns);
  } else if constexpr (kKind == Kind::add) {
    amx::Loops<float>::accumulate(wide, left, 1.0F, kColumns);
    amx::Loops<float>::accumulate(wide + kColumns, right, 1.0F, kColumns);
  } else if constexpr (kKind == Kind::narrow) {
    Row::narrow(left, narrow, kColumns);
    Row::narrow(right, narrow + kColumns, kColumns);
  } else if constexpr (kKind == Kind::silu) {
    Row::silu_gate(left, right, narrow, kColumns);
  } else if constexpr (kKind == Kind::gelu) {
    Row::gelu_gate(left, right, narrow, kColumns);
  } else if constexpr (kKind == Kind::loss) {
    take_logits(*static_cast<AmxLoss*>(out), left, right, column);
  }
}

/// Finishes a block's rows a few at a time.
template <Kind kKind>
class Finisher {
 public:
  explicit Finisher(const AmxTurns& turns)
      : block_(&turns.sums[1 - turns.next]),
        out_(turns.out),
        stride_(turns.stride),
        rows_(turns.rows),
        column_(turns.column) {}
  void next(std::int64_t rows) {
    for (; rows > 0 && row_ < rows_; --rows, ++row_, out_ += stride_) finish_row<kKind>(*block_, row_, out_, column_);
  }

 private:
  const AmxBlock* block_;
  std::byte* out_;
  std::int64_t stride_, rows_;
  std::int32_t column_;
  std::int64_t row_ = 0;
};

/// The loop over blocks is in here because a block's sums take up a page's worth of addresses: what the next block's
/// first loads need must not come from memory, where it would seem to be among the sums on their way there.
template <Kind kKind>
SWITCHYARD_AMX void pass_blocks(const AmxPass& pass, const AmxFinish& finish, AmxTurns& turns) {
  constexpr std::int64_t kTile = 256;        // sums of one
  constexpr std::int64_t kTileBytes = 1024;  // 16 rows of 64 bytes
  constexpr std::int64_t kRowsOfStep = kAmxBlock / (kAmxDepth / 32);
  const std::byte* rows = pass.rows;
  const std::int64_t steps = pass.steps;
  const std::int64_t right = pass.strip.stride;
  AmxAhead ahead = pass.ahead;
  for (std::int64_t b = 0; b < pass.blocks; ++b) {
    AmxBlock& to = pass.ends ? turns.sums[turns.next] : pass.sums[b];
    const std::byte* strip = pass.strip.tiles;
    Finisher<kKind> finisher(turns);
    std::byte* const out = finish.out + b * finish.block_stride;
    const std::int64_t out_rows = pass.ends ? std::min(kAmxBlock, finish.rows - b * kAmxBlock) : 0;
    std::int64_t asked_rows = 0;
    if (pass.begins) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {
      const AmxBlock& from = pass.sums[b];
      _tile_loadd(0, from.left.data(), 64);
      _tile_loadd(1, from.right.data(), 64);
      _tile_loadd(2, from.left.data() + kTile, 64);
      _tile_loadd(3, from.right.data() + kTile, 64);
    }
    for (std::int64_t step = 0; step < steps; ++step) {
      _tile_stream_loadd(4, rows, 64);
      _tile_loadd(6, strip, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_stream_loadd(5, rows + kTileBytes, 64);
      for (std::int64_t i = 0; i < ahead.of_strip; ++i, ahead.strip += 64) {
        ask_for(ahead.strip);
        ask_for(ahead.strip + right);
      }
      for (std::int64_t i = 0; i < ahead.of_rows; ++i, ahead.rows += 64) ask_for(ahead.rows);
      for (std::int64_t i = 0; i < kRowsOfStep && asked_rows < out_rows; ++i, ++asked_rows) {
        __builtin_prefetch(out + asked_rows * finish.stride, 1, 3);
        if constexpr (kKind == Kind::store || kKind == Kind::add || kKind == Kind::loss)  // two lines
          __builtin_prefetch(out + asked_rows * finish.stride + 64, 1, 3);
      }
      _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(7, strip + right, 64);
      _tile_dpbf16ps(1, 4, 7);
      finisher.next(kRowsOfStep);
      _tile_dpbf16ps(3, 5, 7);
      rows += 2 * kTileBytes;
      strip += kTileBytes;
    }
    finisher.next(kAmxBlock);
    _tile_stored(0, to.left.data(), 64);
    _tile_stored(1, to.right.data(), 64);
    _tile_stored(2, to.left.data() + kTile, 64);
    _tile_stored(3, to.right.data() + kTile, 64);
    turns.rows = out_rows;
    if (!pass.ends) continue;
    turns.out = out;
    turns.stride = finish.stride;
    turns.column = finish.column;
    turns.next = 1 - turns.next;
  }
}

/// call with the kind as a constant.
template <typename Call>
void with_kind(Kind kind, Call call) {
  switch (kind) {
    case Kind::store:
      return call.template operator()<Kind::store>();
    case Kind::add:
      return call.template operator()<Kind::add>();
    case Kind::narrow:
      return call.template operator()<Kind::narrow>();
    case Kind::silu:
      return call.template operator()<Kind::silu>();
    case Kind::gelu:
      return call.template operator()<Kind::gelu>();
    case Kind::loss:
      return call.template operator()<Kind::loss>();
  }
}

}  // namespace

void amx_pass_blocks(const AmxPass& pass, const AmxFinish& finish, AmxTurns& turns) {
  with_kind(finish.kind, [&]<Kind kKind>() { pass_blocks<kKind>(pass, finish, turns); });
}

void amx_finish_last(Kind kind, AmxTurns& turns) {
  with_kind(kind, [&]<Kind kKind>() { Finisher<kKind>(turns).next(kAmxBlock); });
  turns.rows = 0;
}

#else

void amx_pass_blocks(const AmxPass&, const AmxFinish&, AmxTurns&) { std::abort(); }

void amx_finish_last(AmxFinish::Kind, AmxTurns&) { std::abort(); }

#endif

void AmxRows::set(std::int64_t row, const Bf16* from, std::int64_t n) {
  for (std::int64_t r = 0; r < amx_block_rows(n); ++r)
    for (std::int64_t at = 0; at < k(); at += 32) {
      std::byte* line = tiles(row + r / kAmxBlock * kAmxBlock, at) + r % kAmxBlock * 64;
      if (r < n) {
        std::memcpy(line, from + r * k() + at, 64);
      } else {
        std::memset(line, 0, 64);
      }
    }
}

}  // namespace switchyard
