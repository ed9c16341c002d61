#include "pipeline/analysis/expert_counts.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <vector>

#include "io/strict_json.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr const char* kSchema =
    "give {\"DATASET\": {\"LAYER\": [slots of expert 0, 1, ...]}}, or that below a model's name";

/// Whether an object is DATASET -> LAYER -> list.
bool is_datasets(const json& value) {
  return value.is_object() && std::any_of(value.begin(), value.end(), [](const json& dataset) {
           return dataset.is_object() && !dataset.empty() && dataset.begin()->is_array();
         });
}

/// The datasets of one model, and how it is called.
std::pair<std::string, const json*> choose_model(const json& root, const std::string& key, const std::string& file) {
  if (is_datasets(root)) return {std::filesystem::path(file).stem().string(), &root};
  std::string known;
  std::pair<std::string, const json*> chosen{"", nullptr};
  std::size_t models = 0;
  for (const auto& [name, value] : root.items()) {
    if (!is_datasets(value)) continue;
    ++models;
    known.append(known.empty() ? "" : ", ").append(name);
    if (key.empty() || key == name) chosen = {name, &value};
  }
  if (models == 0) throw Error("holds no counts", file, kSchema);
  if (chosen.second == nullptr || (key.empty() && models > 1))
    throw UsageError(key.empty() ? "holds several models" : "holds no model '" + key + "'", file,
                     "give --model-key, one of " + known);
  return chosen;
}

int layer_number(const std::string& text, const std::string& place) {
  int number = -1;
  const auto [rest, fault] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (fault != std::errc() || rest != text.data() + text.size() || number < 0)
    throw Error("layer " + quote_name(text) + " is no number", place, kSchema);
  return number;
}

std::vector<std::uint64_t> read_counts(const json& list, const std::string& place) {
  std::vector<std::uint64_t> counts;
  if (!list.is_array()) throw Error("is no list of counts", place, kSchema);
  for (const json& count : list) {
    if (!count.is_number_unsigned()) throw Error("holds something else than whole numbers from 0 on", place, kSchema);
    counts.push_back(count.get<std::uint64_t>());
  }
  return counts;
}

/// What is not known of any layer.
void set_unknown(Accumulators& sums) {
  for (auto* unknown : {&sums.weight_sum, &sums.probability_sum, &sums.z_sum})
    std::fill(unknown->begin(), unknown->end(), std::numeric_limits<double>::quiet_NaN());
}

}  // namespace

Statistics statistics_of_counts(std::string_view json_text, const std::string& model_key, int top_k,
                                const std::string& file) {
  const json root = parse_strict_json(json_text, file);
  if (!root.is_object()) throw Error("is no JSON object", file, kSchema);
  const auto [model_name, datasets] = choose_model(root, model_key, file);

  Statistics statistics;
  ModelFacts& model = statistics.model;
  model.name = model_name;
  model.family = "counts";
  model.top_k = top_k;
  for (const auto& [name, layers] : datasets->items()) {
    if (!layers.is_object()) continue;
    std::map<int, std::vector<std::uint64_t>> by_layer;
    for (const auto& [layer, list] : layers.items())
      by_layer[layer_number(layer, file)] = read_counts(list, file + ", " + name + ", layer " + layer);
    std::vector<int> numbers;
    for (const auto& [number, counts] : by_layer) numbers.push_back(number);
    if (statistics.datasets.empty()) {
      model.moe_layers = numbers;
      model.n_layers = numbers.empty() ? 0 : numbers.back() + 1;
      model.n_experts = numbers.empty() ? 0 : static_cast<int>(by_layer.begin()->second.size());
      if (model.n_experts < top_k || model.n_experts == 0)
        throw Error("has " + std::to_string(model.n_experts) + " experts for " + std::to_string(top_k) + " choices",
                    file + ", " + name, "check --top-k");
    }
    if (numbers != model.moe_layers) throw Error("has other layers than the datasets before", file + ", " + name);
    Accumulators sums(shape_of(model));
    set_unknown(sums);
    const auto experts = static_cast<std::size_t>(model.n_experts);
    std::size_t l = 0;
    for (const auto& [number, counts] : by_layer) {
      const std::string place = file + ", " + name + ", layer " + std::to_string(number);
      if (counts.size() != experts)
        throw Error("has " + std::to_string(counts.size()) + " experts, others " + std::to_string(experts), place);
      const std::uint64_t slots = std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
      const auto k = static_cast<std::uint64_t>(top_k);
      const std::uint64_t tokens = slots / k;
      if (slots % k != 0 || *std::max_element(counts.begin(), counts.end()) > tokens ||
          (l > 0 && tokens != sums.tokens[0]))
        throw Error(std::to_string(slots) + " slots, which " + std::to_string(top_k) +
                        " different experts for every token, in each layer, do not give",
                    place, "check --top-k");
      sums.tokens[0] = tokens;
      std::copy(counts.begin(), counts.end(),
                sums.slot_count.begin() + static_cast<std::ptrdiff_t>(l * static_cast<std::size_t>(top_k) * experts));
      ++l;
    }
    statistics.datasets.push_back({name, std::move(sums), RankLoad(model.n_moe_layers(), top_k),
                                   RankTime(model.n_moe_layers(), model.n_experts)});
  }
  return statistics;
}

}  // namespace switchyard
