#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "io/routing_schema.h"
#include "pipeline/analysis/placement_plan.h"
#include "pipeline/analysis/rank_load.h"
#include "pipeline/analysis/rank_time.h"

namespace switchyard {

/// What the ranks did with a corpus, by the record: sums over its steps.
struct MeasuredCorpus {
  std::string name;
  RankLoad load;
  RankTime time;
  std::vector<double> expert_slots;  // [L, E]
  std::vector<double> rank_slots;    // [L, R]
  std::vector<double> traffic;       // [L, R source, R expert rank] slots

  /// Tokens that were routed.
  double tokens() const;
};

/// A run with a placement: what predictions for that placement are held against.
struct Rerun {
  std::filesystem::path folder;
  ModelFacts model;
  int ranks = 0;
  CopyRule copies = CopyRule::by_token;
  std::vector<LayerPlan> plans;          // [L]
  std::vector<std::uint32_t> rank_node;  // [R] node of each rank
  std::vector<MeasuredCorpus> corpora;   // where there are several, all of them together come first

  int copies_of_layer() const;
};

/// Reads a run's record. Throws Error: no run, no dispatch, segments of several placements, rank counts or nodes.
Rerun read_rerun(const std::filesystem::path& folder);

}  // namespace switchyard
