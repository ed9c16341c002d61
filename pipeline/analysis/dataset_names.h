#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace switchyard {

/// A run's folder or a stats file, and what it calls its datasets.
struct NamedSource {
  std::filesystem::path path;
  std::vector<std::string> datasets;
};

/// Names of all datasets, in order. One that several sources use is preceded by its source's: the folder's name, that
/// of the folder around a stats.h5, or a file's without its ending.
std::vector<std::string> dataset_names(const std::vector<NamedSource>& sources);

}  // namespace switchyard
