#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <bit>
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

template <Kind kKind>
void finish_row(const AmxBlock& block, std::int64_t row, void* out) {
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
  }
}

/// Finishes a block's rows a few at a time.
template <Kind kKind>
class Finisher {
 public:
  explicit Finisher(const AmxDone& done) : done_(done), out_(static_cast<std::byte*>(done.finish.out)) {}
  void next(std::int64_t rows) {
    for (; rows > 0 && row_ < done_.finish.rows; --rows, ++row_, out_ += done_.finish.stride)
      finish_row<kKind>(*done_.sums, row_, out_);
  }

 private:
  const AmxDone& done_;
  std::byte* out_;
  std::int64_t row_ = 0;
};

template <Kind kKind>
SWITCHYARD_AMX void add_block(const std::byte* rows, AmxStrip strip, std::int64_t steps, const AmxBlock* sums,
                              AmxBlock& to, AmxAhead ahead, const AmxDone& before, const AmxFinish& coming) {
  constexpr std::int64_t kTile = 256;        // sums of one
  constexpr std::int64_t kTileBytes = 1024;  // 16 rows of 64 bytes
  constexpr std::int64_t kRowsOfStep = kAmxBlock / (kAmxDepth / 32);
  Finisher<kKind> finisher(before);
  std::int64_t coming_rows = coming.kind == Kind::nothing ? 0 : coming.rows;
  const std::byte* coming_out = static_cast<std::byte*>(coming.out);
  if (sums != nullptr) {
    _tile_loadd(0, sums->left.data(), 64);
    _tile_loadd(1, sums->right.data(), 64);
    _tile_loadd(2, sums->left.data() + kTile, 64);
    _tile_loadd(3, sums->right.data() + kTile, 64);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (std::int64_t step = 0; step < steps; ++step) {
    _tile_stream_loadd(4, rows, 64);
    _tile_loadd(6, strip.tiles, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_stream_loadd(5, rows + kTileBytes, 64);
    for (std::int64_t i = 0; i < ahead.of_strip; ++i) {
      ask_for(ahead.strip + i * 64);
      ask_for(ahead.strip + strip.stride + i * 64);
    }
    for (std::int64_t i = 0; i < ahead.of_rows; ++i) ask_for(ahead.rows + i * 64);
    ahead.pass(1);
    for (std::int64_t i = 0; i < kRowsOfStep && coming_rows > 0; ++i, --coming_rows, coming_out += coming.stride)
      __builtin_prefetch(coming_out, 1, 3);
    _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(7, strip.tiles + strip.stride, 64);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kKind != Kind::nothing) finisher.next(kRowsOfStep);
    _tile_dpbf16ps(3, 5, 7);
    rows += 2 * kTileBytes;
    strip.tiles += kTileBytes;
  }
  if constexpr (kKind != Kind::nothing) finisher.next(kAmxBlock);
  _tile_stored(0, to.left.data(), 64);
  _tile_stored(1, to.right.data(), 64);
  _tile_stored(2, to.left.data() + kTile, 64);
  _tile_stored(3, to.right.data() + kTile, 64);
}

/// call with the kind as a constant.
template <typename Call>
void with_kind(Kind kind, Call call) {
  switch (kind) {
    case Kind::nothing:
      return call.template operator()<Kind::nothing>();
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
  }
}

}  // namespace

void amx_add_block(const std::byte* rows, AmxStrip strip, std::int64_t steps, const AmxBlock* sums, AmxBlock& to,
                   AmxAhead ahead, const AmxDone& before, const AmxFinish& coming) {
  with_kind(before.finish.kind,
            [&]<Kind kKind>() { add_block<kKind>(rows, strip, steps, sums, to, ahead, before, coming); });
}

void amx_finish_block(const AmxDone& done) {
  with_kind(done.finish.kind, [&]<Kind kKind>() {
    if constexpr (kKind != Kind::nothing) Finisher<kKind>(done).next(kAmxBlock);
  });
}

#else

void amx_add_block(const std::byte*, AmxStrip, std::int64_t, const AmxBlock*, AmxBlock&, const std::byte*, std::int64_t,
                   const AmxDone&, const AmxFinish&) {
  std::abort();
}

void amx_finish_block(const AmxDone&) { std::abort(); }

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
