#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/hdf5/dimensions.h"
#include "io/hdf5/file.h"
#include "io/hdf5/table.h"

namespace switchyard::hdf5 {

/// What a data set says of itself.
struct DataSetFacts {
  NamedShape shape;
  std::string units;
  std::string long_name;
};
DataSetFacts facts_of(const Table& table);

/// Writes the values alone. `describe` adds the rest for all data sets at once.
void write_values(const File& file, const Table& table);
/// Units, long names and dimension scales of the data sets, and a `description` of every group on the way to them. Call
/// once for a file.
void describe(const File& file, std::span<const DataSetFacts> data_sets,
              const std::function<std::string(std::string_view group)>& describe_group);

/// A data set, whole: integers by size and sign (8-bit signed ones widened), float16 as float, strings of fixed or any
/// length. Throws Error naming file and path when there is none, or it holds something else.
Table read_table(const File& file, const std::string& path);
/// The same without names of dimensions, units and long name, which take longer to read than a small table's values.
Table read_bare_table(const File& file, const std::string& path);
/// An open data set's shape and values into `table`, whose memory is used again. name: in errors.
void read_into(const DataSet& data_set, const std::string& name, Table& table);
/// Data sets below a group but pure dimension scales, by name. Empty when there is no such group.
std::vector<std::string> data_sets_below(const File& file, const std::string& group);

/// Throws Error unless the root's `format` is this one and the major `format_version` no newer.
void require_format(const File& file, std::string_view format, int major);

}  // namespace switchyard::hdf5
