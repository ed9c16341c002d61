#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace switchyard {

/// A column of numbers or strings with named dimensions: what a data set is, apart from the file. Row-major.
/// Strings are UTF-8 and end at their first NUL.
struct Table {
  using Values =
      std::variant<std::vector<std::uint8_t>, std::vector<std::uint16_t>, std::vector<std::uint32_t>,
                   std::vector<std::uint64_t>, std::vector<std::int16_t>, std::vector<std::int32_t>,
                   std::vector<std::int64_t>, std::vector<float>, std::vector<double>, std::vector<std::string>>;
  std::string path;                     // "/accumulators/expert_count"
  std::vector<std::string> dimensions;  // names, slowest first; two of one name in one group must be equally long
  std::vector<std::uint64_t> shape;     // empty: one value without dimensions
  Values values;
  std::string units;  // "1" for counts
  std::string long_name;
  /// Product of the shape.
  std::uint64_t size() const;
};

/// Throws Error naming the table unless its path is absolute, it has a name for every dimension, and as many values as
/// its shape says.
void require_consistent(const Table& table);

/// "/a/b" of "/a/b/c", "/" of "/a".
std::string_view group_of(std::string_view path);
/// "c" of "/a/b/c".
std::string_view name_of(std::string_view path);

}  // namespace switchyard
