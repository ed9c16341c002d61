#include "io/segment_file.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <exception>
#include <span>

#include "io/durable.h"
#include "io/hdf5/file.h"
#include "io/hdf5/table_file.h"
#include "io/hdf5/types.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

using hdf5::check;

constexpr std::uint64_t kChunkRows = std::uint64_t{1} << 16U;
constexpr const char* kCheckDisk = "check that the disk is not full and start the run again";
constexpr std::uint64_t kMetadataBytes = std::uint64_t{4} << 10U;  // of a data set, generously

/// The data sets that all ranks write: none without rows.
std::vector<RowColumn> columns_of(const ModelFacts& model, const SegmentContents& contents, const RowLayout& layout) {
  return contents.n_rows == 0 ? std::vector<RowColumn>{} : row_columns(model, layout);
}

std::vector<std::uint64_t> shape_of(const RowColumn& column, std::uint64_t n_rows) {
  if (column.second_dimension.empty()) return {n_rows};
  return {n_rows, column.width};
}

hdf5::Type type_of(StoredType type) {
  switch (type) {
    case StoredType::f16:
      return hdf5::half_type();
    case StoredType::u8:
      return hdf5::Type(check(H5Tcopy(H5T_STD_U8LE), "copy a type", "u8"));
    case StoredType::u16:
      return hdf5::Type(check(H5Tcopy(H5T_STD_U16LE), "copy a type", "u16"));
    case StoredType::u32:
      return hdf5::Type(check(H5Tcopy(H5T_STD_U32LE), "copy a type", "u32"));
    case StoredType::f32:
      break;
  }
  return hdf5::Type(check(H5Tcopy(H5T_IEEE_F32LE), "copy a type", "f32"));
}

/// Chunks of at most kChunkRows rows, about equal, so that the last one wastes little.
hdf5::Properties chunked(std::vector<std::uint64_t> shape, const hdf5::Type& type, bool compress) {
  hdf5::Properties properties = hdf5::data_set_properties();
  const std::uint64_t n_chunks = (shape.front() + kChunkRows - 1) / kChunkRows;
  std::vector<hsize_t> chunk(shape.begin(), shape.end());
  chunk.front() = (shape.front() + n_chunks - 1) / n_chunks;
  check(H5Pset_chunk(properties.id(), static_cast<int>(chunk.size()), chunk.data()), "set the chunk", "row data set");
  hdf5::set_impossible_fill(properties, type.id());
  // Every row is written, so that writing the fill value first would only double the work.
  check(H5Pset_fill_time(properties.id(), H5D_FILL_TIME_NEVER), "set the fill time", "row data set");
  if (compress) {
    check(H5Pset_shuffle(properties.id()), "set the filter", "row data set");
    check(H5Pset_deflate(properties.id(), 1), "set the filter", "row data set");
  }
  return properties;
}

/// A column of some rows as stored: a view where it lies so already, else a copy.
class ColumnBytes {
 public:
  ColumnBytes(const RowColumn& column, const TokenRows& rows) {
    visit_field(rows, column, [&]<typename T>(const std::vector<T>& values) {
      view_ = std::as_bytes(std::span<const T>(values));
      if (size_of(column.stored) == sizeof(T)) return;
      copy_.resize(values.size());
      std::ranges::transform(values, copy_.begin(), [](T value) { return static_cast<std::byte>(value); });
      view_ = copy_;
    });
  }
  ColumnBytes(const ColumnBytes&) = delete;
  ColumnBytes& operator=(const ColumnBytes&) = delete;
  ~ColumnBytes() = default;
  std::span<const std::byte> view() const { return view_; }

 private:
  std::vector<std::byte> copy_;
  std::span<const std::byte> view_;
};

/// Where rows lie in a file and in memory. Both have the same number of dimensions: HDF5 would else go element by
/// element.
struct Selection {
  hdf5::Space in_file;
  hdf5::Space in_memory;
};

Selection select_rows(const RowColumn& column, std::uint64_t n_rows, const RowRange& range) {
  Selection selection{hdf5::space_of(shape_of(column, n_rows)), hdf5::space_of(shape_of(column, range.count))};
  if (range.count == 0) {
    check(H5Sselect_none(selection.in_file.id()), "select nothing", column.path);
    check(H5Sselect_none(selection.in_memory.id()), "select nothing", column.path);
    return selection;
  }
  const std::array<hsize_t, 2> start = {range.first, 0};
  const std::array<hsize_t, 2> count = {range.count, column.width};
  check(H5Sselect_hyperslab(selection.in_file.id(), H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr),
        "select rows", column.path);
  return selection;
}

