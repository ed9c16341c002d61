#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/expert_placement.h"

namespace switchyard {

/// Chosen experts of n tokens: ids[token * top_k + j].
struct ExpertIds {
  std::span<const std::int32_t> ids;  // [n, top_k]
  int top_k = 1;
};

/// Where each slot of a batch, or of a part of its tokens, goes in one MoE layer, and the way back; a replicated
/// expert's slots are shared out among its copies by the placement's rule. Plain data: no MPI handle, no device memory.
/// Rows have three orders, all fixed by ids and placement, so that no result depends on timing:
///   packed   [n_send]  by (expert rank, expert, slot)       what this rank sends
///   arrived  [n_recv]  by (source rank, expert, slot)       what the transport delivers
///   grouped  [n_recv]  by (expert, source rank, slot)       what the grouped matmul reads
class ExchangePlan {
 public:
  /// Collective: one all-to-all of counts. ids: [n, k]; n may differ between ranks and may be 0.
  /// Throws Error if an id is outside the placement.
  static ExchangePlan make(ExpertIds ids, const LayerPlacement& placement, const Communicator& comm);
  /// The same in parts of consecutive tokens, as even as can be, each to be exchanged by itself: together they send
  /// every slot to the copy that one plan sends it to. Collective: one all-to-all of counts for all of them.
  static std::vector<ExchangePlan> make_parts(ExpertIds ids, int n_parts, const LayerPlacement& placement,
                                              const Communicator& comm);

  /// The same from counts already known, [n_ranks, n_local_experts]: rows that each source rank sends to each of this
  /// rank's experts. Not collective: tests and `bench` play any number of ranks in one process.
  ExchangePlan(ExpertIds ids, const LayerPlacement& placement, int rank, std::span<const std::int32_t> arriving);

  /// Rows that a rank sends to each expert of each rank, [n_physical] grouped by expert rank then expert: what
  /// `arriving` is made of on the other side.
  static std::vector<std::int32_t> rows_by_expert(ExpertIds ids, const LayerPlacement& placement, int rank);

  int rank() const { return rank_; }
  int n_ranks() const { return static_cast<int>(send_rows_.size()); }
  /// The lowest slot of those it sends, which follow one another; slots are numbered in the whole batch.
  std::int64_t first_slot() const { return first_slot_; }
  std::int64_t n_send() const { return static_cast<std::int64_t>(places_.size()); }
  std::int64_t n_receive() const { return n_receive_; }
  /// [n_ranks] rows for each expert rank.
  std::span<const std::int32_t> send_rows() const { return send_rows_; }
  /// [n_ranks] rows from each source rank.
  std::span<const std::int32_t> receive_rows() const { return receive_rows_; }
  /// [n_local_experts] sizes of the grouped matmul.
  std::span<const std::int32_t> rows_per_expert() const { return rows_per_expert_; }
  /// [n_ranks, n_local_experts] the same by source rank: sizes of the runs of arrived rows.
  std::span<const std::int32_t> arriving() const { return arriving_; }
  /// [n_send] of each slot from the first on: the place of the expert's copy that it goes to, among all n_places() of
  /// them by expert rank, then expert.
  std::span<const std::int32_t> places() const { return places_; }
  int n_places() const { return static_cast<int>(rows_of_place_.size()); }
  /// Whether rows arrive in grouped order, as from one rank.
  bool arrives_grouped() const;

  // Lists that not everyone needs are made when they are asked for.

  /// [n_send] packed row -> slot (token * k + j).
  std::vector<std::int32_t> pack_order() const;
  /// [n_recv] grouped row -> arrived row.
  std::vector<std::int32_t> group_order() const;

 private:
  struct Sending;  // where this rank's slots go
  ExchangePlan(Sending sending, const LayerPlacement& placement, int rank, std::span<const std::int32_t> arriving);
  /// [n_ranks, n_local_experts] the first arrived row of each run.
  std::vector<std::int32_t> arrived_begins() const;

  int rank_;
  std::int64_t first_slot_;
  std::int64_t n_receive_ = 0;
  std::vector<std::int32_t> places_, rows_of_place_;
  std::vector<std::int32_t> send_rows_, receive_rows_, rows_per_expert_, arriving_;
};

}  // namespace switchyard
