#include "io/routing_schema.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include "parallel/error.h"

namespace switchyard {
namespace {

constexpr std::array<std::pair<RecordLevel, std::string_view>, 3> kLevels = {
    {{RecordLevel::counts, "counts"}, {RecordLevel::tokens, "tokens"}, {RecordLevel::logits, "logits"}}};

constexpr std::array<std::pair<RowField, std::string_view>, 5> kFieldsThatMayBeAbsent = {
    {{RowField::id, "id"},
     {RowField::loss, "loss"},
     {RowField::predicted, "predicted"},
     {RowField::weight, "weight"},
     {RowField::entropy, "entropy"}}};

constexpr std::array<std::pair<std::string_view, std::string_view>, 8> kGroups = {{
    {"/model", "The model whose routing is recorded"},
    {"/vocabulary", "What token ids stand for"},
    {"/corpora", "The corpora, in the order of their rows"},
    {"/documents", "The documents, in the order of their rows"},
    {"/tokens", "One row for each token, in corpus order: corpus, document, position"},
    {"/routing", "Where each MoE layer's router sent each row of /tokens; a group for each decoder layer"},
    {"/dispatch", "How slots were spread over ranks in this run; the only group that depends on the number of ranks"},
    {"/accumulators", "Sums over this segment's tokens that can be added to those of other segments"},
}};

std::string layer_group(int decoder_layer) {
  std::array<char, 32> name{};
  std::snprintf(name.data(), name.size(), "/routing/layer_%03d", decoder_layer);
  return name.data();
}

void add_token_columns(std::vector<RowColumn>& columns) {
  const auto add = [&](const char* path, RowField field, StoredType stored, const char* units, const char* long_name) {
    columns.push_back({path, field, 0, "", 1, stored, units, long_name});
  };
  add("/tokens/id", RowField::id, StoredType::u32, "1", "token id in the model's vocabulary");
  add("/tokens/document", RowField::document, StoredType::u32, "1", "row of /documents");
  add("/tokens/position", RowField::position, StoredType::u32, "1", "position in the window, from 0");
  add("/tokens/phase", RowField::phase, StoredType::u8, "1", "0 prefill, 1 decode");
  add("/tokens/loss", RowField::loss, StoredType::f32, "nats",
      "negative log probability of the next token, NaN where there is none");
  add("/tokens/predicted", RowField::predicted, StoredType::u32, "1", "most probable next token");
}

void add_layer_columns(std::vector<RowColumn>& columns, const ModelFacts& model, std::size_t layer, bool logits) {
  const std::string group = layer_group(model.moe_layers[layer]);
  const auto k = static_cast<std::uint64_t>(model.top_k);
  const StoredType expert_type = model.n_experts <= 255 ? StoredType::u8 : StoredType::u16;
  columns.push_back({group + "/expert", RowField::expert, layer, "slot", k, expert_type, "1",
                     "chosen expert, by combine weight descending unless weights are absent"});
  columns.push_back({group + "/weight", RowField::weight, layer, "slot", k, StoredType::f16, "1",
                     "combine weight of the chosen expert"});
  columns.push_back({group + "/entropy", RowField::entropy, layer, "", 1, StoredType::f16, "nats",
                     "entropy of the router probabilities"});
  if (logits) {
    // Not "expert": the group has a data set of that name, and readers take a variable named like a dimension for its
    // coordinates.
    columns.push_back({group + "/logits", RowField::logits, layer, "logical_expert",
                       static_cast<std::uint64_t>(model.n_experts), StoredType::f32, "1",
                       "router logit, before the score function"});
  }
}

}  // namespace

RecordLevel parse_record_level(std::string_view text) {
  for (const auto& [level, name] : kLevels)
    if (name == text) return level;
  throw UsageError("unknown record level \"" + std::string(text) + "\"", "", "choose counts, tokens or logits");
}

std::string_view to_string(RecordLevel level) {
  return std::ranges::find(kLevels, level, [](const auto& entry) { return entry.first; })->second;
}

std::string to_string(const std::set<RowField>& absent) {
  std::string text;
  for (const auto& [field, name] : kFieldsThatMayBeAbsent)
    if (absent.contains(field)) text.append(text.empty() ? "" : ",").append(name);
  return text;
}

std::set<RowField> parse_absent_fields(std::string_view text) {
  std::set<RowField> absent;
  while (!text.empty()) {
    const std::string_view word = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), word.size() + 1));
    const auto* const found =
        std::ranges::find(kFieldsThatMayBeAbsent, word, [](const auto& entry) { return entry.second; });
    if (found == kFieldsThatMayBeAbsent.end())
      throw Error("a record without '" + std::string(word) + "' is unknown", "attribute absent",
                  "read it with a newer switchyard");
    absent.insert(found->first);
  }
  return absent;
}

std::size_t size_of(StoredType type) {
  switch (type) {
    case StoredType::u8:
      return 1;
    case StoredType::u16:
    case StoredType::f16:
      return 2;
    case StoredType::u32:
    case StoredType::f32:
      break;
  }
  return 4;
}

std::vector<RowColumn> row_columns(const ModelFacts& model, const RowLayout& layout) {
  std::vector<RowColumn> columns;
  if (layout.level == RecordLevel::counts) return columns;
  add_token_columns(columns);
  for (std::size_t layer = 0; layer < model.moe_layers.size(); ++layer)
    add_layer_columns(columns, model, layer, layout.level == RecordLevel::logits);
  std::erase_if(columns, [&](const RowColumn& column) { return !layout.has(column.field); });
  return columns;
}

std::vector<Table> model_tables(const ModelFacts& model) {
  std::vector<std::uint32_t> layers(model.moe_layers.begin(), model.moe_layers.end());
  return {
      {"/model/moe_layers", {"layer"}, {layers.size()}, layers, "1", "decoder layer of each MoE layer"},
      {"/model/n_experts",
       {},
       {},
       std::vector{static_cast<std::uint32_t>(model.n_experts)},
       "1",
       "routed experts of an MoE layer"},
      {"/model/top_k", {}, {}, std::vector{static_cast<std::uint32_t>(model.top_k)}, "1", "experts chosen for a token"},
  };
}

std::string describe_routing_group(std::string_view group) {
  for (const auto& [path, description] : kGroups)
    if (path == group) return std::string(description);
  constexpr std::string_view kLayer = "/routing/layer_";
  if (group.starts_with(kLayer)) return "Routing of decoder layer " + std::string(group.substr(kLayer.size()));
  for (const auto& [path, description] : kGroups)
    if (group.starts_with(std::string(path) + "/")) return "Part of " + std::string(path) + ": " + std::string(group);
  return std::string(group.substr(1));
}

bool is_appended(std::string_view dimension) {
  return dimension == "token" || dimension == "document" || dimension == "step" || dimension == "block";
}

}  // namespace switchyard
