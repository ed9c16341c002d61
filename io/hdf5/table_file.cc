#include "io/hdf5/table_file.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <set>
#include <type_traits>

#include "io/hdf5/types.h"
#include "parallel/error.h"

namespace switchyard::hdf5 {
namespace {

constexpr std::size_t kDeflateFrom = std::size_t{1} << 16U;     // bytes of a string data set
constexpr std::uint64_t kMostValues = std::uint64_t{1} << 40U;  // of one data set read whole

/// The bytes of a string as stored: up to its first NUL.
std::string_view stored_part(const std::string& text) { return std::string_view(text).substr(0, text.find('\0')); }

void write_numbers(const File& file, const Table& table, hid_t file_type, hid_t memory_type, const void* values) {
  const DataSet data_set = file.create_data_set(table.path, file_type, space_of(table.shape), data_set_properties());
  if (table.size() > 0) {
    check(H5Dwrite(data_set.id(), memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values), "write the data set",
          file.name(table.path));
  }
}

/// Fixed-length strings, which every reader and virtual data sets can take. Where they are long they are mostly
/// padding, so they are deflated.
void write_strings(const File& file, const Table& table, const std::vector<std::string>& values) {
  std::size_t width = 1;
  for (const std::string& value : values) width = std::max(width, stored_part(value).size());
  std::string packed(values.size() * width, '\0');
  for (std::size_t i = 0; i < values.size(); ++i) stored_part(values[i]).copy(packed.data() + i * width, width);

  const Properties creation = data_set_properties();
  if (packed.size() >= kDeflateFrom && table.shape.size() == 1) {
    const hsize_t chunk = std::clamp<hsize_t>((hsize_t{1} << 20U) / width, 1, table.shape.front());
    check(H5Pset_chunk(creation.id(), 1, &chunk), "set the chunk", file.name(table.path));
    check(H5Pset_deflate(creation.id(), 1), "set the filter", file.name(table.path));
  }
  const Type type = string_type(width);
  const DataSet data_set = file.create_data_set(table.path, type.id(), space_of(table.shape), creation);
  if (!values.empty()) {
    check(H5Dwrite(data_set.id(), type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, packed.data()), "write the data set",
          file.name(table.path));
  }
}

template <typename T>
void read_numbers(const DataSet& data_set, std::uint64_t size, const std::string& name, Table::Values& into) {
  if (!std::holds_alternative<std::vector<T>>(into)) into.emplace<std::vector<T>>();
  auto& values = std::get<std::vector<T>>(into);
  values.resize(size);
  if (size > 0) {
    check(H5Dread(data_set.id(), memory_type<T>(), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), "read the data set",
          name);
  }
}

std::vector<std::string> read_fixed_strings(const DataSet& data_set, std::size_t width, std::uint64_t size,
                                            const std::string& name) {
  const Type memory = string_type(width);
  std::string packed(size * width, '\0');
  check(H5Dread(data_set.id(), memory.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, packed.data()), "read the data set", name);
  std::vector<std::string> values;
  values.reserve(size);
  for (std::uint64_t i = 0; i < size; ++i)
    values.emplace_back(packed.data() + i * width, strnlen(packed.data() + i * width, width));
  return values;
}

std::vector<std::string> read_variable_strings(const DataSet& data_set, std::uint64_t size, const std::string& name) {
  const Type memory = string_type(H5T_VARIABLE);
  const Space space(check(H5Dget_space(data_set.id()), "read the extent", name));
  std::vector<char*> pointers(size, nullptr);
  check(H5Dread(data_set.id(), memory.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, static_cast<void*>(pointers.data())),
        "read the data set", name);
  std::vector<std::string> values;
  values.reserve(size);
  for (const char* text : pointers) values.emplace_back(text == nullptr ? "" : text);
  H5Dvlen_reclaim(memory.id(), space.id(), H5P_DEFAULT, static_cast<void*>(pointers.data()));
  return values;
}

std::vector<std::string> read_strings(const DataSet& data_set, hid_t type, std::uint64_t size,
                                      const std::string& name) {
  if (size == 0) return {};
  return check(H5Tis_variable_str(type), "read the type", name) > 0
             ? read_variable_strings(data_set, size, name)
             : read_fixed_strings(data_set, H5Tget_size(type), size, name);
}

void read_integers(const DataSet& data_set, hid_t type, std::uint64_t size, const std::string& name,
                   Table::Values& into) {
  const bool is_signed = H5Tget_sign(type) == H5T_SGN_2;
  switch (H5Tget_size(type)) {
    case 1:
      if (is_signed) return read_numbers<std::int16_t>(data_set, size, name, into);
      return read_numbers<std::uint8_t>(data_set, size, name, into);
    case 2:
      if (is_signed) return read_numbers<std::int16_t>(data_set, size, name, into);
      return read_numbers<std::uint16_t>(data_set, size, name, into);
    case 4:
      if (is_signed) return read_numbers<std::int32_t>(data_set, size, name, into);
      return read_numbers<std::uint32_t>(data_set, size, name, into);
    case 8:
      if (is_signed) return read_numbers<std::int64_t>(data_set, size, name, into);
      return read_numbers<std::uint64_t>(data_set, size, name, into);
    default:
      throw Error("integers of " + std::to_string(H5Tget_size(type)) + " bytes cannot be read", name);
  }
}

void read_values(const DataSet& data_set, std::uint64_t size, const std::string& name, Table::Values& into) {
  const Type type(check(H5Dget_type(data_set.id()), "read the type", name));
  switch (H5Tget_class(type.id())) {
    case H5T_INTEGER:
      return read_integers(data_set, type.id(), size, name, into);
    case H5T_FLOAT:
      if (H5Tget_size(type.id()) > sizeof(float)) return read_numbers<double>(data_set, size, name, into);
      return read_numbers<float>(data_set, size, name, into);
    case H5T_STRING:
      into = read_strings(data_set, type.id(), size, name);
      return;
    default:
      throw Error("the data set holds neither numbers nor strings", name);
  }
}

/// A broken file may claim any extent: it must neither overflow nor be asked of the allocator.
void require_readable(const std::vector<std::uint64_t>& shape, const std::string& name) {
  std::uint64_t size = 1;
  bool too_large = false;
  for (const std::uint64_t length : shape) too_large |= __builtin_mul_overflow(size, length, &size);
  if (too_large || size > kMostValues) throw Error("it claims more values than can be read at once", name);
}

}  // namespace

DataSetFacts facts_of(const Table& table) {
  return {{table.path, table.dimensions, table.shape}, table.units, table.long_name};
}

void write_values(const File& file, const Table& table) {
  require_consistent(table);
  std::visit(
      [&]<typename T>(const std::vector<T>& values) {
        if constexpr (std::is_same_v<T, std::string>) {
          write_strings(file, table, values);
        } else {
          write_numbers(file, table, file_type<T>(), memory_type<T>(), values.data());
        }
      },
      table.values);
}

void describe(const File& file, std::span<const DataSetFacts> data_sets,
              const std::function<std::string(std::string_view group)>& describe_group) {
  std::vector<NamedShape> shapes;
  std::set<std::string> groups;
  for (const DataSetFacts& facts : data_sets) {
    const DataSet data_set = file.open_data_set(facts.shape.path);
    set_attribute(data_set.id(), file.name(facts.shape.path), "units", facts.units);
    set_attribute(data_set.id(), file.name(facts.shape.path), "long_name", facts.long_name);
    shapes.push_back(facts.shape);
    for (std::string_view group = group_of(facts.shape.path); group != "/"; group = group_of(group))
      groups.emplace(group);
  }
  for (const std::string& group : groups) file.set_attribute(group, "description", describe_group(group));
  attach_dimension_scales(file, shapes);
}

Table read_table(const File& file, const std::string& path) {
  Table table = read_bare_table(file, path);
  table.dimensions = dimension_names(file.open_data_set(path), file.name(path));
  table.units = file.string_attribute(path, "units").value_or("");
  table.long_name = file.string_attribute(path, "long_name").value_or("");
  return table;
}

Table read_bare_table(const File& file, const std::string& path) {
  const std::optional<DataSet> data_set = file.find_data_set(path);
  if (!data_set) throw Error("there is no such data set", file.name(path));
  Table table;
  table.path = path;
  read_into(*data_set, file.name(path), table);
  return table;
}

void read_into(const DataSet& data_set, const std::string& name, Table& table) {
  table.shape = shape_of(data_set);
  require_readable(table.shape, name);
  read_values(data_set, table.size(), name, table.values);
}

std::vector<std::string> data_sets_below(const File& file, const std::string& group) {
  if (group != "/" && !file.contains(group)) return {};
  std::vector<std::string> paths;
  for (const std::string& link : file.links_below(group)) {
    const Object object = file.open_object(link);
    if (H5Iget_type(object.id()) == H5I_DATASET && !is_pure_scale(object, file.name(link))) paths.push_back(link);
  }
  return paths;
}

void require_format(const File& file, std::string_view format, int major) {
  const std::string found = file.string_attribute("/", "format").value_or("");
  if (found != format) {
    throw Error(found.empty() ? "it has no attribute \"format\"" : "its format is \"" + found + "\"",
                file.path().string(), "give a file of format \"" + std::string(format) + "\"");
  }
  const std::string version = file.string_attribute("/", "format_version").value_or("");
  int found_major = -1;
  std::from_chars(version.data(), version.data() + version.size(), found_major);
  if (found_major < 0) throw Error("its format_version is \"" + version + "\", not a version", file.path().string());
  if (found_major > major) {
    throw Error(
        "its format_version is " + version + ", newer than " + std::to_string(major) + ".x, which this program reads",
        file.path().string(), "use the switchyard that wrote it, or a newer one");
  }
}

}  // namespace switchyard::hdf5
