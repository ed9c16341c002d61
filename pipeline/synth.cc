#include "pipeline/synth.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "io/durable.h"
#include "io/safetensors.h"
#include "parallel/error.h"
#include "pipeline/model/family.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr float kWeightDeviation = 0.02F;

/// A run of a tensor's elements, row-major, with one source of values.
struct Piece {
  std::uint64_t stream;  // of random numbers
  std::int64_t elements;
  float deviation;  // 0: all ones
};

struct SynthTensor {
  TensorToWrite declared;
  std::vector<Piece> pieces;
};

std::uint64_t mix(std::uint64_t word) {
  word = (word ^ (word >> 30U)) * 0xbf58476d1ce4e5b9U;
  word = (word ^ (word >> 27U)) * 0x94d049bb133111ebU;
  return word ^ (word >> 31U);
}

/// Of a seed and a role, such as "layers.3.experts.5.w1".
std::uint64_t stream_of(std::uint64_t seed, std::string_view role) {
  std::uint64_t hash = mix(seed + 0x9e3779b97f4a7c15U);
  for (const char letter : role) hash = mix(hash ^ static_cast<unsigned char>(letter));
  return hash;
}

/// The i-th number of a stream, mean 0 and variance 1: four 16-bit uniforms summed, which is exact in integers and the
/// same on every machine, where a logarithm would not be.
float near_normal(std::uint64_t stream, std::uint64_t i) {
  const std::uint64_t bits = mix(stream + i * 0x9e3779b97f4a7c15U);
  const auto sum =
      static_cast<std::int32_t>((bits & 0xffffU) + (bits >> 16U & 0xffffU) + (bits >> 32U & 0xffffU) + (bits >> 48U));
  constexpr float kDeviation = 37837.227F;  // sqrt(4 (65536^2 - 1) / 12)
  return static_cast<float>(sum - 2 * 65535) * (1.0F / kDeviation);
}

template <typename T>
void fill(T* values, const Piece& piece) {
#pragma omp parallel for schedule(static) if (piece.elements > 1 << 16)
  for (std::int64_t i = 0; i < piece.elements; ++i) {
    const float value =
        piece.deviation == 0.0F ? 1.0F : piece.deviation * near_normal(piece.stream, static_cast<std::uint64_t>(i));
    values[i] = T(value);
  }
}

Tensor make_values(const SynthTensor& tensor, DType type) {
  std::int64_t elements = 0;
  for (const Piece& piece : tensor.pieces) elements += piece.elements;
  Tensor values(type, 1, elements);
  std::int64_t first = 0;
  for (const Piece& piece : tensor.pieces) {
    if (type == DType::f32) {
      fill(values.data<float>() + first, piece);
    } else {
      fill(values.data<Bf16>() + first, piece);
    }
    first += piece.elements;
  }
  return values;
}

int dense_layers_of(const SynthSpec& spec, const Family& family) {
  return family.first_moe_layer_key.empty() ? 0 : spec.dense_layers;
}

int shared_experts_of(const SynthSpec& spec, const Family& family) {
  return family.n_shared_experts_key.empty() ? 0 : spec.n_shared_experts;
}

/// The tensors of a model, in the order of a forward pass.
class TensorList {
 public:
  TensorList(const SynthSpec& spec, const Family& family) : spec_(spec), family_(family) {
    add_weight("", family.embedding, "embedding", spec.vocabulary, spec.d_model);
    for (int layer = 0; layer < spec.n_layers; ++layer) add_layer(layer);
    add_norm("", family.final_norm);
    if (!family.tied_embeddings) add_weight("", family.head, "head", spec.vocabulary, spec.d_model);
  }

  std::vector<SynthTensor> take() { return std::move(tensors_); }

 private:
  using Shape = std::vector<std::int64_t>;

