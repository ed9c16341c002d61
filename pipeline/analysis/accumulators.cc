#include "pipeline/analysis/accumulators.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "parallel/error.h"
#include "pipeline/analysis/table_index.h"

namespace switchyard {
namespace {

/// One stored array: the one place that knows its name, dimensions and meaning.
template <typename T>
struct Field {
  std::vector<T> Accumulators::*member;
  const char* path;
  std::vector<const char*> dimensions;
  const char* units;
  const char* long_name;
};

const std::vector<Field<std::uint64_t>>& count_fields() {
  using A = Accumulators;
  static const std::vector<Field<std::uint64_t>> fields = {
      {&A::tokens, "/totals/tokens", {}, "1", "tokens"},
      {&A::windows, "/totals/windows", {}, "1", "windows"},
      {&A::documents, "/totals/documents", {}, "1", "documents that begin here"},
      {&A::targets, "/totals/targets", {}, "1", "tokens with a next token"},
      {&A::correct, "/totals/correct", {}, "1", "tokens whose arg-max is the next token"},
      {&A::slot_count, "/load/slot_count", {"layer", "slot", "expert"}, "1", "tokens whose j-th choice is this expert"},
      {&A::position_count,
       "/load/position_count",
       {"layer", "position_bucket", "expert"},
       "1",
       "slots by bucket floor(log2(position in the window + 1))"},
      {&A::coactivation,
       "/coactivation/count",
       {"layer", "expert", "expert2"},
       "1",
       "tokens that chose both experts; diagonal: tokens that chose the expert"},
      {&A::flow,
       "/flow/count",
       {"layer_pair", "expert", "expert2"},
       "1",
       "pairs (expert at one MoE layer, expert2 at the next) over all choices of a token"},
      {&A::flow_top1,
       "/flow/top1_count",
       {"layer_pair", "expert", "expert2"},
       "1",
       "tokens with first choice expert at one MoE layer and expert2 at the next"},
      {&A::repeat_pairs, "/repetition/pairs", {}, "1", "neighbouring tokens of one window"},
      {&A::repeat_top1, "/repetition/top1", {"layer"}, "1", "neighbouring tokens with the same first choice"},
      {&A::repeat_any, "/repetition/any", {"layer"}, "1", "neighbouring tokens with at least one common expert"},
      {&A::entropy_histogram,
       "/entropy/histogram",
       {"layer", "bin"},
       "1",
       "tokens by router entropy, equal bins on [0, ln E] nats"},
      {&A::margin_histogram,
       "/margin/histogram",
       {"layer", "bin"},
       "1",
       "tokens by margin between k-th and (k+1)-th probability, equal bins on [0, 1]"},
      {&A::top_probability_histogram,
       "/top_probability/histogram",
       {"layer", "bin"},
       "1",
       "tokens by largest router probability, equal bins on [0, 1]"},
      {&A::weight_histogram,
       "/weight/histogram",
       {"layer", "slot", "bin"},
       "1",
       "tokens by combine weight of the j-th choice, equal bins on [0, 1]"},
      {&A::confident, "/top_probability/confident", {"layer"}, "1", "tokens whose largest probability exceeds 0.7"},
  };
  return fields;
}

const std::vector<Field<double>>& sum_fields() {
  using A = Accumulators;
  static const std::vector<Field<double>> fields = {
      {&A::weight_sum, "/weight/sum", {"layer", "slot", "expert"}, "1", "sum of combine weights"},
      {&A::probability_sum, "/load/probability_sum", {"layer", "expert"}, "1", "sum of router probabilities"},
      {&A::z_sum, "/load/z_sum", {"layer"}, "1", "sum of squared logsumexp of the router logits"},
  };
  return fields;
}

const std::vector<Field<Moments>>& moment_fields() {
  using A = Accumulators;
  static const std::vector<Field<Moments>> fields = {
      {&A::entropy, "/entropy", {"layer"}, "nats", "router entropy"},
      {&A::margin, "/margin", {"layer"}, "1", "margin between k-th and (k+1)-th probability"},
      {&A::top_probability, "/top_probability", {"layer"}, "1", "largest router probability"},
      {&A::loss, "/loss", {}, "nats", "next-token loss"},
  };
  return fields;
}

std::uint64_t extent(const std::string& dimension, const AccumulatorShape& shape) {
  static const std::map<std::string, int AccumulatorShape::*> sizes = {{"layer", &AccumulatorShape::layers},
                                                                       {"slot", &AccumulatorShape::top_k},
                                                                       {"expert", &AccumulatorShape::experts},
                                                                       {"expert2", &AccumulatorShape::experts}};
  if (const auto found = sizes.find(dimension); found != sizes.end())
    return static_cast<std::uint64_t>(shape.*found->second);
  if (dimension == "layer_pair") return static_cast<std::uint64_t>(std::max(0, shape.layers - 1));
  if (dimension == "position_bucket") return kPositionBuckets;
  return kHistogramBins;  // "bin"
}

template <typename T>
std::uint64_t elements(const Field<T>& field, const AccumulatorShape& shape) {
  std::uint64_t n = 1;
  for (const char* dimension : field.dimensions) n *= extent(dimension, shape);
  return n;
}

/// An empty table with the field's dimensions behind `dataset`.
template <typename T>
Table frame(const Field<T>& field, const std::string& path, std::size_t n_datasets, const AccumulatorShape& shape) {
  Table table;
  table.path = path;
  table.dimensions = {"dataset"};
  table.shape = {n_datasets};
  for (const char* dimension : field.dimensions) {
    table.dimensions.emplace_back(dimension);
    table.shape.push_back(extent(dimension, shape));
  }
  table.units = field.units;
  table.long_name = field.long_name;
  return table;
}

template <typename T>
Table concatenate(const Field<T>& field, const std::vector<const Accumulators*>& datasets, const std::string& root) {
  Table table = frame(field, root + field.path, datasets.size(), datasets.front()->shape);
  std::vector<T> values;
  for (const Accumulators* a : datasets)
    values.insert(values.end(), (a->*field.member).begin(), (a->*field.member).end());
  table.values = std::move(values);
  return table;
}

/// A column of moments as it is stored, e.g. "/entropy/mean".
struct MomentColumn {
  const char* name;
  double Moments::*member;
  const char* prefix;  // of the long name
};
constexpr std::array<MomentColumn, 4> kMomentColumns = {
    {{"mean", &Moments::mean, "mean "},
     {"m2", &Moments::m2, "sum of squared deviations from the mean of "},
     {"min", &Moments::min, "smallest "},
     {"max", &Moments::max, "largest "}}};

void append_moments(std::vector<Table>& tables, const std::vector<const Accumulators*>& datasets,
                    const std::string& root) {
  const AccumulatorShape& shape = datasets.front()->shape;
  for (const Field<Moments>& field : moment_fields()) {
    Table n = frame(field, root + field.path + "/n", datasets.size(), shape);
    n.units = "1";
    n.long_name = std::string("values of ") + field.long_name;
    std::vector<std::uint64_t> counts;
    for (const Accumulators* a : datasets)
      for (const Moments& m : a->*field.member) counts.push_back(m.n);
    n.values = std::move(counts);
    tables.push_back(std::move(n));
    for (const MomentColumn& column : kMomentColumns) {
      Table table = frame(field, root + field.path + "/" + column.name, datasets.size(), shape);
      table.long_name = std::string(column.prefix) + field.long_name;
      if (column.member == &Moments::m2) table.units += "^2";
      std::vector<double> values;
      for (const Accumulators* a : datasets)
        for (const Moments& m : a->*field.member) values.push_back(m.*column.member);
      table.values = std::move(values);
      tables.push_back(std::move(table));
    }
  }
}

void append_paths(std::vector<Table>& tables, const std::vector<const Accumulators*>& datasets,
                  const std::string& root) {
  std::vector<std::uint32_t> dataset;
  std::vector<std::uint16_t> experts;
  std::vector<std::uint64_t> count;
  std::vector<std::uint64_t> undercount;
  for (std::size_t d = 0; d < datasets.size(); ++d) {
    PathSketch sketch = datasets[d]->paths;
    sketch.compact();
    for (const PathSketch::Entry& entry : sketch.entries()) {
      dataset.push_back(static_cast<std::uint32_t>(d));
      experts.insert(experts.end(), entry.experts.begin(), entry.experts.end());
      count.push_back(entry.count);
    }
    undercount.push_back(sketch.undercount());
  }
  const std::uint64_t n = dataset.size();
  const auto layers = static_cast<std::uint64_t>(datasets.front()->shape.layers);
  tables.push_back({root + "/paths/dataset", {"path"}, {n}, std::move(dataset), "1", "dataset of the path"});
  tables.push_back({root + "/paths/expert",
                    {"path", "layer"},
                    {n, layers},
                    std::move(experts),
                    "1",
                    "first choice at each MoE layer"});
  tables.push_back({root + "/paths/count",
                    {"path"},
                    {n},
                    std::move(count),
                    "1",
                    "tokens on the path, at most `undercount` too few"});
  tables.push_back({root + "/paths/undercount",
                    {"dataset"},
                    {datasets.size()},
                    std::move(undercount),
                    "1",
                    "bound on the tokens missing from a path's count"});
}

/// How a sparse table of `rows` rows for each dataset is stored.
struct SparseField {
  std::string group;     // path
  std::string pointers;  // dimension of its row pointers
  std::string cells;     // ... and of its cells
  std::string by;        // what its rows are, in words
  std::uint64_t rows;
};

SparseField token_field(std::size_t which, const AccumulatorShape& shape) {
  const std::string name(kTokenTableNames[which]);
  return {"/tokens/" + name, "row_pointer", name + "_cell", "token, expert] of slots by " + name + " token id",
          static_cast<std::uint64_t>(shape.layers) * static_cast<std::uint64_t>(shape.vocabulary)};
}

SparseField group_field(const AccumulatorShape& shape) {
  return {"/groups", "group_pointer", "group_cell", "group, expert] of slots by group of documents",
          static_cast<std::uint64_t>(shape.layers) * kDocumentGroups};
}

/// counts_of(dataset) -> its SparseCounts.
template <typename F>
void append_sparse(std::vector<Table>& tables, const std::vector<const Accumulators*>& datasets,
                   const std::string& root, const SparseField& field, F counts_of) {
  const auto experts = static_cast<std::uint64_t>(datasets.front()->shape.experts);
  std::vector<std::uint64_t> indptr = {0};
  std::vector<std::uint16_t> index;
  std::vector<std::uint64_t> value;
  indptr.reserve(field.rows * datasets.size() + 1);
  for (const Accumulators* a : datasets) {
    const SparseCounts& counts = counts_of(*a);
    std::size_t at = 0;
    for (std::uint64_t row = 0; row < field.rows; ++row) {
      for (; at < counts.cells().size() && counts.cells()[at] / experts == row; ++at) {
        index.push_back(static_cast<std::uint16_t>(counts.cells()[at] % experts));
        value.push_back(counts.counts()[at]);
      }
      indptr.push_back(value.size());
    }
  }
  const std::string group = root + field.group;
  const std::uint64_t nonzero = value.size();
  const std::uint64_t n_pointers = indptr.size();
  const std::string suffix = " of a CSR matrix [dataset * layer * " + field.by;
  tables.push_back(
      {group + "/indptr", {field.pointers}, {n_pointers}, std::move(indptr), "1", "row pointers" + suffix});
  tables.push_back({group + "/index", {field.cells}, {nonzero}, std::move(index), "1", "experts" + suffix});
  tables.push_back({group + "/value", {field.cells}, {nonzero}, std::move(value), "1", "counts" + suffix});
}

/// Entries of the leading dimension `dataset`.
std::uint64_t n_entries(const TableIndex& index) { return index.at("/totals/tokens").size(); }

/// The field's values of one entry.
template <typename T, typename F>
std::span<const T> entry_of(const TableIndex& index, const std::string& path, const Field<F>& field,
                            const AccumulatorShape& shape, std::size_t entry) {
  const std::uint64_t n = elements(field, shape);
  return std::span(index.values<T>(path, n * n_entries(index))).subspan(entry * n, n);
}

template <typename T>
void add_field(const TableIndex& index, const Field<T>& field, std::size_t entry, Accumulators& sum) {
  const std::span<const T> values = entry_of<T>(index, field.path, field, sum.shape, entry);
  std::vector<T>& to = sum.*field.member;
  std::transform(to.begin(), to.end(), values.begin(), to.begin(), std::plus<>());
}

void add_moments(const TableIndex& index, const Field<Moments>& field, std::size_t entry, Accumulators& sum) {
  const std::string path = field.path;
  const auto counts = entry_of<std::uint64_t>(index, path + "/n", field, sum.shape, entry);
  std::vector<Moments> moments(counts.size());
  for (std::size_t i = 0; i < counts.size(); ++i) moments[i].n = counts[i];
  for (const MomentColumn& column : kMomentColumns) {
    const auto values = entry_of<double>(index, path + "/" + column.name, field, sum.shape, entry);
    for (std::size_t i = 0; i < values.size(); ++i)
      if (counts[i] > 0) moments[i].*column.member = values[i];
  }
  for (std::size_t i = 0; i < moments.size(); ++i) (sum.*field.member)[i].merge(moments[i]);
}

void add_paths(const TableIndex& index, std::size_t entry, Accumulators& sum) {
  const auto& count = index.values<std::uint64_t>("/paths/count");
  const auto& dataset = index.values<std::uint32_t>("/paths/dataset", count.size());
  const auto length = static_cast<std::size_t>(sum.shape.layers);
  const auto& experts = index.values<std::uint16_t>("/paths/expert", count.size() * length);
  const auto& undercount = index.values<std::uint64_t>("/paths/undercount", n_entries(index));
  sum.paths.set_undercount(sum.paths.undercount() + undercount[entry]);
  sum.paths.make_room(count.size() / undercount.size());
  for (std::size_t i = 0; i < count.size(); ++i)
    if (dataset[i] == entry) sum.paths.add(std::span(experts).subspan(i * length, length), count[i]);
}

/// One entry's rows of a sparse table; one that was not recorded has none.
CsrCounts rows_of(const TableIndex& index, const SparseField& field, const AccumulatorShape& shape, std::size_t entry) {
  static constexpr std::array<std::uint64_t, 1> kNoRows = {0};
  const auto experts = static_cast<std::uint64_t>(shape.experts);
  if (index.find(field.group + "/indptr") == nullptr) return {kNoRows, {}, {}, experts};
  const auto& indptr = index.values<std::uint64_t>(field.group + "/indptr", field.rows * n_entries(index) + 1);
  const auto& value = index.values<std::uint64_t>(field.group + "/value");
  const auto& expert = index.values<std::uint16_t>(field.group + "/index", value.size());
  const auto pointers = std::span(indptr).subspan(entry * field.rows, field.rows + 1);
  if (!std::ranges::is_sorted(pointers) || pointers.back() > value.size())
    index.fail(field.group + "/indptr", "row pointers do not ascend within the table");
  std::uint16_t most = 0;
  for (const std::uint16_t e : expert) most = std::max(most, e);
  if (most >= experts && !expert.empty()) index.fail(field.group + "/index", "names expert " + std::to_string(most));
  return {pointers, expert, value, experts};
}

/// Collective. The sum of all ranks' counts on rank 0.
void sum_to_root(SparseCounts& counts, const Communicator& comm) {
  const std::vector<std::uint64_t> sizes = comm.all_gather<std::uint64_t>(counts.cells().size());
  const std::vector<std::uint64_t> cells = comm.gather_v<std::uint64_t>(counts.cells());
  const std::vector<std::uint64_t> values = comm.gather_v<std::uint64_t>(counts.counts());
  if (comm.rank() != 0) return;
  auto begin = static_cast<std::ptrdiff_t>(sizes[0]);
  for (std::size_t r = 1; r < sizes.size(); ++r) {
    const auto end = begin + static_cast<std::ptrdiff_t>(sizes[r]);
    SparseCounts more({cells.begin() + begin, cells.begin() + end}, {values.begin() + begin, values.begin() + end});
    if (counts.cells().empty())
      counts = std::move(more);
    else
      counts.merge(more);
    begin = end;
  }
}

/// Cells of a layer of a token table.
std::uint64_t layer_cells(const AccumulatorShape& shape) {
  return static_cast<std::uint64_t>(shape.vocabulary) * static_cast<std::uint64_t>(shape.experts);
}

/// change(part, layer) on each layer's part of a token table.
template <typename F>
void change_layers(SparseCounts& table, const AccumulatorShape& shape, F change) {
  SparseCounts changed;
  for (int l = 0; l < shape.layers; ++l) {
    const std::uint64_t begin = static_cast<std::uint64_t>(l) * layer_cells(shape);
    SparseCounts part = table.between(begin, begin + layer_cells(shape));
    change(part, static_cast<std::size_t>(l));
    for (std::size_t i = 0; i < part.cells().size(); ++i) changed.append(part.cells()[i], part.counts()[i]);
  }
  table = std::move(changed);
}

/// Collective. As sum_to_root; large tables layer by layer: the root never holds more than a layer of all ranks'
/// tables.
void sum_to_root(SparseCounts& table, TableBound& bound, const AccumulatorShape& shape, const Communicator& comm) {
  for (const std::uint64_t capacity : comm.all_gather<std::uint64_t>(bound.capacity))
    bound.merge({capacity, std::vector<std::uint64_t>(bound.undercount.size(), 0)});
  comm.sum_to_root(bound.undercount);
  const auto cells = static_cast<std::uint64_t>(shape.layers) * layer_cells(shape);
  if (bound.capacity == 0 && cells <= CountSum::kMostWhole) {
    sum_to_root(table, comm);
    return;
  }
  change_layers(table, shape, [&](SparseCounts& part, std::size_t layer) {
    sum_to_root(part, comm);
    if (bound.capacity > 0 && comm.rank() == 0) bound.undercount[layer] += part.compact(bound.capacity);
  });
}

void append_bounds(std::vector<Table>& tables, const std::vector<const Accumulators*>& datasets,
                   const std::string& root, std::size_t which) {
  const std::string group = root + "/tokens/" + std::string(kTokenTableNames[which]);
  std::vector<std::uint64_t> capacity;
  std::vector<std::uint64_t> undercount;
  for (const Accumulators* a : datasets) {
    const TableBound& bound = a->token_bounds[which];
    capacity.push_back(bound.capacity);
    undercount.insert(undercount.end(), bound.undercount.begin(), bound.undercount.end());
  }
  const auto layers = static_cast<std::uint64_t>(datasets.front()->shape.layers);
  tables.push_back({group + "/capacity",
                    {"dataset"},
                    {datasets.size()},
                    std::move(capacity),
                    "1",
                    "most cells of a layer that are kept, the most frequent ones; 0: all"});
  tables.push_back({group + "/undercount",
                    {"dataset", "layer"},
                    {datasets.size(), layers},
                    std::move(undercount),
                    "1",
                    "bound on the slots missing from a cell's value, also of a cell that is not there"});
}

/// The bound of one entry's table; without one it is whole.
TableBound bound_of(const TableIndex& index, const AccumulatorShape& shape, std::size_t which, std::size_t entry) {
  const std::string group = "/tokens/" + std::string(kTokenTableNames[which]);
  const auto layers = static_cast<std::size_t>(shape.layers);
  if (index.find(group + "/capacity") == nullptr) return {0, std::vector<std::uint64_t>(layers, 0)};
  const auto& capacity = index.values<std::uint64_t>(group + "/capacity", n_entries(index));
  const auto& undercount = index.values<std::uint64_t>(group + "/undercount", n_entries(index) * layers);
  const auto of_entry = std::span(undercount).subspan(entry * layers, layers);
  return {capacity[entry], {of_entry.begin(), of_entry.end()}};
}

/// Cuts each layer's part of a bounded table to its capacity.
void cut_to_capacity(SparseCounts& table, TableBound& bound, const AccumulatorShape& shape) {
  if (bound.capacity == 0) return;
  change_layers(table, shape, [&](SparseCounts& part, std::size_t layer) {
    bound.undercount[layer] += part.compact(bound.capacity);
  });
}

template <typename T>
void add_into(std::vector<T>& to, const std::vector<T>& from) {
  std::transform(to.begin(), to.end(), from.begin(), to.begin(), std::plus<>());
}

}  // namespace

Moments Moments::of(std::span<const float> values) {
  Moments m;
  if (values.empty()) return m;
  m.n = values.size();
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::size_t i = 0; i < values.size(); ++i) sum += static_cast<double>(values[i]);
  m.mean = sum / static_cast<double>(m.n);
  double squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double d = static_cast<double>(values[i]) - m.mean;
    squares += d * d;
  }
  m.m2 = squares;
  float low = values[0];
  float high = values[0];
