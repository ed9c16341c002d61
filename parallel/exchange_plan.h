#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/expert_placement.h"

namespace switchyard {

/// How many rows go where and come from where when a batch, or a part of its tokens, visits the experts of one MoE
/// layer. Plain data: no MPI handle, no device memory. Rows have three orders, all fixed by ids and placement, so that
/// no result depends on timing:
///   packed   [n_send]  by (expert rank, expert, slot)       what this rank sends
///   arrived  [n_recv]  by (source rank, expert, slot)       what the transport delivers
///   grouped  [n_recv]  by (expert, source rank, slot)       what the grouped matmul reads
class ExchangePlan {
 public:
  /// Collective: one all-to-all of counts. rows_by_place: [n_physical] rows that this rank sends to each place
  /// (LayerPlacement::place_of). Throws Error when they are not as many as the placement's, which is for the
  /// communicator's ranks.
  static ExchangePlan make(std::span<const std::int32_t> rows_by_place, const LayerPlacement& placement,
                           const Communicator& comm);
  /// The same for parts that are exchanged each by itself, [n_parts, n_physical]; their slots follow one another.
  /// Collective: one all-to-all of counts for all of them.
  static std::vector<ExchangePlan> make_parts(std::span<const std::int32_t> rows_by_place, int n_parts,
                                              const LayerPlacement& placement, const Communicator& comm);

  /// The same from counts already known, [n_ranks, n_local_experts]: rows that each source rank sends to each of this
  /// rank's experts. Not collective: tests play any number of ranks in one process.
  ExchangePlan(std::span<const std::int32_t> rows_by_place, const LayerPlacement& placement, int rank,
               std::span<const std::int32_t> arriving);

  int rank() const { return rank_; }
  int n_ranks() const { return static_cast<int>(send_rows_.size()); }
  std::int64_t n_send() const { return n_send_; }
  std::int64_t n_receive() const { return n_receive_; }
  /// [n_ranks] rows for each expert rank.
  std::span<const std::int32_t> send_rows() const { return send_rows_; }
  /// [n_ranks] rows from each source rank.
  std::span<const std::int32_t> receive_rows() const { return receive_rows_; }
  /// [n_local_experts] sizes of the grouped matmul.
  std::span<const std::int32_t> rows_per_expert() const { return rows_per_expert_; }
  /// [n_ranks, n_local_experts] the same by source rank: sizes of the runs of arrived rows.
  std::span<const std::int32_t> arriving() const { return arriving_; }
  /// [n_physical] rows for each place.
  std::span<const std::int32_t> rows_by_place() const { return rows_by_place_; }
  /// Whether rows arrive in grouped order, as from one rank.
  bool arrives_grouped() const;

  /// [n_recv] grouped row -> arrived row.
  std::vector<std::int32_t> group_order() const;

 private:
  /// [n_ranks, n_local_experts] the first arrived row of each run.
  std::vector<std::int32_t> arrived_begins() const;

  int rank_;
  std::int64_t n_send_ = 0;
  std::int64_t n_receive_ = 0;
  std::vector<std::int32_t> rows_by_place_;
  std::vector<std::int32_t> send_rows_, receive_rows_, rows_per_expert_, arriving_;
};

}  // namespace switchyard
