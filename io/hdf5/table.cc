#include "io/hdf5/table.h"

#include <functional>
#include <numeric>

#include "parallel/error.h"

namespace switchyard {

std::uint64_t Table::size() const {
  return std::accumulate(shape.begin(), shape.end(), std::uint64_t{1}, std::multiplies<>());
}

void require_consistent(const Table& table) {
  if (table.path.size() < 2 || table.path.front() != '/' || table.path.back() == '/')
    throw Error("a table's path begins with / and ends with its name", "table \"" + table.path + "\"");
  if (table.dimensions.size() != table.shape.size()) {
    throw Error(
        std::to_string(table.dimensions.size()) + " names for " + std::to_string(table.shape.size()) + " dimensions",
        "table " + table.path);
  }
  const std::uint64_t n_values = std::visit([](const auto& values) { return values.size(); }, table.values);
  if (n_values != table.size()) {
    throw Error(std::to_string(n_values) + " values for a shape of " + std::to_string(table.size()),
                "table " + table.path);
  }
}

std::string_view group_of(std::string_view path) {
  const std::size_t slash = path.rfind('/');
  return slash == 0 || slash == std::string_view::npos ? std::string_view("/") : path.substr(0, slash);
}

std::string_view name_of(std::string_view path) { return path.substr(path.rfind('/') + 1); }

}  // namespace switchyard