#pragma omp simd reduction(min : low) reduction(max : high)
  for (std::size_t i = 0; i < values.size(); ++i) {
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
  }
  m.min = static_cast<double>(low);
  m.max = static_cast<double>(high);
  return m;
}

void Moments::merge(const Moments& other) {
  if (other.n == 0) return;
  if (n == 0) {
    *this = other;
    return;
  }
  const auto a = static_cast<double>(n);
  const auto b = static_cast<double>(other.n);
  const double delta = other.mean - mean;
  n += other.n;
  mean += delta * b / (a + b);
  m2 += other.m2 + delta * delta * a * b / (a + b);
  min = std::min(min, other.min);
  max = std::max(max, other.max);
}

double Moments::deviation() const {
  return n == 0 ? std::numeric_limits<double>::quiet_NaN() : std::sqrt(m2 / static_cast<double>(n));
}

void TableBound::merge(const TableBound& other) {
  if (other.capacity > 0) capacity = capacity > 0 ? std::min(capacity, other.capacity) : other.capacity;
  add_into(undercount, other.undercount);
}

Accumulators::Accumulators(const AccumulatorShape& wanted)
    : shape(wanted), paths(static_cast<std::size_t>(wanted.layers), kPathCapacity) {
  for (const auto& field : count_fields()) (this->*field.member).assign(elements(field, shape), 0);
  for (const auto& field : sum_fields()) (this->*field.member).assign(elements(field, shape), 0);
  for (const auto& field : moment_fields()) (this->*field.member).assign(elements(field, shape), {});
  for (TableBound& bound : token_bounds) bound.undercount.assign(static_cast<std::size_t>(shape.layers), 0);
}

