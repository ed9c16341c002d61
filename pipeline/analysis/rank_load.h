#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/hdf5/table.h"
#include "parallel/communicator.h"
#include "pipeline/analysis/dispatch_values.h"
#include "pipeline/analysis/table_index.h"

namespace switchyard {

/// What the ranks that routed a dataset did: their load in slots by step, their traffic, and where their time went.
/// About one run on one machine, unlike the accumulators. Sums, so that segments (also of different rank counts) add
/// up.
struct RankLoad {
  static constexpr int kImbalanceBins = 512;
  static constexpr double kImbalanceHigh = 8.0;  // larger imbalances count in the last bin
  static constexpr std::size_t kSeriesBins = 256;
  static constexpr std::uint64_t kUnitsPerBlock = 64;  // a block's steps fall into so many units of time

  int layers = 0;
  int top_k = 0;
  std::uint64_t steps = 0;
  std::vector<std::uint64_t> layer_steps;  // [L] steps with at least one slot
  std::vector<double> balancedness_sum;    // [L] sum over steps of (mean + 1e-5) / (max + 1e-5), as SGLang prints it
  std::vector<double> mean_sum,
      max_sum;  // [L] sums over steps of the ranks' mean and largest load, slots: vLLM's ratio
  std::vector<std::uint64_t>
      imbalance_histogram;  // [L, kImbalanceBins] steps by max / mean - 1 (TensorRT-LLM) on [0, kImbalanceHigh]
  std::vector<double> imbalance_max;                     // [L]
  std::vector<std::uint64_t> local_slots, remote_slots;  // [L] slots whose expert is on their own rank, or on another
  std::vector<std::uint64_t> send_ranks;  // [L, k + 1] tokens by the number of ranks their experts are on
  std::vector<double> phase_seconds;      // [phase] summed over ranks and steps
  double straggler_seconds = 0;           // sum over steps of (slowest - mean rank's seconds) in the expert phase
  double step_seconds = 0;                // sum over steps of the slowest rank's total
  std::uint64_t row_bytes = 0;            // of one dispatched row
  std::size_t ranks = 0;                  // R, the most that routed a segment
  std::vector<std::uint64_t> traffic;     // [R source, R expert rank] slots of all layers
  std::uint64_t series_units = 1;         // units of time in a bin of `series`, a power of two
  std::vector<std::uint64_t> series;      // [kSeriesBins, R] slots of all layers by expert rank, over the corpus

  RankLoad(int n_layers, int k);
  /// Adds a segment's /dispatch. first_block: ordinal in the run of the corpus' first block, where time begins.
  void add(DispatchValues& dispatch, std::uint64_t first_block);
  /// Collective: the sum of all ranks' figures on rank 0; the others' are left undefined.
  void reduce_to_root(const Communicator& comm);
  /// For at least so many ranks, and a series that holds times below `units_of_time`.
  void make_room(std::size_t n_ranks, std::uint64_t units_of_time);
};

/// /ranks/* of several datasets, with a leading dimension `dataset`: the sums and the ratios made of them.
std::vector<Table> rank_tables(const std::vector<const RankLoad*>& datasets);
/// The inverse. Throws Error naming a table that is missing or of the wrong length.
std::vector<RankLoad> from_rank_tables(const TableIndex& tables, std::size_t n_datasets, int n_layers, int top_k);

}  // namespace switchyard
