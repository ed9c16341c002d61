#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "io/hdf5/table.h"
#include "parallel/communicator.h"
#include "pipeline/analysis/dispatch_values.h"
#include "pipeline/analysis/table_index.h"
#include "pipeline/model/step_times.h"

namespace switchyard {

/// What routing a dataset took on the machine that ran it: sums over steps, so that segments (also of different rank
/// counts) add up. Reading text and committing segments happen between steps and are not in it.
struct Cost {
  std::uint64_t tokens = 0;         // of all ranks, those left out of the statistics too
  double seconds = 0;               // of the slowest rank of each step
  double rank_seconds = 0;          // the same times the step's ranks: what they could have worked in that time
  double flops = 0;                 // of the model (model_flops.h); NaN when a segment does not say
  PhaseSeconds phase_seconds = {};  // of all ranks
  double joules = 0;                // of all ranks' GPUs, in the blocks where all of them were counted
  std::uint64_t joules_tokens = 0;  // tokens of those blocks
  // Of these blocks, the least and the most J per token.
  double block_joules_low = std::numeric_limits<double>::infinity();
  double block_joules_high = 0;

  /// Adds a segment's /dispatch.
  void add(DispatchValues& dispatch);
  /// Collective: the sum of all ranks' figures on rank 0; the others' are left undefined.
  void reduce_to_root(const Communicator& comm);
};

/// /cost/* of several datasets, with a leading dimension `dataset`: the sums and the ratios made of them.
/// peak_flops: of one rank, FLOP/s; the share of it is there only when it is known, energy where some dataset's was
/// counted.
std::vector<Table> cost_tables(const std::vector<const Cost*>& datasets, std::optional<double> peak_flops);
/// The inverse. Throws Error naming a table that is missing or of the wrong length.
std::vector<Cost> from_cost_tables(const TableIndex& tables, std::size_t n_datasets);
/// The peak that such tables were made with.
std::optional<double> peak_flops_of(const TableIndex& tables);

}  // namespace switchyard
