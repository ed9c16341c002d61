#pragma once

#include <filesystem>

#include "pipeline/reduce.h"

namespace switchyard {

/// Writes what a reduction gave as stats.h5, whole or not at all.
void write_stats(const std::filesystem::path& path, const Reduced& reduced);

/// Writes every table of it as folder/GROUP_NAME.csv: tidy, one observation a row, the columns named as the dimensions.
void write_csv(const std::filesystem::path& folder, const Reduced& reduced);

}  // namespace switchyard
