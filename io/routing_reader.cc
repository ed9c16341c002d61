#include "io/routing_reader.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "io/hdf5/table_file.h"
#include "io/hdf5/types.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

using hdf5::check;

std::int64_t required_integer(const hdf5::File& file, const char* attribute) {
  const auto value = file.integer_attribute("/model", attribute);
  if (!value) throw Error(std::string("attribute ") + attribute + " is missing", file.name("/model"));
  return *value;
}

std::string required_string(const hdf5::File& file, const char* object, const char* attribute) {
  auto value = file.string_attribute(object, attribute);
  if (!value) throw Error(std::string("attribute ") + attribute + " is missing", file.name(object));
  return *std::move(value);
}

std::vector<std::uint32_t> required_numbers(const hdf5::File& file, const std::string& path) {
  const Table table = hdf5::read_bare_table(file, path);
  const auto* values = std::get_if<std::vector<std::uint32_t>>(&table.values);
  if (values == nullptr) throw Error("it does not hold unsigned 32-bit integers", file.name(path));
  return *values;
}

ModelFacts read_model(const hdf5::File& file) {
  if (!file.contains("/model")) throw Error("group /model is missing", file.path().string());
  ModelFacts model;
  model.family = required_string(file, "/model", "family");
  model.name = required_string(file, "/model", "name");
  model.n_layers = static_cast<int>(required_integer(file, "n_layers"));
  model.d_model = static_cast<int>(required_integer(file, "d_model"));
  model.vocabulary = static_cast<int>(required_integer(file, "vocabulary"));
  const auto layers = required_numbers(file, "/model/moe_layers");
  model.moe_layers.assign(layers.begin(), layers.end());
  const auto n_experts = required_numbers(file, "/model/n_experts");
  const auto top_k = required_numbers(file, "/model/top_k");
  if (n_experts.size() != 1 || top_k.size() != 1)
    throw Error("n_experts and top_k are one number each", file.name("/model"));
  model.n_experts = static_cast<int>(n_experts.front());
  model.top_k = static_cast<int>(top_k.front());
  model.renormalised = file.integer_attribute("/model", "renormalised").value_or(1) != 0;
  return model;
}

RowLayout read_layout(const hdf5::File& file) {
  const std::string text = required_string(file, "/", "level");
  try {
    return {parse_record_level(text), parse_absent_fields(file.string_attribute("/", "absent").value_or(""))};
  } catch (const Error& error) {
    throw Error(error.what(), file.path().string());
  }
}

/// A column's bits in memory.
hdf5::Type memory_type_of(const RowColumn& column) {
  switch (column.stored) {
    case StoredType::f16:
      return hdf5::half_type();
    case StoredType::f32:
      return hdf5::Type(check(H5Tcopy(H5T_NATIVE_FLOAT), "copy a type", column.path));
    default:
      break;
  }
  const hid_t type = column.stored == StoredType::u8    ? H5T_NATIVE_UINT8
                     : column.stored == StoredType::u16 ? H5T_NATIVE_UINT16
                                                        : H5T_NATIVE_UINT32;
  return hdf5::Type(check(H5Tcopy(type), "copy a type", column.path));
}

}  // namespace

struct RoutingReader::State {
  explicit State(const std::filesystem::path& path) : file(hdf5::File::open(path, hdf5::File::Access::read)) {
    hdf5::require_format(file, kRoutingFormat, kFormatMajor);
    model = read_model(file);
    layout = read_layout(file);
    master = file.contains("/corpora");
    columns = row_columns(model, layout);
    if (!columns.empty() && file.contains(columns.front().path)) {
      const auto shape = hdf5::shape_of(file.open_data_set(columns.front().path));
      if (shape.size() == 1) n_rows = shape.front();
    }
  }

  /// Opened once and kept: opening a virtual data set reads its whole list of segments.
  const hdf5::DataSet& open(const RowColumn& column) {
    const auto found = opened.find(column.path);
    if (found != opened.end()) return found->second;
    hdf5::DataSet data_set = file.open_data_set(column.path);
    const std::vector<std::uint64_t> expected = column.second_dimension.empty()
                                                    ? std::vector<std::uint64_t>{n_rows}
                                                    : std::vector<std::uint64_t>{n_rows, column.width};
    if (hdf5::shape_of(data_set) != expected)
      throw Error("its shape does not follow from the model and the number of rows", file.name(column.path));
    require_sources(data_set, column.path);
    return opened.emplace(column.path, std::move(data_set)).first->second;
  }

