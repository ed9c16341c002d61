#include "pipeline/model/model_config.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "io/strict_json.h"
#include "parallel/error.h"
#include "pipeline/model/family.h"

namespace switchyard {

namespace {

constexpr int kMostLayers = 10'000;
constexpr int kLargestSize = 1 << 22;
constexpr int kMostPositions = 1 << 28;
constexpr int kMostExperts = 65'534;  // ids are recorded in 16 bits, and one value means "never written"

/// config.json, whose keys are checked as they are read.
class ConfigReader {
 public:
  ConfigReader(const nlohmann::json& json, const std::string& where) : json_(json), where_(where) {}

  bool has(std::string_view key) const { return json_.contains(key) && !json_.at(std::string(key)).is_null(); }

  int integer(std::string_view key, int least, int most) const {
    const nlohmann::json& value = find(key);
    if (!value.is_number_integer()) fail(key, "is not an integer");
    // Beyond 64 bits the parser gives a double, beyond 63 an unsigned value that would wrap.
    const bool large = value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(most);
    if (large || value.get<std::int64_t>() < least || value.get<std::int64_t>() > most) {
      fail(key, "is " + value.dump() + ", not within " + std::to_string(least) + " to " + std::to_string(most));
    }
    return value.get<int>();
  }

  int integer_or(std::string_view key, int otherwise, int least, int most) const {
    return has(key) ? integer(key, least, most) : otherwise;
  }

  float positive(std::string_view key) const {
    const nlohmann::json& value = find(key);
    if (!value.is_number()) fail(key, "is not a number");
    const auto number = value.get<float>();
    if (!(number > 0) || !std::isfinite(number)) fail(key, "is " + value.dump() + ", not a positive number");
    return number;
  }

  bool flag_or(std::string_view key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!find(key).is_boolean()) fail(key, "is neither true nor false");
    return find(key).get<bool>();
  }

  std::string text(std::string_view key) const {
    if (!find(key).is_string()) fail(key, "is not a string");
    return find(key).get<std::string>();
  }

  ConfigReader object(std::string_view key) const {
    if (!find(key).is_object()) fail(key, "is not an object");
    return {find(key), where_ + ": " + std::string(key)};
  }

  [[noreturn]] void fail(std::string_view key, const std::string& what) const {
    throw Error("\"" + std::string(key) + "\" " + what, where_);
  }

 private:
  const nlohmann::json& find(std::string_view key) const {
    if (!has(key)) fail(key, "is missing");
    return json_.at(std::string(key));
  }

  const nlohmann::json& json_;
  std::string where_;
};

/// The base of rotary embeddings: at the top level in older files, in "rope_parameters" in newer ones.
float read_rope_theta(const ConfigReader& config) {
  for (const std::string_view key : {"rope_parameters", "rope_scaling"}) {
    if (!config.has(key)) continue;
    const ConfigReader rope = config.object(key);
    const std::string_view type_key = rope.has("rope_type") ? "rope_type" : "type";
    if (rope.has(type_key) && rope.text(type_key) != "default") {
      rope.fail(type_key, "is \"" + rope.text(type_key) + "\", and only \"default\" can be run");
    }
    if (rope.has("rope_theta")) return rope.positive("rope_theta");
  }
  return config.positive("rope_theta");
}

}  // namespace

ModelConfig ModelConfig::parse(std::string_view config_text, const std::string& where) {
  const nlohmann::json json = parse_strict_json(config_text, where);
  if (!json.is_object()) throw Error("not a JSON object", where);
  const ConfigReader reader(json, where);
  const Family& family = find_family(reader.text("model_type"), where);

  ModelConfig config;
  config.family = family.model_type;
  config.n_layers = reader.integer("num_hidden_layers", 1, kMostLayers);
  config.d_model = reader.integer("hidden_size", 1, kLargestSize);
  config.d_ff = reader.integer(family.d_ff_key, 1, kLargestSize);
  config.n_heads = reader.integer("num_attention_heads", 1, kLargestSize);
  config.n_kv_heads = reader.integer_or("num_key_value_heads", config.n_heads, 1, config.n_heads);
  if (config.n_heads % config.n_kv_heads != 0) {
    reader.fail("num_key_value_heads", "does not divide \"num_attention_heads\"");
  }
  if (!reader.has("head_dim") && config.d_model % config.n_heads != 0) {
    reader.fail("head_dim", "is missing, and \"num_attention_heads\" does not divide \"hidden_size\"");
  }
  config.head_dim = reader.integer_or("head_dim", config.d_model / config.n_heads, 1, 1 << 14);
  if (config.head_dim % 2 != 0) reader.fail("head_dim", "is odd, which rotary embeddings cannot pair");
  config.vocabulary = reader.integer("vocab_size", 1, kLargestSize);
  if (family.routed()) {
    config.n_experts = reader.integer(family.n_experts_key, 1, kMostExperts);
    config.top_k = reader.integer(family.top_k_key, 1, config.n_experts);
    config.moe_layers.resize(static_cast<std::size_t>(config.n_layers));
    std::iota(config.moe_layers.begin(), config.moe_layers.end(), 0);
  }
  config.norm_epsilon = reader.positive("rms_norm_eps");
  config.rope_theta = read_rope_theta(reader);
  config.max_positions = reader.integer("max_position_embeddings", 1, kMostPositions);
  config.sliding_window = reader.integer_or("sliding_window", 0, 1, kMostPositions);
  config.tied_embeddings = reader.flag_or("tie_word_embeddings", false);
  if (reader.has("hidden_act") && reader.text("hidden_act") != "silu") {
    reader.fail("hidden_act", "is \"" + reader.text("hidden_act") + "\", and only \"silu\" can be run");
  }
  return config;
}

ModelFacts ModelConfig::facts(const std::string& name) const {
  ModelFacts facts;
  facts.family = family;
  facts.name = name;
  facts.n_layers = n_layers;
  facts.d_model = d_model;
  facts.vocabulary = vocabulary;
  facts.moe_layers = moe_layers;
  facts.n_experts = n_experts;
  facts.top_k = top_k;
  facts.renormalised = renormalise;
  return facts;
}

}  // namespace switchyard