void Accumulators::merge(const Accumulators& other) {
  if (!(shape == other.shape))
    throw Error("statistics of models of different shape cannot be summed", "merge",
                "reduce runs of models with other numbers of layers, experts or tokens into files of their own");
  for (const auto& field : count_fields()) add_into(this->*field.member, other.*field.member);
  for (const auto& field : sum_fields()) add_into(this->*field.member, other.*field.member);
  for (const auto& field : moment_fields())
    for (std::size_t i = 0; i < (this->*field.member).size(); ++i)
      (this->*field.member)[i].merge((other.*field.member)[i]);
  paths.merge(other.paths);
  for (std::size_t i = 0; i < kTokenTables; ++i) {
    token_tables[i].merge(other.token_tables[i]);
    token_bounds[i].merge(other.token_bounds[i]);
    cut_to_capacity(token_tables[i], token_bounds[i], shape);
  }
  group_counts.merge(other.group_counts);
}

std::vector<std::uint64_t> Accumulators::layer_counts(int layer) const {
  const auto experts = static_cast<std::size_t>(shape.experts);
  const auto top_k = static_cast<std::size_t>(shape.top_k);
  std::vector<std::uint64_t> counts(experts, 0);
  for (std::size_t slot = 0; slot < top_k; ++slot)
    for (std::size_t e = 0; e < experts; ++e)
      counts[e] += slot_count[(static_cast<std::size_t>(layer) * top_k + slot) * experts + e];
  return counts;
}

