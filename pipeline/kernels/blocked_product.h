#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "pipeline/kernels/amx_blocks.h"
#include "pipeline/kernels/matmul.h"
#include "pipeline/kernels/tile_kernel.h"

namespace switchyard {

/// Rows that one thread takes past all panels: as many as leave a panel room in the second-level cache.
inline constexpr std::int64_t kPieceRows = 512;
/// Whether every thread gets some such pieces.
inline bool enough_for_pieces(std::int64_t rows) { return rows >= 2 * kPieceRows * omp_get_max_threads(); }

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

/// Shares out the panels of several pieces of rows among threads. A thread takes all panels of a piece that nobody has
/// begun, so that the piece's rows stay in its cache and threads, which begin together, read the same panels at about
/// the same time; then what is left of others' pieces.
class PanelQueue {
 public:
  PanelQueue(std::size_t n_pieces, int n_panels) : n_panels_(n_panels), next_panel_(n_pieces) {}

  /// run(piece, panel) for those of the calling thread. Each thread calls it once.
  template <typename Run>
  void take(Run run) {
    const std::size_t n = next_panel_.size();
    for (std::size_t piece = next_piece_++; piece < n; piece = next_piece_++) take_from(piece, run);
    for (std::size_t piece = n; piece-- > 0;) take_from(piece, run);
  }

 private:
  template <typename Run>
  void take_from(std::size_t piece, Run run) {
    for (int panel = next_panel_[piece]++; panel < n_panels_; panel = next_panel_[piece]++) run(piece, panel);
  }

  int n_panels_;
  std::vector<std::atomic<int>> next_panel_;  // [n_pieces]
  std::atomic<std::size_t> next_piece_ = 0;
};

/// A finish that writes blocks into rows [row, end) of `out`, from a column on.
template <typename T>
AmxFinish write_to(AmxFinish::Kind kind, Tensor& out, std::int64_t row, std::int64_t end, std::int64_t column) {
  return {kind, reinterpret_cast<std::byte*>(out.row<T>(row).data() + column), out.row_bytes(),
          kAmxBlock * out.row_bytes(), end - row};
}

}  // namespace switchyard
