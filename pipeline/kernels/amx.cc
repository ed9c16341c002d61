#include "pipeline/kernels/amx.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

namespace switchyard {

#if defined(__x86_64__)

#define SWITCHYARD_AMX __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512bf16")))

namespace {

constexpr std::int64_t kSide = 16;         // rows of a tile, and columns of an f32 one
constexpr std::int64_t kDepth = 32;        // k of one step
constexpr std::int64_t kTileBytes = 1024;  // 16 rows of 64 bytes

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::array<std::uint8_t, 14> reserved{};
  std::array<std::uint16_t, 16> row_bytes{64, 64, 64, 64, 64, 64, 64, 64};
  std::array<std::uint8_t, 16> rows{kSide, kSide, kSide, kSide, kSide, kSide, kSide, kSide};
};
constexpr TileConfig kFullTiles;

SWITCHYARD_AMX void set_up_tiles() { _tile_loadconfig(&kFullTiles); }
SWITCHYARD_AMX void release_tiles() { _tile_release(); }

/// out [16 * kRows, 16 * kColumns] = left * right, right's column tiles `right_stride` bytes apart. Registers 0-3 sum,
/// 4-5 hold left tiles, 6-7 right ones.
template <int kRows, int kColumns>
SWITCHYARD_AMX void multiply_block(const std::byte* left, std::int64_t left_stride, const std::byte* right,
                                   std::int64_t right_stride, std::int64_t k, float* out, std::int64_t out_stride) {
  _tile_zero(0);
  if constexpr (kColumns == 2) _tile_zero(1);
  if constexpr (kRows == 2) _tile_zero(2);
  if constexpr (kRows == 2 && kColumns == 2) _tile_zero(3);
  for (std::int64_t step = 0; step < k / kDepth; ++step) {
    _tile_loadd(4, left + step * 64, left_stride);
    _tile_loadd(6, right + step * kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kRows == 2) {
      _tile_loadd(5, left + kSide * left_stride + step * 64, left_stride);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kColumns == 2) {
      _tile_loadd(7, right + right_stride + step * kTileBytes, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kRows == 2 && kColumns == 2) _tile_dpbf16ps(3, 5, 7);
  }
  const std::int64_t bytes = out_stride * static_cast<std::int64_t>(sizeof(float));
  _tile_stored(0, out, bytes);
  if constexpr (kColumns == 2) _tile_stored(1, out + kSide, bytes);
  if constexpr (kRows == 2) _tile_stored(2, out + kSide * out_stride, bytes);
  if constexpr (kRows == 2 && kColumns == 2) _tile_stored(3, out + kSide * out_stride + kSide, bytes);
}

using Block = void (*)(const std::byte*, std::int64_t, const std::byte*, std::int64_t, std::int64_t, float*,
                       std::int64_t);

Block block_of(std::int64_t rows, std::int64_t columns) {
  if (rows == 2 * kSide) return columns == 2 * kSide ? multiply_block<2, 2> : multiply_block<2, 1>;
  return columns == 2 * kSide ? multiply_block<1, 2> : multiply_block<1, 1>;
}

SWITCHYARD_AMX void narrow_block(const float* from, std::int64_t rows, std::int64_t columns, Bf16* to,
                                 std::int64_t to_stride) {
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; c += kSide) {
      const __m256bh narrow = _mm512_cvtneps_pbh(_mm512_loadu_ps(from + r * 2 * kSide + c));
      std::memcpy(static_cast<void*>(to + r * to_stride + c), &narrow, sizeof narrow);
    }
}

bool permitted() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  const bool tiles = (d >> 24U & 1U) != 0 && (d >> 22U & 1U) != 0;  // AMX-TILE, AMX-BF16
  return tiles && __builtin_cpu_supports("avx512bf16") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
         ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool has_amx() {
  static const bool has = permitted();
  return has;
}

AmxTiles::AmxTiles() { set_up_tiles(); }

AmxTiles::~AmxTiles() { release_tiles(); }

SWITCHYARD_AMX void amx_multiply(const Bf16* left, const std::byte* packed, std::int64_t stride, std::int64_t m,
                                 std::int64_t n, std::int64_t k, void* out, DType out_type) {
  const AmxTiles tiles;
  const std::int64_t left_stride = k * 2;
  alignas(64) std::array<float, 4 * kSide * kSide> sums;
  for (std::int64_t column = 0; column < n; column += 2 * kSide) {
    const std::int64_t columns = std::min(2 * kSide, n - column);
    const std::byte* right = packed + column / kSide * stride;
    for (std::int64_t row = 0; row < m; row += 2 * kSide) {
      const std::int64_t rows = std::min(2 * kSide, m - row);
      const auto* from = reinterpret_cast<const std::byte*>(left + row * k);
      const Block block = block_of(rows, columns);
      if (out_type == DType::f32) {
        block(from, left_stride, right, stride, k, static_cast<float*>(out) + row * n + column, n);
      } else {
        block(from, left_stride, right, stride, k, sums.data(), 2 * kSide);
        narrow_block(sums.data(), rows, columns, static_cast<Bf16*>(out) + row * n + column, n);
      }
    }
  }
}

#else

bool has_amx() { return false; }

AmxTiles::AmxTiles() { std::abort(); }

AmxTiles::~AmxTiles() = default;

void amx_multiply(const Bf16*, const std::byte*, std::int64_t, std::int64_t, std::int64_t, void*, DType) {
  std::abort();
}

#endif

// A right-hand tile holds 16 columns and 32 k: row r is the pair (2r, 2r + 1) of k for each column in turn.

void amx_pack_columns(const Bf16* weights, std::int64_t n, std::int64_t k, std::byte* packed) {
  auto* to = reinterpret_cast<std::uint32_t*>(packed);
  for (std::int64_t column = 0; column < n; column += 16)
    for (std::int64_t step = 0; step < k; step += 32, to += 256)
      for (std::int64_t c = 0; c < 16; ++c) {
        const auto* from = reinterpret_cast<const std::uint32_t*>(weights + (column + c) * k + step);
        for (std::int64_t r = 0; r < 16; ++r) to[r * 16 + c] = from[r];
      }
}

void amx_pack_rows(const Bf16* right, std::int64_t n, std::int64_t k, std::byte* packed) {
  auto* to = reinterpret_cast<Bf16*>(packed);
  for (std::int64_t column = 0; column < n; column += 16)
    for (std::int64_t step = 0; step < k; step += 2, to += 32) {
      const Bf16* even = right + step * n + column;
      const Bf16* odd = even + n;
      for (std::int64_t c = 0; c < 16; ++c) {
        to[2 * c] = even[c];
        to[2 * c + 1] = odd[c];
      }
    }
}

}  // namespace switchyard