  void add_layer(int layer) {
    const std::string role = "layers." + std::to_string(layer) + ".";
    const std::string name = numbered(family_.layer, layer);
    const int heads_width = spec_.n_heads * spec_.head_dim;
    const int kv_width = spec_.n_kv_heads * spec_.head_dim;
    add_norm(name, family_.attention_norm);
    add_weight(name, family_.query, role + "q", heads_width, spec_.d_model);
    add_weight(name, family_.key, role + "k", kv_width, spec_.d_model);
    add_weight(name, family_.value, role + "v", kv_width, spec_.d_model);
    add_weight(name, family_.output, role + "o", spec_.d_model, heads_width);
    add_norm(name, family_.attention_post_norm);
    add_norm(name, family_.ffn_norm);
    add_norm(name, family_.ffn_post_norm);
    if (!family_.routed() || layer < dense_layers_of(spec_, family_)) {
      const int d_ff = spec_.dense_d_ff > 0 ? spec_.dense_d_ff : spec_.d_ff;
      return add_ffn(name + std::string(family_.ffn_prefixes.front()), family_.dense, 0, role + "ffn.", d_ff);
    }
    add_experts(name, role, layer);
  }

  void add_experts(const std::string& name, const std::string& role, int layer) {
    const std::string prefix = name + std::string(ffn_prefix());
    add_router(prefix + std::string(family_.router), role, layer);
    if (spec_.layout == ExpertLayout::fused) {
      add_fused_experts(prefix, role);
    } else {
      for (int expert = 0; expert < spec_.n_experts; ++expert)
        add_ffn(prefix, family_.expert, expert, role + "experts." + std::to_string(expert) + ".", spec_.d_ff);
    }
    const int shared = shared_experts_of(spec_, family_);
    if (shared > 0) add_ffn(prefix, family_.shared, 0, role + "shared.", shared * spec_.d_ff);
  }

  /// Files with fused experts are the newer ones of a family, and have its last prefix.
  std::string_view ffn_prefix() const {
    const bool newer = spec_.layout == ExpertLayout::fused && !family_.ffn_prefixes.back().empty();
    return newer ? family_.ffn_prefixes.back() : family_.ffn_prefixes.front();
  }

  void add_ffn(const std::string& name, const FfnNames& names, int expert, const std::string& role, int d_ff) {
    add_weight(name, numbered(names.gate, expert), role + "w1", d_ff, spec_.d_model);
    add_weight(name, numbered(names.up, expert), role + "w3", d_ff, spec_.d_model);
    add_weight(name, numbered(names.down, expert), role + "w2", spec_.d_model, d_ff);
  }

  void add_fused_experts(const std::string& name, const std::string& role) {
    const std::int64_t experts = spec_.n_experts;
    const std::int64_t d_ff = spec_.d_ff;
    SynthTensor gate_up{{name + std::string(family_.fused_gate_up), Shape{experts, 2 * d_ff, spec_.d_model}}, {}};
    SynthTensor down{{name + std::string(family_.fused_down), Shape{experts, spec_.d_model, d_ff}}, {}};
    for (int expert = 0; expert < spec_.n_experts; ++expert) {
      const std::string part = role + "experts." + std::to_string(expert) + ".";
      gate_up.pieces.push_back(weight_piece(part + "w1", spec_.d_ff, spec_.d_model));
      gate_up.pieces.push_back(weight_piece(part + "w3", spec_.d_ff, spec_.d_model));
      down.pieces.push_back(weight_piece(part + "w2", spec_.d_model, spec_.d_ff));
    }
    tensors_.push_back(std::move(gate_up));
    tensors_.push_back(std::move(down));
  }

  void add_router(const std::string& name, const std::string& role, int layer) {
    SynthTensor router{{name, Shape{spec_.n_experts, spec_.d_model}}, {}};
    for (int expert = 0; expert < spec_.n_experts; ++expert) {
      const auto rank = static_cast<float>((expert + layer) % spec_.n_experts);
      const float spread = 0.5F + 1.5F * rank / static_cast<float>(std::max(spec_.n_experts - 1, 1));
      router.pieces.push_back({stream_of(spec_.seed, role + "router." + std::to_string(expert)), spec_.d_model,
                               spread / std::sqrt(static_cast<float>(spec_.d_model))});
    }
    tensors_.push_back(std::move(router));
  }

  /// name is empty where the family has no such norm.
  void add_norm(const std::string& prefix, std::string_view name) {
    if (name.empty()) return;
    tensors_.push_back({{prefix + std::string(name), Shape{spec_.d_model}}, {{0, spec_.d_model, 0.0F}}});
  }

  void add_weight(const std::string& prefix, std::string_view name, const std::string& role, int rows, int cols) {
    tensors_.push_back({{prefix + std::string(name), Shape{rows, cols}}, {weight_piece(role, rows, cols)}});
  }

