#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "io/hdf5/table.h"
#include "parallel/communicator.h"
#include "pipeline/analysis/dispatch_values.h"
#include "pipeline/analysis/table_index.h"

namespace switchyard {

/// Where the ranks' time went in each MoE layer of a dataset, who waited for whom, and what a slot costs. Sums over
/// steps, so that segments, also of different rank counts, add up. Times come from the ranks' clocks brought to one,
/// without barriers; they are wrong by no more than `clock_uncertainty`.
struct RankTime {
  /// Sums by layer and rank, [L, R].
  struct Seconds {
    std::vector<double> dispatch;       // from the router's end to rows ordered by expert, without waiting and without
                                        // what a rank did meanwhile: recording, shared experts
    std::vector<double> dispatch_wait;  // from a rank's coming to the exchange to the coming of the last
    std::vector<double> experts;        // routed experts
    std::vector<double> combine;        // from the experts' end to the weighted sum, without waiting
    std::vector<double> combine_wait;   // from the sending of a rank's results to that of the last rank's, while it had
                                        // nothing else to do
  };

  int layers = 0;
  int experts = 0;
  std::size_t ranks = 0;    // R, the most that routed a segment
  std::uint64_t steps = 0;  // that were timed
  Seconds seconds;
  std::vector<double> straggler_seconds;     // [L] sum of (slowest - mean rank's seconds) of the experts
  std::vector<std::uint64_t> slowest_steps;  // [L, R] steps in which the rank was the slowest at its experts
  std::vector<double> straggler_by_rank;     // [L, R] straggler_seconds by the rank that was the slowest
  std::vector<double> straggler_by_expert;   // [L, E] the same shared among its experts in proportion to their slots
  std::vector<double> cost_sums;             // [R, kCostSums] slots, experts with a slot, seconds of every step
  double clock_uncertainty = 0;              // s, the largest

  RankTime(int n_layers, int n_experts);
  /// Adds a segment's /dispatch, if it tells times.
  void add(DispatchValues& dispatch);
  /// Collective: the sum of all ranks' figures on rank 0; the others' are left undefined.
  void reduce_to_root(const Communicator& comm);

 private:
  friend std::vector<RankTime> from_rank_time_tables(const TableIndex& tables, std::size_t n_datasets, int n_layers,
                                                     int n_experts);
  void make_room(std::size_t n_ranks);
};

/// /ranks/layer_*, straggler_by_*, cost_*: of several datasets, with a leading dimension `dataset`: the sums, and the
/// cost models fitted to them. None when no dataset was timed.
std::vector<Table> rank_time_tables(const std::vector<const RankTime*>& datasets);
/// The inverse. Throws Error naming a table that is missing or of the wrong length.
std::vector<RankTime> from_rank_time_tables(const TableIndex& tables, std::size_t n_datasets, int n_layers,
                                            int n_experts);

}  // namespace switchyard
