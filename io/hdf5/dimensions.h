#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/hdf5/file.h"

namespace switchyard::hdf5 {

/// A data set and the names of its dimensions, slowest first.
struct NamedShape {
  std::string path;
  std::vector<std::string> dimensions;
  std::vector<std::uint64_t> shape;
};

/// Gives every dimension of the data sets a dimension scale, as the HDF5 dimension scale specification and netCDF-4 lay
/// them out, so that h5py and xarray know dimensions by name. One rule says where a scale lies: at the root when all
/// data sets agree on the length of that name, else in the group of the data set. A data set named like its only
/// dimension, in the scale's place, is itself the scale. Throws Error naming two data sets of one group that differ in
/// the length of a dimension. Call once for a file.
void attach_dimension_scales(const File& file, std::span<const NamedShape> data_sets);

/// A scale that only names a dimension and holds no values.
bool is_pure_scale(const Object& data_set, const std::string& name);

/// Names of a data set's dimensions by the scales attached; "" where there is none.
std::vector<std::string> dimension_names(const DataSet& data_set, const std::string& name);

}  // namespace switchyard::hdf5
