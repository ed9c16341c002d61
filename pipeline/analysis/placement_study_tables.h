#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "io/hdf5/table.h"
#include "pipeline/analysis/placement_study.h"

namespace switchyard {

/// /simulation/*.
std::vector<Table> simulation_tables(const Simulation& simulation);
/// /drift/*.
std::vector<Table> drift_tables(const Drift& drift);
/// /holdout/*. datasets: names.
std::vector<Table> holdout_tables(const Holdout& holdout, const std::vector<std::string>& datasets);

inline constexpr std::array<std::string_view, Drift::kPolicies> kDriftPolicies = {"contiguous", "fixed", "periodic",
                                                                                  "oracle"};

}  // namespace switchyard
