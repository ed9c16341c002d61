#include "pipeline/model/model_config.h"

#include <cmath>
#include <nlohmann/json.hpp>

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

  float positive_or(std::string_view key, float otherwise) const { return has(key) ? positive(key) : otherwise; }

  /// Refuses any other value than this JSON text.
  void allow_only(const OnlyValue& only) const {
    if (!has(only.key) || find(only.key) == nlohmann::json::parse(only.value)) return;
    fail(only.key, "is " + find(only.key).dump() + ", and only " + std::string(only.value) + " can be run");
  }

  bool flag_or(std::string_view key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!find(key).is_boolean()) fail(key, "is neither true nor false");
    return find(key).get<bool>();
  }

  /// One token id or a list of them, those of the vocabulary; none where there is no key.
  std::vector<std::uint32_t> token_ids(std::string_view key, int vocabulary) const {
    std::vector<std::uint32_t> ids;
    if (!has(key)) return ids;
    const nlohmann::json& value = find(key);
    for (const nlohmann::json& id : value.is_array() ? value : nlohmann::json::array({value})) {
      if (!id.is_number_integer()) fail(key, "is " + value.dump() + ", not a token id or a list of them");
      if (id.get<std::int64_t>() >= 0 && id.get<std::int64_t>() < vocabulary) ids.push_back(id.get<std::uint32_t>());
    }
    return ids;
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

/// The base of rotary embeddings: at the top level in older files, in "rope_parameters" in newer ones, or the family's.
float read_rope_theta(const ConfigReader& config, const Family& family) {
  for (const std::string_view key : {"rope_parameters", "rope_scaling"}) {
    if (!config.has(key)) continue;
    const ConfigReader rope = config.object(key);
    const std::string_view type_key = rope.has("rope_type") ? "rope_type" : "type";
    if (rope.has(type_key) && rope.text(type_key) != "default") {
      rope.fail(type_key, "is \"" + rope.text(type_key) + "\", and only \"default\" can be run");
    }
    if (rope.has("rope_theta")) return rope.positive("rope_theta");
  }
  return family.rope_theta > 0 ? config.positive_or("rope_theta", family.rope_theta) : config.positive("rope_theta");
}

std::vector<int> read_moe_layers(const ConfigReader& config, const Family& family, int n_layers) {
  if (!family.routed()) return {};
  const int first = config.integer_or(family.first_moe_layer_key, 0, 0, n_layers);
  const int step = config.integer_or(family.moe_layer_step_key, 1, 1, kMostLayers);
  std::vector<int> layers;
  for (int layer = first; layer < n_layers; ++layer)
    if (layer % step == 0) layers.push_back(layer);
  return layers;
}

void read_experts(const ConfigReader& reader, const Family& family, ModelConfig& config) {
  config.d_ff = reader.integer(family.d_ff_key, 1, kLargestSize);
  config.n_experts = reader.integer(family.n_experts_key, 1, kMostExperts);
  config.top_k = reader.integer(family.top_k_key, 1, config.n_experts);
  config.renormalise = reader.flag_or(family.renormalise_key, family.renormalise);
  config.shared_d_ff = config.d_ff * reader.integer_or(family.n_shared_experts_key, 0, 0, kLargestSize / config.d_ff);
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
  config.moe_layers = read_moe_layers(reader, family, config.n_layers);
  if (config.n_moe_layers() > 0) read_experts(reader, family, config);
  if (config.n_moe_layers() < config.n_layers) {
    config.dense_d_ff = reader.integer(family.dense_d_ff_key, 1, kLargestSize);
  }
  config.norm_epsilon = reader.positive("rms_norm_eps");
  config.rope_theta = read_rope_theta(reader, family);
  config.max_positions = reader.integer("max_position_embeddings", 1, kMostPositions);
  config.sliding_window = reader.integer_or("sliding_window", 0, 1, kMostPositions);
  config.tied_embeddings = reader.flag_or("tie_word_embeddings", family.tied_embeddings);
  config.embedding_scale = reader.positive_or(family.embedding_scale_key, 1);
  config.logit_scale = reader.positive_or(family.logit_scale_key, 1);
  config.attention_scale = reader.positive_or(family.attention_scale_key, 0);
  config.attention_softcap = reader.positive_or(family.attention_softcap_key, 0);
  config.end_tokens = reader.token_ids("eos_token_id", config.vocabulary);
  config.activation = family.activation;
  for (const OnlyValue& only : family.only) reader.allow_only(only);
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
