#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/hdf5/handle.h"
#include "parallel/communicator.h"

namespace switchyard::hdf5 {

/// An open HDF5 file, written so that HDF5 1.10 reads it. Functions throw Error naming the file and the object in it.
class File {
 public:
  enum class Access { read, modify };
  /// This process alone; an existing file is overwritten.
  static File create(const std::filesystem::path& path);
  /// Collective: one file written by all ranks through MPI-IO.
  static File create(const std::filesystem::path& path, const Communicator& comm);
  /// This process alone.
  static File open(const std::filesystem::path& path, Access access);

  hid_t id() const { return handle_.id(); }
  const std::filesystem::path& path() const { return path_; }
  /// Name of an object for error messages: "FILE, /path".
  std::string name(std::string_view object) const;
  /// Throws when the last bytes cannot be written. Collective if `create` was.
  void close();

  bool contains(std::string_view path) const;
  DataSet open_data_set(const std::string& path) const;
  /// Nothing when there is no such data set.
  std::optional<DataSet> find_data_set(const std::string& path) const;
  /// Groups on the way are made.
  DataSet create_data_set(const std::string& path, hid_t type, const Space& space, const Properties& creation) const;
  /// Group or data set.
  Object open_object(const std::string& path) const;

  /// Replaces an attribute of a group or data set.
  void set_attribute(const std::string& object, const std::string& name, const std::string& value) const;
  void set_attribute(const std::string& object, const std::string& name, std::int64_t value) const;
  /// Nothing when there is no such attribute, or it is of another kind.
  std::optional<std::string> string_attribute(const std::string& object, const std::string& name) const;
  /// All attributes of an object that are strings, by name.
  std::map<std::string, std::string> string_attributes(const std::string& object) const;
  std::optional<std::int64_t> integer_attribute(const std::string& object, const std::string& name) const;

  /// Paths of all links below a group, at any depth, by name.
  std::vector<std::string> links_below(const std::string& group) const;

 private:
  File(FileHandle handle, std::filesystem::path path) : handle_(std::move(handle)), path_(std::move(path)) {}
  FileHandle handle_;
  std::filesystem::path path_;
};

/// Properties of a data set to be made.
Properties data_set_properties();
/// Extent of a data space or data set; no dimension for a scalar.
std::vector<std::uint64_t> shape_of(const Space& space);
std::vector<std::uint64_t> shape_of(const DataSet& data_set);
/// A space of this extent.
Space space_of(const std::vector<std::uint64_t>& shape);
/// Attribute by handle.
void set_attribute(hid_t object, const std::string& object_name, const std::string& name, const std::string& value);

}  // namespace switchyard::hdf5
