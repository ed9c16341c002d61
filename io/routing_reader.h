#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/hdf5/table.h"
#include "io/routing_schema.h"

namespace switchyard {

/// A segment or a master file, opened read-only in this process alone.
class RoutingReader {
 public:
  /// Throws Error: not an HDF5 file, another format, a newer major version.
  explicit RoutingReader(const std::filesystem::path& path);
  ~RoutingReader();
  RoutingReader(RoutingReader&&) noexcept;

  const ModelFacts& model() const;
  RecordLevel level() const;
  const RowLayout& layout() const;
  std::uint64_t n_rows() const;
  /// Rows [first, first + count) of every column that the layout has; the others stay empty. expert ids are widened to
  /// u16.
  TokenRows read_rows(std::uint64_t first, std::uint64_t count) const;
  /// The same into `rows`, whose memory is used again.
  void read_rows(std::uint64_t first, std::uint64_t count, TokenRows& rows) const;
  bool contains(std::string_view path) const;
  /// Any data set by path, whole. Throws Error naming file and path.
  Table read(std::string_view path) const;
  /// The same without names of dimensions, units and long name, which take longer to read than a small table's values.
  Table read_bare(std::string_view path) const;
  /// The same into `table`, whose memory is used again; false when there is no such data set.
  bool read_bare(std::string_view path, Table& table) const;
  /// Paths of the data sets below a group.
  std::vector<std::string> list(std::string_view group) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace switchyard