  Piece weight_piece(const std::string& role, int rows, int cols) const {
    return {stream_of(spec_.seed, role), std::int64_t{rows} * cols, kWeightDeviation};
  }

  const SynthSpec& spec_;
  const Family& family_;
  std::vector<SynthTensor> tensors_;
};

void require(bool holds, const std::string& what) {
  if (!holds) throw UsageError(what);
}

const Family& family_of(const SynthSpec& spec) {
  const auto found = std::ranges::find(families(), spec.family, &Family::model_type);
  require(found != families().end(), "family '" + spec.family + "' is not known: choose of " + known_families());
  return **found;
}

void check(const SynthSpec& spec, const Family& family) {
  const std::pair<const char*, int> positive[] = {
      {"n_layers", spec.n_layers},     {"d_model", spec.d_model},       {"d_ff", spec.d_ff},
      {"n_heads", spec.n_heads},       {"n_kv_heads", spec.n_kv_heads}, {"head_dim", spec.head_dim},
      {"vocabulary", spec.vocabulary}, {"shards", spec.shards},         {"max_positions", spec.max_positions}};
  for (const auto& [name, value] : positive) {
    require(value > 0, std::string(name) + " must be at least 1, not " + std::to_string(value));
  }
  require(spec.sliding_window >= 0, "sliding_window must be at least 0, not " + std::to_string(spec.sliding_window));
  require(spec.n_heads % spec.n_kv_heads == 0, "n_heads (" + std::to_string(spec.n_heads) +
                                                   ") must be a multiple of n_kv_heads (" +
                                                   std::to_string(spec.n_kv_heads) + ")");
  require(spec.head_dim % 2 == 0, "head_dim must be even, not " + std::to_string(spec.head_dim));
  require(spec.dense_d_ff >= 0, "dense_d_ff must be at least 0, not " + std::to_string(spec.dense_d_ff));
  const int dense_layers = dense_layers_of(spec, family);
  require(dense_layers >= 0 && dense_layers < spec.n_layers,
          "dense_layers must be from 0 to n_layers - 1, not " + std::to_string(dense_layers));
  require(shared_experts_of(spec, family) >= 0,
          "n_shared_experts must be at least 0, not " + std::to_string(spec.n_shared_experts));
  require(!family.routed() || spec.layout == ExpertLayout::per_expert || !family.fused_gate_up.empty(),
          "family '" + spec.family + "' has no fused layout");
  require(
      !family.routed() || (spec.top_k >= 1 && spec.top_k <= spec.n_experts),
      "top_k must be from 1 to n_experts (" + std::to_string(spec.n_experts) + "), not " + std::to_string(spec.top_k));
}

/// Sets a key that the family has.
template <typename Value>
void set(nlohmann::ordered_json& config, std::string_view key, const Value& value) {
  if (!key.empty()) config[std::string(key)] = value;
}

/// Scales as Grok-1 chose them, of which two go with the sizes.
void set_scales(nlohmann::ordered_json& config, const SynthSpec& spec, const Family& family) {
  set(config, family.embedding_scale_key, std::sqrt(static_cast<double>(spec.d_model)));
  set(config, family.logit_scale_key, 1 / std::sqrt(3.0));
  set(config, family.attention_scale_key, 1 / std::sqrt(static_cast<double>(spec.head_dim)));
  set(config, family.attention_softcap_key, 30.0);
}

nlohmann::ordered_json compose_config(const SynthSpec& spec, const Family& family) {
  nlohmann::ordered_json config = {{"architectures", {family.architecture}},
                                   {"model_type", family.model_type},
                                   {"attention_dropout", 0.0},
                                   {"bos_token_id", 1},
                                   {"eos_token_id", 2}};
  for (const OnlyValue& only : family.only)
    if (!only.key.empty()) config[std::string(only.key)] = nlohmann::json::parse(only.value);
  config["hidden_size"] = spec.d_model;
  config["initializer_range"] = 0.02;
  set(config, family.dense_d_ff_key, spec.dense_d_ff > 0 ? spec.dense_d_ff : spec.d_ff);
  set(config, family.d_ff_key, spec.d_ff);
  config["max_position_embeddings"] = spec.max_positions;
  config["num_attention_heads"] = spec.n_heads;
  config["num_key_value_heads"] = spec.n_kv_heads;
  config["head_dim"] = spec.head_dim;
  config["num_hidden_layers"] = spec.n_layers;
  config["rms_norm_eps"] = 1e-5;
  config["rope_theta"] = 10000.0;
  config["sliding_window"] = nullptr;
  if (spec.sliding_window > 0) config["sliding_window"] = spec.sliding_window;
  config["tie_word_embeddings"] = family.tied_embeddings;
  config["torch_dtype"] = spec.dtype == DType::f32 ? "float32" : "bfloat16";
  config["use_cache"] = true;
  config["vocab_size"] = spec.vocabulary;
  set_scales(config, spec, family);
  if (!family.routed()) return config;
  set(config, family.n_experts_key, spec.n_experts);
  set(config, family.top_k_key, spec.top_k);
  set(config, family.n_shared_experts_key, spec.n_shared_experts);
  set(config, family.first_moe_layer_key, spec.dense_layers);
  set(config, family.moe_layer_step_key, 1);
  set(config, family.renormalise_key, family.renormalise);
  config["output_router_logits"] = false;
  config["router_aux_loss_coef"] = 0.02;
  return config;
}