void write_range(const hdf5::DataSet& data_set, const std::string& name, const RowColumn& column, std::uint64_t n_rows,
                 const RowRange& range, const TokenRows& rows, const hdf5::Properties& transfer) {
  const hdf5::Type type = type_of(column.stored);
  const Selection selection = select_rows(column, n_rows, range);
  const ColumnBytes values(column, rows);
  check(H5Dwrite(data_set.id(), type.id(), selection.in_memory.id(), selection.in_file.id(), transfer.id(),
                 values.view().data()),
        "write this rank's rows", name, kCheckDisk);
}

void verify_range(const hdf5::DataSet& data_set, const std::string& name, const RowColumn& column, std::uint64_t n_rows,
                  const RowRange& range, const TokenRows& rows) {
  if (range.count == 0) return;
  const hdf5::Type type = type_of(column.stored);
  const Selection selection = select_rows(column, n_rows, range);
  const ColumnBytes expected(column, rows);
  std::vector<std::byte> found(expected.view().size());
  check(H5Dread(data_set.id(), type.id(), selection.in_memory.id(), selection.in_file.id(), H5P_DEFAULT, found.data()),
        "read back what was written", name, kCheckDisk);
  if (!std::ranges::equal(found, expected.view()))
    throw Error("other rows are read back than were written", name, kCheckDisk);
}

/// Writes a column, with as many calls as the rank with most ranges makes: a collective transfer is a call of all
/// ranks, for the last ones perhaps with no rows.
void write_column(const hdf5::DataSet& data_set, const std::string& name, const RowColumn& column,
                  const SegmentContents& contents, std::size_t n_calls, const hdf5::Properties& transfer) {
  TokenRows none;
  none.layers.resize(column.layer + 1);
  for (std::size_t i = 0; i < n_calls; ++i) {
    const bool has_rows = i < contents.ranges.size();
    write_range(data_set, name, column, contents.n_rows, has_rows ? contents.ranges[i] : RowRange{},
                has_rows ? *contents.rows[i] : none, transfer);
  }
}

void require_fits(const RowColumn& column, const TokenRows& rows, int n_experts) {
  visit_field(rows, column, [&]<typename T>(const std::vector<T>& values) {
    if (values.size() != rows.size() * column.width) {
      throw Error(std::to_string(values.size()) + " values for " + std::to_string(rows.size()) + " rows of " +
                      std::to_string(column.width),
                  column.path);
    }
    if (column.field != RowField::expert || values.empty()) return;
    if (const auto most = std::ranges::max(values); static_cast<std::int64_t>(most) >= n_experts)
      throw Error("expert " + std::to_string(most) + " of " + std::to_string(n_experts), column.path);
  });
}

std::uint64_t bytes_of(const Table& table) {
  return std::visit(
      []<typename T>(const std::vector<T>& values) -> std::uint64_t {
        if constexpr (std::is_same_v<T, std::string>) {
          std::size_t width = 1;
          for (const std::string& value : values) width = std::max(width, value.size());
          return width * values.size();
        } else {
          return sizeof(T) * values.size();
        }
      },
      table.values);
}

hdf5::DataSetFacts facts_of(const RowColumn& column, std::uint64_t n_rows) {
  std::vector<std::string> dimensions = {"token"};
  if (!column.second_dimension.empty()) dimensions.push_back(column.second_dimension);
  return {{column.path, dimensions, shape_of(column, n_rows)}, column.units, column.long_name};
}

}  // namespace

void require_consistent_rows(const ModelFacts& model, const SegmentContents& contents, const RowLayout& layout) {
  if (contents.rows.size() != contents.ranges.size())
    throw Error(std::to_string(contents.rows.size()) + " blocks of rows for " + std::to_string(contents.ranges.size()) +
                " ranges");
  const std::vector<RowColumn> columns = columns_of(model, contents, layout);
  std::uint64_t next = 0;
  for (std::size_t i = 0; i < contents.ranges.size() && !columns.empty(); ++i) {
    const auto [first, count] = contents.ranges[i];
    if (count > 0 && (first < next || first + count > contents.n_rows))
      throw Error("rows from " + std::to_string(first) + " overlap others or end after the segment's " +
                  std::to_string(contents.n_rows));
    if (count > 0) next = first + count;
    if (contents.rows[i]->size() != count)
      throw Error(std::to_string(contents.rows[i]->size()) + " rows for a range of " + std::to_string(count));
    for (const RowColumn& column : columns) require_fits(column, *contents.rows[i], model.n_experts);
  }
}

std::uint64_t bytes_needed(const ModelFacts& model, const SegmentContents& contents, const RowLayout& layout) {
  const std::vector<RowColumn> columns = columns_of(model, contents, layout);
  std::uint64_t bytes = kMetadataBytes * (columns.size() + contents.tables.size());
  for (const Table& table : contents.tables) bytes += bytes_of(table);
  for (const RowColumn& column : columns) bytes += contents.n_rows * column.width * size_of(column.stored);
  return bytes;
}

