#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/hdf5/table.h"
#include "pipeline/analysis/placement_figures.h"
#include "pipeline/analysis/placement_steps.h"
#include "pipeline/analysis/statistics.h"
#include "pipeline/analysis/table_index.h"

namespace switchyard {

/// One method's placement and what is known of it.
struct MethodResult {
  Placement placement;
  PlacementFigures figures;
  std::optional<StepCost> step;       // where a cost model is known
  std::vector<LayerBalance> balance;  // [L] over a run's recorded steps; empty without them
  std::vector<LayerTraffic> traffic;  // [L] by replay of a run's rows; empty without them
};

/// What placements are made of: loads and pairs of each layer, added up over datasets; pairs are left out where no
/// dataset holds any. datasets: places among those of the statistics.
std::vector<LayerDemand> layer_demands(const Statistics& statistics, const std::vector<std::size_t>& datasets);

/// The cost model that a stats file holds (/ranks/cost_model [dataset, term], cost_model_covariance [dataset, term,
/// term2], cost_model_r_squared [dataset]) of the dataset among them whose model explains most of its seconds'
/// variance; nothing when none explains kLeastRSquared of it.
std::optional<CostModel> cost_model_of(const TableIndex& tables, const std::vector<std::size_t>& datasets);

/// /placement/*: every method's figures, and the plan of the `chosen`-th. least_load: [L] lower bounds of the largest
/// rank load over the mean.
std::vector<Table> method_tables(const std::vector<MethodResult>& methods, std::size_t chosen, int ranks,
                                 const std::vector<LayerDemand>& layers, const std::vector<double>& least_load);

}  // namespace switchyard
