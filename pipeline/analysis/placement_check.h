#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/hdf5/table.h"
#include "pipeline/analysis/placement_figures.h"
#include "pipeline/analysis/placement_steps.h"
#include "pipeline/analysis/rerun.h"
#include "pipeline/analysis/statistics.h"

namespace switchyard {

/// What a placement is predicted from.
struct PredictionBasis {
  std::span<const LayerDemand> layers;        // [L]
  std::vector<std::vector<double>> datasets;  // of each corpus of them, [L, E] slots
  const StepSlots* steps = nullptr;           // where a run recorded them
  const RoutedTokens* rows = nullptr;         // likewise
  std::optional<CostModel> cost;
};

/// The slots of each corpus of the datasets, whose phases are added up: what tells one text from another. [L, E] each.
std::vector<std::vector<double>> slots_of_corpora(const Statistics& statistics,
                                                  const std::vector<std::size_t>& datasets);

/// A figure of a placement: what was predicted, and what a run with it measured.
struct CheckedFigure {
  struct Estimate {
    double value = 0, low = 0, high = 0;  // NaN: not known
  };
  std::string name, units, long_name;
  bool adds_up = false;                       // over layers; others are told as their mean
  std::vector<Estimate> predicted;            // [L]
  Estimate predicted_whole;                   // of all layers
  std::vector<std::vector<double>> measured;  // [corpus] of [L]

  /// Of all layers: their sum, or the mean of those that are known.
  double whole(std::span<const double> layers) const;
};

/// A re-run held against what was predicted for its placement.
struct PlacementCheck {
  struct Corpus {
    std::string name, text;  // text: "same text" | "partly other text" | "other text" than what is predicted from
    std::uint64_t tokens = 0, steps = 0;
  };
  std::string plan;  // method that makes the re-run's placement from what is predicted from; empty: none that is known
  std::vector<Corpus> corpora;
  double step_tokens = 0;           // mean of the re-run, of all ranks: of the step that is predicted
  double recorded_step_tokens = 0;  // of the steps predicted from; 0: none
  std::vector<CheckedFigure> figures;
};

/// task: whose ranks and nodes, numbered in order, the re-run had.
PlacementCheck check_placement(const Rerun& rerun, const PredictionBasis& basis, const PlacementTask& task);

/// /check/*.
std::vector<Table> check_tables(const PlacementCheck& check);

}  // namespace switchyard
