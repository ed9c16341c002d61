#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/routing_schema.h"
#include "parallel/communicator.h"
#include "pipeline/analysis/statistics.h"

namespace switchyard {

struct ReduceOptions {
  bool recompute = false;                           // from token rows instead of the segments' accumulators
  std::optional<double> peak_flops = std::nullopt;  // of one rank, FLOP/s; none: that of the sources, where they agree
};

/// Collective. Sums the committed segments of runs of one model, each rank taking every R-th segment; memory is the
/// datasets' accumulators and one segment's. A source is a run's folder or a stats file, which gives what it was made
/// of. A dataset name that occurs in several sources is preceded by its source's (dataset_names.h). Throws Error when a
/// folder is no run, a segment is missing, or models differ. The result is
/// whole on rank 0. on_segment(done, all) is called there.
Statistics reduce_runs(const std::vector<std::filesystem::path>& sources, const ReduceOptions& options,
                       const std::function<void(std::size_t, std::size_t)>& on_segment, const Communicator& comm);

/// The accumulators of one segment's rows, computed anew. document_groups: of all documents of the run. What rows at
/// level tokens do not hold (margin, largest probability, sums of probabilities, z-loss) is taken from `stored`.
Accumulators recompute_segment(const std::filesystem::path& segment, const std::filesystem::path& next_segment,
                               const std::vector<std::uint8_t>& excluded_tokens,
                               std::span<const std::uint16_t> document_groups, const Accumulators& stored);

}  // namespace switchyard