void Accumulators::reduce_to_root(const Communicator& comm) {
  if (comm.size() == 1) return;
  for (const auto& field : count_fields()) comm.sum_to_root(this->*field.member);
  for (const auto& field : sum_fields()) comm.sum_to_root(this->*field.member);
  for (const auto& field : moment_fields()) {
    std::vector<Moments>& mine = this->*field.member;
    const std::vector<Moments> all = comm.gather_v<Moments>(mine);
    for (std::size_t i = mine.size(); i < all.size(); ++i) mine[i % mine.size()].merge(all[i]);
  }
  paths.compact();
  std::vector<std::uint16_t> experts;
  std::vector<std::uint64_t> counts;
  if (comm.rank() != 0)  // the root's own sketch is where the others are merged into
    for (const PathSketch::Entry& entry : paths.entries()) {
      experts.insert(experts.end(), entry.experts.begin(), entry.experts.end());
      counts.push_back(entry.count);
    }
  const auto undercount = static_cast<std::uint64_t>(comm.sum(static_cast<std::int64_t>(paths.undercount())));
  experts = comm.gather_v<std::uint16_t>(experts);
  counts = comm.gather_v<std::uint64_t>(counts);
  if (comm.rank() == 0) {
    paths.set_undercount(undercount);
    for (std::size_t i = 0; i < counts.size(); ++i)
      paths.add(std::span(experts).subspan(i * paths.length(), paths.length()), counts[i]);
  }
  for (std::size_t i = 0; i < kTokenTables; ++i) sum_to_root(token_tables[i], token_bounds[i], shape, comm);
  sum_to_root(group_counts, comm);
}

