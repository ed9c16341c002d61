#pragma once

#include <span>
#include <string>
#include <vector>

#include "pipeline/analysis/compare.h"
#include "pipeline/analysis/experiment.h"
#include "pipeline/analysis/statistics.h"

namespace switchyard {

struct ReportOptions {
  std::vector<std::string> sources;  // what was read, for people
  std::string program;               // name, version and commit
  int target_layer = 0;              // index among MoE layers: the one shown first
  CompareOptions compare;
};

/// What the report page draws, as JSON: tables of stats.h5 as they are (counts whole, ratios as 32-bit floats), and
/// selections of what is too large for a page: tokens, flows, pairs and paths, the most frequent of each, sized so that
/// the page stays below 5 MB. groups, pairs: of all datasets, both empty when they are not compared. experiments: at
/// most one of a kind; their tables go as they are, smaller ones first, while there is room; the names of the others
/// stand in `left_out`.
std::string report_data(const Statistics& statistics, const std::vector<GroupedSlots>& groups,
                        const std::vector<PairDistances>& pairs, std::span<const Experiment> experiments,
                        const ReportOptions& options);

}  // namespace switchyard
