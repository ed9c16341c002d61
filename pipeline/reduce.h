#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <vector>

#include "parallel/communicator.h"
#include "pipeline/analysis/statistics.h"

namespace switchyard {

struct ReduceOptions {
  bool recompute = false;          // from token rows instead of the segments' accumulators
  std::uint64_t per_document = 0;  // the first so many documents of each corpus are kept apart too, from token rows
  std::uint64_t rows_at_once = 1 << 16;             // looked at while the next ones are read
  std::uint64_t rows_of_part = 1 << 20;             // segments of more rows are shared by ranks
  std::optional<double> peak_flops = std::nullopt;  // of one rank, FLOP/s; none: that of the sources, where they agree
};

/// Collective. Sums the committed segments of runs of one model, each rank taking a contiguous share of the
/// segments, or of parts of them when rows are recomputed; memory is the datasets' accumulators and two segments', or
/// some rows. A source is a run's folder or a stats file, which gives what it was made of. A dataset name that occurs
/// in several sources is preceded by its source's (dataset_names.h). Throws Error when a folder is no run, a segment is
/// missing, or models differ. The result is whole on rank 0. on_segment(done, all) is called there.
Statistics reduce_runs(const std::vector<std::filesystem::path>& sources, const ReduceOptions& options,
                       const std::function<void(std::size_t, std::size_t)>& on_segment, const Communicator& comm);

}  // namespace switchyard
