#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "io/hdf5/table.h"
#include "parallel/error.h"

namespace switchyard {

/// Tables by path, with typed access that names what is missing or wrong.
class TableIndex {
 public:
  static constexpr std::uint64_t kAnyLength = ~std::uint64_t{0};

  /// root: in front of every path asked for. file: named in errors. The tables outlive the index.
  explicit TableIndex(const std::vector<Table>& tables, std::string root = "", std::string file = "")
      : root_(std::move(root)), file_(std::move(file)) {
    for (const Table& table : tables) by_path_[table.path] = &table;
  }
  /// nullptr when there is none.
  const Table* find(const std::string& path) const {
    const auto found = by_path_.find(root_ + path);
    return found == by_path_.end() ? nullptr : found->second;
  }
  const Table& at(const std::string& path) const {
    const Table* table = find(path);
    if (table == nullptr) fail(path, "missing");
    return *table;
  }
  template <typename T>
  const std::vector<T>& values(const std::string& path, std::uint64_t expected = kAnyLength) const {
    const auto* values = std::get_if<std::vector<T>>(&at(path).values);
    if (values == nullptr) fail(path, "of another type");
    if (expected != kAnyLength && values->size() != expected)
      fail(path, "holds " + std::to_string(values->size()) + " values, expected " + std::to_string(expected));
    return *values;
  }
  /// Throws Error: a table is not what it should be.
  [[noreturn]] void fail(const std::string& path, const std::string& what) const {
    throw Error(what, (file_.empty() ? "" : file_ + ", ") + root_ + path,
                "the file is damaged or of another version of switchyard: reduce the run anew");
  }

 private:
  std::string root_, file_;
  std::map<std::string, const Table*> by_path_;
};

}  // namespace switchyard