  /// HDF5 reads a virtual data set's missing source as fill values without a word.
  void require_sources(const hdf5::DataSet& data_set, const std::string& path) {
    const hdf5::Properties properties(check(H5Dget_create_plist(data_set.id()), "read the layout", file.name(path)));
    if (H5Pget_layout(properties.id()) != H5D_VIRTUAL) return;
    std::size_t n_sources = 0;
    check(H5Pget_virtual_count(properties.id(), &n_sources), "count the segments", file.name(path));
    for (std::size_t i = 0; i < n_sources; ++i) {
      const auto length =
          check(H5Pget_virtual_filename(properties.id(), i, nullptr, 0), "name a segment", file.name(path));
      std::string source(static_cast<std::size_t>(length) + 1, '\0');
      check(H5Pget_virtual_filename(properties.id(), i, source.data(), source.size()), "name a segment",
            file.name(path));
      source.pop_back();
      if (present.contains(source)) continue;
      if (!std::filesystem::exists(file.path().parent_path() / source)) {
        throw Error("its segment " + source + " is missing", file.name(path),
                    "copy the whole run folder, segments included");
      }
      present.insert(source);
    }
  }

  void read_column(const RowColumn& column, std::uint64_t first, std::uint64_t count, void* values) {
    const std::string name = file.name(column.path);
    const hdf5::DataSet& data_set = open(column);
    const hdf5::Space in_file(check(H5Dget_space(data_set.id()), "read the extent", name));
    const std::vector<hsize_t> start = {first, 0};
    const std::vector<hsize_t> extent = {count, column.width};
    check(H5Sselect_hyperslab(in_file.id(), H5S_SELECT_SET, start.data(), nullptr, extent.data(), nullptr),
          "select rows", name);
    // As many dimensions as in the file: HDF5 would else go element by element.
    const hdf5::Space in_memory =
        hdf5::space_of(column.second_dimension.empty() ? std::vector<std::uint64_t>{count}
                                                       : std::vector<std::uint64_t>{count, column.width});
    const hdf5::Type type = memory_type_of(column);
    check(H5Dread(data_set.id(), type.id(), in_memory.id(), in_file.id(), H5P_DEFAULT, values), "read rows", name);
  }

  hdf5::File file;
  ModelFacts model;
  RowLayout layout;
  bool master = false;  // of virtual data sets, not a segment
  std::vector<RowColumn> columns;
  std::uint64_t n_rows = 0;
  std::map<std::string, hdf5::DataSet> opened;
  std::set<std::string> present;    // segments seen to be there
  std::vector<std::uint8_t> bytes;  // of a column that TokenRows keeps wider
};

RoutingReader::RoutingReader(const std::filesystem::path& path) : state_(std::make_unique<State>(path)) {}
RoutingReader::~RoutingReader() = default;
RoutingReader::RoutingReader(RoutingReader&&) noexcept = default;

const ModelFacts& RoutingReader::model() const { return state_->model; }
RecordLevel RoutingReader::level() const { return state_->layout.level; }
const RowLayout& RoutingReader::layout() const { return state_->layout; }
std::uint64_t RoutingReader::n_rows() const { return state_->n_rows; }

TokenRows RoutingReader::read_rows(std::uint64_t first, std::uint64_t count) const {
  TokenRows rows;
  read_rows(first, count, rows);
  return rows;
}

void RoutingReader::read_rows(std::uint64_t first, std::uint64_t count, TokenRows& rows) const {
  if (first > state_->n_rows || count > state_->n_rows - first) {
    throw Error("rows " + std::to_string(first) + " to " + std::to_string(first + count) + " of " +
                    std::to_string(state_->n_rows),
                state_->file.path().string());
  }
  rows.layers.resize(state_->model.moe_layers.size());
  for (const RowColumn& column : state_->columns) {
    visit_field(rows, column, [&]<typename T>(std::vector<T>& values) {
      values.resize(count * column.width);
      if (count == 0) return;
      if (sizeof(T) == size_of(column.stored)) {
        state_->read_column(column, first, count, values.data());
        return;
      }
      // Bytes, which HDF5 would widen one by one.
      state_->bytes.resize(values.size());
      state_->read_column(column, first, count, state_->bytes.data());
      std::copy(state_->bytes.begin(), state_->bytes.end(), values.begin());
    });
  }
}

bool RoutingReader::contains(std::string_view path) const { return state_->file.contains(path); }

Table RoutingReader::read(std::string_view path) const {
  const std::string name(path);
  if (state_->file.contains(name)) state_->require_sources(state_->file.open_data_set(name), name);
  return hdf5::read_table(state_->file, name);
}

Table RoutingReader::read_bare(std::string_view path) const {
  Table table;
  if (!read_bare(path, table)) throw Error("there is no such data set", state_->file.name(path));
  return table;
}

bool RoutingReader::read_bare(std::string_view path, Table& table) const {
  table.path = path;
  const std::optional<hdf5::DataSet> data_set = state_->file.find_data_set(table.path);
  if (!data_set) return false;
  if (state_->master) state_->require_sources(*data_set, table.path);
  hdf5::read_into(*data_set, state_->file.name(path), table);
  return true;
}

std::vector<std::string> RoutingReader::list(std::string_view group) const {
  return hdf5::data_sets_below(state_->file, std::string(group));
}

}  // namespace switchyard
