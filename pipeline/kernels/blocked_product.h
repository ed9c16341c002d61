#pragma once

#include <cstdint>
#include <utility>

#include "pipeline/kernels/amx_blocks.h"
#include "pipeline/kernels/matmul.h"
#include "pipeline/kernels/tile_kernel.h"

namespace switchyard {

/// Products of left's rows [row, row + rows) with a panel, finished as amx_multiply_blocks does; weights.in_blocks().
/// finish_of: as there, column within the panel.
template <typename FinishOf>
void multiply_blocks(const PackedWeights& weights, int panel, const AmxRows& left, std::int64_t row, std::int64_t rows,
                     FinishOf finish_of) {
  const std::int64_t columns = weights.panel_columns(panel);
  const auto kept = static_cast<std::size_t>(amx_kept_blocks(rows, columns, left.k()));
  auto* sums = reinterpret_cast<AmxBlock*>(thread_scratch(Scratch::out, kept * sizeof(AmxBlock)));
  amx_multiply_blocks(left, row, rows, weights.packed(panel), columns, sums, std::move(finish_of));
}

/// A finish that writes rows [begin + r, ...) of [.., n] at a column, no more than up to `end`.
template <typename T>
AmxFinish write_to(AmxFinish::Kind kind, Tensor& out, std::int64_t row, std::int64_t end, std::int64_t column) {
  return {kind, out.row<T>(row).data() + column, out.row_bytes(), std::min(end - row, kAmxBlock)};
}

}  // namespace switchyard
