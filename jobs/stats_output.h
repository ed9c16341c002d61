#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "pipeline/reduce.h"

namespace switchyard {

/// Writes tables of statistics as an HDF5 file, whole or not at all. facts: attributes besides format and program;
/// groups: what each group is about.
void write_stats_tables(const std::filesystem::path& path, std::map<std::string, std::string> facts,
                        const std::vector<std::pair<std::string, std::string>>& groups,
                        const std::vector<Table>& tables);
/// Writes every table as folder/GROUP_NAME.csv: tidy, one observation a row, the columns named as the dimensions.
/// names: of a dimension's places, by dimension; places of others are numbers.
void write_csv_tables(const std::filesystem::path& folder, const std::vector<Table>& tables,
                      const std::map<std::string, std::vector<std::string>>& names);

/// Writes what a reduction gave as stats.h5.
void write_stats(const std::filesystem::path& path, const Statistics& reduced);

/// The same as CSV.
void write_csv(const std::filesystem::path& folder, const Statistics& reduced);

}  // namespace switchyard
