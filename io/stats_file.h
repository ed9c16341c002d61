#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "io/hdf5/table.h"

namespace switchyard {

/// Writes an HDF5 file of tables with dimension scales, units and long names, group descriptions, root attributes;
/// whole or not at all
/// (.part, fsync, rename). One process. Throws Error naming the path.
void write_tables(const std::filesystem::path& path, const std::map<std::string, std::string>& attributes,
                  const std::map<std::string, std::string>& group_descriptions, std::span<const Table> tables);

/// All data sets of such a file except pure dimension scales. Checks `format` and the major version.
std::vector<Table> read_tables(const std::filesystem::path& path, const std::string& format);

}  // namespace switchyard
