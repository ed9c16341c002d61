#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/hdf5/table.h"

namespace switchyard {

inline constexpr std::string_view kRoutingFormat = "switchyard-routing";
inline constexpr std::string_view kStatsFormat = "switchyard-stats";
inline constexpr int kFormatMajor = 1;
inline constexpr int kFormatMinor = 0;

enum class RecordLevel { counts, tokens, logits };
/// "counts" | "tokens" | "logits"; throws UsageError naming the choices.
RecordLevel parse_record_level(std::string_view text);
std::string_view to_string(RecordLevel level);

/// What a record must know of the model.
struct ModelFacts {
  std::string family;
  std::string name;
  int n_layers = 0;
  int d_model = 0;
  int vocabulary = 0;
  std::vector<int> moe_layers;  // [L] decoder layer of each MoE layer, ascending
  int n_experts = 0;            // 0 for a dense model
  int top_k = 0;
  bool renormalised = true;  // combine weights of a token sum to 1

  int n_moe_layers() const { return static_cast<int>(moe_layers.size()); }
  bool operator==(const ModelFacts&) const = default;
};

/// One rank's token rows of one block, in corpus order: the columns of /tokens and /routing/layer_LLL.
struct TokenRows {
  struct Layer {
    std::vector<std::uint16_t> expert;   // [n, k] weight descending
    std::vector<std::uint16_t> weight;   // [n, k] IEEE half bits, combine weight
    std::vector<std::uint16_t> entropy;  // [n] IEEE half bits, nats
    std::vector<float> logits;           // [n, E], only at level logits
  };
  std::vector<std::uint32_t> id, document, position, predicted;  // [n]; document: row of the run's /documents
  std::vector<std::uint8_t> phase;                               // [n] 0 prefill, 1 decode
  std::vector<float> loss;                                       // [n] nats, NaN where there is no target
  std::vector<Layer> layers;                                     // [L]

  std::uint64_t size() const { return document.size(); }
};

/// A field of TokenRows.
enum class RowField : std::uint8_t { id, document, position, phase, loss, predicted, expert, weight, entropy, logits };

/// Which columns the rows of a record have: those of its level but for fields that its source did not tell, as a
/// serving engine tells experts and no weights.
struct RowLayout {
  RecordLevel level = RecordLevel::tokens;
  std::set<RowField> absent;  // never document, position, phase or expert

  RowLayout(RecordLevel of_level = RecordLevel::tokens, std::set<RowField> without = {})  // NOLINT: a level is a layout
      : level(of_level), absent(std::move(without)) {}
  bool has(RowField field) const { return !absent.contains(field); }
  bool operator==(const RowLayout&) const = default;
};
/// "id,weight" of fields that may be absent, in the order of RowField; "" of none.
std::string to_string(const std::set<RowField>& absent);
/// The inverse. Throws Error naming a word that is no such field.
std::set<RowField> parse_absent_fields(std::string_view text);

/// How a field lies in a file.
enum class StoredType : std::uint8_t { u8, u16, u32, f16, f32 };
std::size_t size_of(StoredType type);

/// A data set of rows: its first dimension is `token`.
struct RowColumn {
  std::string path;
  RowField field = RowField::id;
  std::size_t layer = 0;         // index among MoE layers, for fields of a layer
  std::string second_dimension;  // empty: there is none
  std::uint64_t width = 1;       // values in a row
  StoredType stored = StoredType::u32;
  std::string units, long_name;
};

/// The data sets of rows, /tokens first, then layer by layer. None at level counts.
std::vector<RowColumn> row_columns(const ModelFacts& model, const RowLayout& layout);

/// Applies `visit` to the vector that holds a column: the same switch for writing and reading.
template <typename Rows, typename Visit>
decltype(auto) visit_field(Rows& rows, const RowColumn& column, Visit&& visit) {
  switch (column.field) {
    case RowField::id:
      return visit(rows.id);
    case RowField::document:
      return visit(rows.document);
    case RowField::position:
      return visit(rows.position);
    case RowField::phase:
      return visit(rows.phase);
    case RowField::loss:
      return visit(rows.loss);
    case RowField::predicted:
      return visit(rows.predicted);
    case RowField::expert:
      return visit(rows.layers.at(column.layer).expert);
    case RowField::weight:
      return visit(rows.layers.at(column.layer).weight);
    case RowField::entropy:
      return visit(rows.layers.at(column.layer).entropy);
    case RowField::logits:
      break;
  }
  return visit(rows.layers.at(column.layer).logits);
}

/// /model/moe_layers, /model/n_experts, /model/top_k. The rest of ModelFacts are attributes of /model.
std::vector<Table> model_tables(const ModelFacts& model);

/// The `description` of a group of a record.
std::string describe_routing_group(std::string_view group);

/// Dimensions along which a master file appends its segments.
bool is_appended(std::string_view dimension);

/// A run of a segment's rows: this rank's share of one block.
struct RowRange {
  std::uint64_t first = 0;  // row of the segment
  std::uint64_t count = 0;
};

}  // namespace switchyard
