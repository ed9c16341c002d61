#include "pipeline/analysis/model_fact_tables.h"

#include <array>
#include <string>
#include <utility>

namespace switchyard {
namespace {

/// A number of the model by its name in /model.
struct ModelNumber {
  const char* name;
  int ModelFacts::*member;
  const char* long_name;
};
constexpr std::array<ModelNumber, 5> kModelNumbers = {{{"n_layers", &ModelFacts::n_layers, "decoder layers"},
                                                       {"d_model", &ModelFacts::d_model, "width"},
                                                       {"vocabulary", &ModelFacts::vocabulary, "tokens"},
                                                       {"n_experts", &ModelFacts::n_experts, "experts of a MoE layer"},
                                                       {"top_k", &ModelFacts::top_k, "experts of a token"}}};

}  // namespace

std::vector<Table> model_fact_tables(const ModelFacts& model) {
  std::vector<Table> tables;
  const auto text = [&](const char* path, const std::string& value, const char* long_name) {
    tables.push_back({path, {"scalar"}, {1}, std::vector<std::string>{value}, "1", long_name});
  };
  text("/model/name", model.name, "name of the model's folder");
  text("/model/family", model.family, "family of the model");
  for (const ModelNumber& number : kModelNumbers)
    tables.push_back({std::string("/model/") + number.name,
                      {"scalar"},
                      {1},
                      std::vector<std::int32_t>{model.*number.member},
                      "1",
                      number.long_name});
  if (model.n_moe_layers() == 0) return tables;
  tables.push_back({"/model/renormalised",
                    {"scalar"},
                    {1},
                    std::vector<std::int32_t>{model.renormalised ? 1 : 0},
                    "1",
                    "1 when the combine weights of a token sum to 1"});
  std::vector<std::int32_t> layer_numbers(model.moe_layers.begin(), model.moe_layers.end());
  tables.push_back({"/model/moe_layers",
                    {"layer"},
                    {layer_numbers.size()},
                    std::move(layer_numbers),
                    "1",
                    "decoder layer of each MoE layer"});
  return tables;
}

ModelFacts model_facts_from(const TableIndex& index) {
  ModelFacts model;
  model.name = index.values<std::string>("/model/name", 1)[0];
  model.family = index.values<std::string>("/model/family", 1)[0];
  for (const ModelNumber& number : kModelNumbers)
    model.*number.member = index.values<std::int32_t>(std::string("/model/") + number.name, 1)[0];
  if (index.find("/model/moe_layers") != nullptr) {
    const auto& layers = index.values<std::int32_t>("/model/moe_layers");
    model.moe_layers.assign(layers.begin(), layers.end());
  }
  if (index.find("/model/renormalised") != nullptr)
    model.renormalised = index.values<std::int32_t>("/model/renormalised", 1)[0] != 0;
  return model;
}

}  // namespace switchyard