struct RowFile::State {
  std::vector<RowColumn> columns;
  const SegmentContents& contents;
  std::size_t n_calls;  // of each data set, on every rank alike when compressed
  hdf5::File file;
  hdf5::Properties transfer;
  std::vector<hdf5::DataSet> data_sets;
};

RowFile::RowFile(const std::filesystem::path& path, const ModelFacts& model, const SegmentContents& contents,
                 const WriteOptions& options, const Communicator& comm) {
  const std::size_t ranges = contents.ranges.size();
  state_.reset(new State{
      .columns = columns_of(model, contents, options.layout),
      .contents = contents,
      .n_calls = options.compress ? static_cast<std::size_t>(comm.max(static_cast<std::int64_t>(ranges))) : ranges,
      .file = hdf5::File::create(path, comm),
      .transfer = hdf5::Properties(check(H5Pcreate(H5P_DATASET_XFER), "make transfer properties", path.string())),
      .data_sets = {}});
  const H5FD_mpio_xfer_t mode = options.compress ? H5FD_MPIO_COLLECTIVE : H5FD_MPIO_INDEPENDENT;
  check(H5Pset_dxpl_mpio(state_->transfer.id(), mode), "choose the transfer", path.string());
  for (const RowColumn& column : state_->columns) {
    const hdf5::Type type = type_of(column.stored);
    const std::vector<std::uint64_t> shape = shape_of(column, contents.n_rows);
    state_->data_sets.push_back(state_->file.create_data_set(column.path, type.id(), hdf5::space_of(shape),
                                                             chunked(shape, type, options.compress)));
  }
}

RowFile::~RowFile() = default;

void RowFile::write() {
  const State& s = *state_;
  for (std::size_t i = 0; i < s.columns.size(); ++i) {
    write_column(s.data_sets[i], s.file.name(s.columns[i].path), s.columns[i], s.contents, s.n_calls, s.transfer);
  }
}

void RowFile::close() {
  state_->data_sets.clear();
  state_->file.close();
}

void reserve_rows(const std::filesystem::path& path, const ModelFacts& model, const SegmentContents& contents,
                  const RowLayout& layout) {
  reserve_space(path, bytes_needed(model, contents, layout));
}

void verify_rows(const std::filesystem::path& path, const ModelFacts& model, const SegmentContents& contents,
                 const RowLayout& layout) {
  const std::vector<RowColumn> columns = columns_of(model, contents, layout);
  if (columns.empty()) return;
  const hdf5::File file = hdf5::File::open(path, hdf5::File::Access::read);
  for (const RowColumn& column : columns) {
    const hdf5::DataSet data_set = file.open_data_set(column.path);
    for (std::size_t i = 0; i < contents.ranges.size(); ++i)
      verify_range(data_set, file.name(column.path), column, contents.n_rows, contents.ranges[i], *contents.rows[i]);
  }
}

void write_identity(const hdf5::File& file, const ModelFacts& model, const RowLayout& layout) {
  file.set_attribute("/", "format", std::string(kRoutingFormat));
  file.set_attribute("/", "format_version", std::to_string(kFormatMajor) + "." + std::to_string(kFormatMinor));
  file.set_attribute("/", "level", std::string(to_string(layout.level)));
  if (!layout.absent.empty()) file.set_attribute("/", "absent", to_string(layout.absent));
  file.set_attribute("/model", "family", model.family);
  file.set_attribute("/model", "name", model.name);
  file.set_attribute("/model", "n_layers", model.n_layers);
  file.set_attribute("/model", "d_model", model.d_model);
  file.set_attribute("/model", "vocabulary", model.vocabulary);
  file.set_attribute("/model", "renormalised", model.renormalised ? 1 : 0);
}

void add_tables(const std::filesystem::path& path, const ModelFacts& model, const SegmentContents& contents,
                const RowLayout& layout) {
  const std::vector<RowColumn> columns = columns_of(model, contents, layout);
  hdf5::File file = columns.empty() ? hdf5::File::create(path) : hdf5::File::open(path, hdf5::File::Access::modify);
  std::vector<Table> tables = model_tables(model);
  tables.insert(tables.end(), contents.tables.begin(), contents.tables.end());
  std::vector<hdf5::DataSetFacts> facts;
  for (const RowColumn& column : columns) facts.push_back(facts_of(column, contents.n_rows));
  for (const Table& table : tables) {
    hdf5::write_values(file, table);
    facts.push_back(hdf5::facts_of(table));
  }
  write_identity(file, model, layout);
  hdf5::describe(file, facts, describe_routing_group);
  file.close();
}

}  // namespace switchyard