std::vector<Table> to_tables(const std::vector<const Accumulators*>& datasets, const std::string& root) {
  std::vector<Table> tables;
  if (datasets.empty()) return tables;
  for (const auto& field : count_fields()) tables.push_back(concatenate(field, datasets, root));
  for (const auto& field : sum_fields()) tables.push_back(concatenate(field, datasets, root));
  append_moments(tables, datasets, root);
  append_paths(tables, datasets, root);
  const AccumulatorShape& shape = datasets.front()->shape;
  for (std::size_t which = 0; which < kTokenTables; ++which) {
    append_sparse(tables, datasets, root, token_field(which, shape),
                  [which](const Accumulators& a) -> const SparseCounts& { return a.token_tables[which]; });
    append_bounds(tables, datasets, root, which);
  }
  append_sparse(tables, datasets, root, group_field(shape),
                [](const Accumulators& a) -> const SparseCounts& { return a.group_counts; });
  return tables;
}

std::vector<Accumulators> from_tables(const std::vector<Table>& tables, const std::string& root,
                                      const AccumulatorShape& shape, bool whole) {
  const TableIndex index(tables, root);
  std::vector<Accumulators> datasets;
  for (std::size_t entry = 0; entry < n_entries(index); ++entry) {
    AccumulatorSum sum(shape);
    sum.add(index, entry, whole);
    datasets.push_back(sum.take());
  }
  return datasets;
}