std::int64_t elements_of(const SynthTensor& tensor) {
  return std::accumulate(tensor.declared.shape.begin(), tensor.declared.shape.end(), std::int64_t{1},
                         std::multiplies<>());
}

/// First tensor of each shard, and the number of tensors: runs of about equal bytes, none empty.
std::vector<std::size_t> cut_into_shards(const std::vector<SynthTensor>& tensors, int shards) {
  const auto n = static_cast<std::size_t>(shards);
  require(n <= tensors.size(), "shards must be at most the model's " + std::to_string(tensors.size()) + " tensors");
  double total = 0;
  for (const SynthTensor& tensor : tensors) total += static_cast<double>(elements_of(tensor));
  std::vector<std::size_t> cuts = {0};
  double before = 0;
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    const std::size_t open = n - cuts.size();  // shards yet to begin
    const bool full = before >= total * static_cast<double>(cuts.size()) / static_cast<double>(n);
    if (open > 0 && t > cuts.back() && (full || tensors.size() - t == open)) cuts.push_back(t);
    before += static_cast<double>(elements_of(tensors[t]));
  }
  cuts.push_back(tensors.size());
  return cuts;
}

std::string shard_name(std::size_t shard, std::size_t shards) {
  if (shards == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", shard + 1, shards);
  return name;
}

void write_shard(const fs::path& path, DType type, std::span<const SynthTensor> tensors) {
  std::vector<TensorToWrite> declared;
  for (const SynthTensor& tensor : tensors) declared.push_back(tensor.declared);
  std::size_t next = 0;
  write_safetensors(path, type, declared, [&](const TensorToWrite&) { return make_values(tensors[next++], type); });
}

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text << '\n';
  out.close();
  if (!out) throw Error("cannot write", path.string());
}

void make_empty_folder(const fs::path& folder) {
  make_folder(folder);
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const fs::path name = entry.path().filename();
    if (name == "config.json" || name.extension() == ".safetensors" || name == "model.safetensors.index.json") {
      throw Error("already holds " + name.string(), folder.string(), "name another folder, or remove this one");
    }
  }
}

}  // namespace

void synthesize_checkpoint(const fs::path& folder, const SynthSpec& spec) {
  const Family& family = family_of(spec);
  check(spec, family);
  const std::vector<SynthTensor> tensors = TensorList(spec, family).take();
  const std::vector<std::size_t> cuts = cut_into_shards(tensors, spec.shards);
  make_empty_folder(folder);

  const std::size_t shards = cuts.size() - 1;
  nlohmann::json weight_map;
  std::int64_t bytes = 0;
  for (std::size_t shard = 0; shard < shards; ++shard) {
    const auto part = std::span(tensors).subspan(cuts[shard], cuts[shard + 1] - cuts[shard]);
    write_shard(folder / shard_name(shard, shards), spec.dtype, part);
    for (const SynthTensor& tensor : part) {
      weight_map[tensor.declared.name] = shard_name(shard, shards);
      bytes += elements_of(tensor) * size_of(spec.dtype);
    }
  }
  if (shards > 1) {
    const nlohmann::json index = {{"metadata", {{"total_size", bytes}}}, {"weight_map", std::move(weight_map)}};
    write_text(folder / "model.safetensors.index.json", index.dump(2));
  }
  write_text(folder / "config.json", compose_config(spec, family).dump(2));
}

}  // namespace switchyard
