#pragma once

#include <optional>
#include <string>
#include <vector>

#include "io/routing_schema.h"
#include "pipeline/analysis/placement_check.h"
#include "pipeline/analysis/placement_study.h"
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
void print_simulation(const Simulation& simulation, const std::vector<std::string>& datasets, bool replayed);
/// rerun: the folder of the run that was checked.
void print_check(const PlacementCheck& check, const std::string& rerun);
/// every: blocks between placements.
void print_drift(const Drift& drift, std::size_t every);
void print_holdout(const Holdout& holdout, const std::vector<std::string>& datasets, PlacementMethod chosen);

}  // namespace switchyard
