#pragma once

#include <map>
#include <string>
#include <vector>

#include "io/routing_reader.h"

namespace switchyard {

/// The data sets of a segment's /dispatch, each read when it is first asked for and once.
class DispatchValues {
 public:
  /// segment outlives it.
  explicit DispatchValues(const RoutingReader& segment) : segment_(&segment) {}

  bool contains(const std::string& name) const { return segment_->contains("/dispatch/" + name); }
  /// Throws Error naming file and path.
  template <typename T>
  const std::vector<T>& values(const std::string& name) {
    return std::get<std::vector<T>>(table(name).values);
  }
  const std::vector<std::uint64_t>& shape(const std::string& name) { return table(name).shape; }

 private:
  const Table& table(const std::string& name) {
    const auto known = tables_.find(name);
    return known != tables_.end() ? known->second
                                  : tables_.emplace(name, segment_->read_bare("/dispatch/" + name)).first->second;
  }

  const RoutingReader* segment_;
  std::map<std::string, Table> tables_;
};

}  // namespace switchyard
