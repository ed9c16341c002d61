#include <algorithm>
#include <map>
#include <set>
#include <system_error>

#include "io/durable.h"
#include "io/hdf5/table_file.h"
#include "io/hdf5/types.h"
#include "io/routing_reader.h"
#include "io/routing_writer.h"
#include "io/segment_file.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

using hdf5::check;
namespace fs = std::filesystem;
using Shape = std::vector<std::uint64_t>;

/// A segment's part of a column.
struct Source {
  std::string file;  // relative to the master
  std::uint64_t first = 0;
  Shape shape;
};

/// A data set of the master that is the segments' data sets one after another.
struct Column {
  hdf5::DataSetFacts facts;  // the shape grows with every segment
  hdf5::Type type;
  std::vector<Source> sources;
};

/// Collects what the segments hold, one segment after another.
class Columns {
 public:
  void add_segment(const fs::path& out, const SegmentEntry& entry, const ModelFacts& model, const RowLayout& layout,
                   const std::set<std::string>& copied) {
    require_same_run(out / entry.file, model, layout);
    const hdf5::File file = hdf5::File::open(out / entry.file, hdf5::File::Access::read);
    std::map<std::string, std::uint64_t> lengths;  // of this segment's appended dimensions
    for (const std::string& path : hdf5::data_sets_below(file, "/")) {
      if (!path.starts_with("/accumulators/") && !copied.contains(path)) add_data_set(file, path, entry.file, lengths);
    }
    for (const auto& [dimension, length] : lengths) total_[dimension] += length;
  }

  /// Every column as long as the run, also where the last segments lack it.
  std::map<std::string, Column>& finish() {
    for (auto& [path, column] : columns_) column.facts.shape.shape.front() = total_[dimension_of(column)];
    return columns_;
  }

 private:
  static const std::string& dimension_of(const Column& column) { return column.facts.shape.dimensions.front(); }

  static void require_same_run(const fs::path& segment, const ModelFacts& model, const RowLayout& layout) {
    const RoutingReader reader(segment);
    if (reader.model() != model || reader.layout() != layout)
      throw Error("it is of another model or record level than the run", segment.string(),
                  "give every run its own output folder");
  }

  void add_data_set(const hdf5::File& file, const std::string& path, const std::string& source,
                    std::map<std::string, std::uint64_t>& lengths) {
    const hdf5::DataSet data_set = file.open_data_set(path);
    const auto known = columns_.find(path);
    if (known == columns_.end()) {
      std::vector<std::string> dimensions = hdf5::dimension_names(data_set, file.name(path));
      if (dimensions.empty() || !is_appended(dimensions.front())) return;
      columns_[path].facts = {{path, std::move(dimensions), {}},
                              file.string_attribute(path, "units").value_or(""),
                              file.string_attribute(path, "long_name").value_or("")};
    }
    Column& column = columns_.at(path);
    const Shape shape = hdf5::shape_of(data_set);
    if (shape.size() != column.facts.shape.dimensions.size())
      throw Error("it has another number of dimensions than in the segments before", file.name(path));
    const std::string& dimension = dimension_of(column);
    const auto [length, is_new] = lengths.try_emplace(dimension, shape.front());
    if (length->second != shape.front())
      throw Error("dimension " + dimension + " is not as long as in other data sets of the segment", file.name(path));
    widen(column, shape);
    merge_type(column, data_set, file.name(path));
    if (std::ranges::find(shape, 0U) == shape.end()) column.sources.push_back({source, total_[dimension], shape});
  }

  static void widen(Column& column, const Shape& shape) {
    Shape& widest = column.facts.shape.shape;
    widest.resize(shape.size());
    for (std::size_t axis = 0; axis < shape.size(); ++axis) widest[axis] = std::max(widest[axis], shape[axis]);
  }

  /// The longest of fixed-length strings; all else is equal in all segments.
  static void merge_type(Column& column, const hdf5::DataSet& data_set, const std::string& name) {
    hdf5::Type type(check(H5Dget_type(data_set.id()), "read the type", name));
    const bool both_strings =
        column.type.id() >= 0 && H5Tget_class(type.id()) == H5T_STRING && H5Tget_class(column.type.id()) == H5T_STRING;
    if (column.type.id() < 0 || (both_strings && H5Tget_size(type.id()) > H5Tget_size(column.type.id()))) {
      column.type = std::move(type);
    } else if (!both_strings && check(H5Tequal(type.id(), column.type.id()), "compare types", name) == 0) {
      throw Error("it is of another type than in the segments before", name);
    }
  }

  std::map<std::string, Column> columns_;
  std::map<std::string, std::uint64_t> total_;
};

void write_virtual(const hdf5::File& file, const Column& column) {
  const auto& [path, dimensions, shape] = column.facts.shape;
  const std::string name = file.name(path);
  const hdf5::Properties creation = hdf5::data_set_properties();
  hdf5::set_impossible_fill(creation, column.type.id());
  for (const Source& source : column.sources) {
    const hdf5::Space target = hdf5::space_of(shape);
    std::vector<hsize_t> start(shape.size(), 0);
    const std::vector<hsize_t> count(source.shape.begin(), source.shape.end());
    start.front() = source.first;
    check(H5Sselect_hyperslab(target.id(), H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr),
          "select a segment's part", name);
    check(H5Pset_virtual(creation.id(), target.id(), source.file.c_str(), path.c_str(),
                         hdf5::space_of(source.shape).id()),
          "map " + source.file, name);
  }
  file.create_data_set(path, column.type.id(), hdf5::space_of(shape), creation);
}

void write_part(const fs::path& part, const ModelFacts& model, const RowLayout& layout, std::span<const Table> tables,
                const std::map<std::string, Column>& columns) {
  hdf5::File file = hdf5::File::create(part);
  std::vector<hdf5::DataSetFacts> facts;
  for (const auto& [path, column] : columns) {
    write_virtual(file, column);
    facts.push_back(column.facts);
  }
  for (const Table& table : tables) {
    hdf5::write_values(file, table);
    facts.push_back(hdf5::facts_of(table));
  }
  write_identity(file, model, layout);
  hdf5::describe(file, facts, describe_routing_group);
  file.close();
}

/// The given tables, and those of the model that are not among them.
std::vector<Table> with_model_tables(const ModelFacts& model, std::span<const Table> tables) {
  std::vector<Table> all(tables.begin(), tables.end());
  for (Table& table : model_tables(model)) {
    const auto same_path = [&](const Table& given) { return given.path == table.path; };
    if (std::ranges::none_of(tables, same_path)) all.push_back(std::move(table));
  }
  return all;
}

}  // namespace

void write_master(const fs::path& out, const ModelFacts& model, std::span<const SegmentEntry> segments,
                  std::span<const Table> tables) {
  const std::vector<Table> copied = with_model_tables(model, tables);
  std::set<std::string> copied_paths;
  for (const Table& table : copied) copied_paths.insert(table.path);

  const RowLayout layout =
      segments.empty() ? RowLayout(RecordLevel::counts) : RoutingReader(out / segments.front().file).layout();
  Columns columns;
  for (const SegmentEntry& segment : segments) columns.add_segment(out, segment, model, layout, copied_paths);

  const fs::path part = out / "routing.h5.part";
  make_empty_file(part);
  try {
    write_part(part, model, layout, copied, columns.finish());
    sync_to_disk(part);
    rename_durably(part, out / "routing.h5");
  } catch (const Error&) {
    std::error_code ignored;
    fs::remove(part, ignored);
    throw;
  }
}

}  // namespace switchyard
