#pragma once

#include <optional>
#include <string>
#include <vector>

#include "io/routing_schema.h"
#include "pipeline/analysis/placement_tables.h"

namespace switchyard {

/// What `place` prints of its methods.
struct PlaceSummary {
  ModelFacts model;
  PlacementTask task;
  std::vector<std::string> datasets;
  double tokens = 0;
  std::vector<std::string> undefined;  // methods left out, with the reason
  std::vector<double> least_load;      // [L] lower bound of the largest rank load over the mean
  std::optional<double> row_bytes;     // of one dispatched row, where it is known
  std::optional<CostModel> cost;
  std::optional<double> step_tokens;  // of a step whose seconds are predicted
  std::size_t recorded_steps = 0;
  std::size_t replayed_tokens = 0;
};
void print_methods(const PlaceSummary& summary, const std::vector<MethodResult>& methods, std::size_t chosen);

}  // namespace switchyard