std::vector<std::string> accumulator_paths() {
  // A dataset of the smallest shape has every table.
  static const std::vector<std::string> paths = [] {
    const Accumulators smallest({.layers = 1, .experts = 1, .top_k = 1, .vocabulary = 1});
    std::vector<std::string> found;
    for (const Table& table : to_tables({&smallest}, "")) found.push_back(table.path);
    return found;
  }();
  return paths;
}

void AccumulatorSum::add(const TableIndex& tables, std::size_t entry, bool whole) {
  const auto wanted = [&](const std::string& path) { return whole || tables.find(path) != nullptr; };
  for (const auto& field : count_fields())
    if (wanted(field.path)) add_field(tables, field, entry, sum_);
  for (const auto& field : sum_fields())
    if (wanted(field.path)) add_field(tables, field, entry, sum_);
  for (const auto& field : moment_fields())
    if (wanted(std::string(field.path) + "/n")) add_moments(tables, field, entry, sum_);
  if (wanted("/paths/count")) add_paths(tables, entry, sum_);
  for (std::size_t which = 0; which < kTokenTables; ++which) {
    sum_.token_bounds[which].merge(bound_of(tables, sum_.shape, which, entry));
    token_tables_[which].add(rows_of(tables, token_field(which, sum_.shape), sum_.shape, entry),
                             sum_.token_bounds[which].capacity == 0);
    cut_to_capacity(which);
  }
  group_counts_.add(rows_of(tables, group_field(sum_.shape), sum_.shape, entry), true);
}

// Bounded tables are cut after each addition, so that they never hold more than one file's beyond their capacity.
void AccumulatorSum::cut_to_capacity(std::size_t which) {
  if (sum_.token_bounds[which].capacity == 0) return;
  SparseCounts table = token_tables_[which].take();
  switchyard::cut_to_capacity(table, sum_.token_bounds[which], sum_.shape);
  token_tables_[which] = CountSum(std::move(table));
}

Accumulators AccumulatorSum::take() {
  for (std::size_t which = 0; which < kTokenTables; ++which) sum_.token_tables[which] = token_tables_[which].take();
  sum_.group_counts = group_counts_.take();
  return std::move(sum_);
}

}  // namespace switchyard
