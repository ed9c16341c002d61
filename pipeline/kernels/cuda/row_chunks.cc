#include "pipeline/kernels/cuda/row_chunks.h"

#include <algorithm>
#include <bit>

namespace switchyard::gpu {
namespace {

constexpr std::int64_t kFewestGraphRows = 64;

/// n with all but its four highest bits 0.
std::int64_t with_four_bits(std::int64_t n) {
  const auto bits = static_cast<std::uint64_t>(n);
  return static_cast<std::int64_t>(bits & ~(std::bit_floor(bits) / 8 - 1));
}

}  // namespace

std::vector<RowChunk> chunks_of(std::int64_t n) {
  std::vector<RowChunk> chunks;
  std::int64_t begin = 0;
  if (n >= kFewestGraphRows) {
    begin = with_four_bits(n);
    chunks.push_back({.begin = 0, .rows = begin, .graph_rows = begin});
  }
  if (const std::int64_t rest = n - begin; rest > 0) {
    const auto rounded = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(rest)));
    chunks.push_back({.begin = begin, .rows = rest, .graph_rows = std::max(kFewestGraphRows, rounded)});
  }
  return chunks;
}

std::vector<std::int32_t> first_rows_of(std::span<const std::int32_t> rows_per_expert, const RowChunk& chunk) {
  std::vector<std::int32_t> first_rows;
  std::int64_t begin = -chunk.begin;
  for (const std::int32_t rows : rows_per_expert) {
    first_rows.push_back(static_cast<std::int32_t>(std::clamp<std::int64_t>(begin, 0, chunk.rows)));
    begin += rows;
  }
  return first_rows;
}

}  // namespace switchyard::gpu
