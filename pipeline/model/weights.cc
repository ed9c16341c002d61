#include "pipeline/model/weights.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <string>

#include "parallel/error.h"
#include "pipeline/model/family.h"

namespace switchyard {

namespace {

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const std::int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

/// Stacks matrices of equal width.
Tensor stack(std::initializer_list<const Tensor*> parts) {
  std::int64_t rows = 0;
  for (const Tensor* part : parts) rows += part->rows();
  Tensor all((*parts.begin())->dtype(), rows, (*parts.begin())->cols());
  std::byte* to = all.bytes();
  for (const Tensor* part : parts) {
    const auto bytes = static_cast<std::size_t>(part->rows() * part->row_bytes());
    std::memcpy(to, part->bytes(), bytes);
    to += bytes;
  }
  return all;
}

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const ModelConfig& config, DType type)
      : checkpoint_(checkpoint),
        config_(config),
        family_(find_family(config.family, checkpoint.folder().string())),
        type_(type) {}

  Tensor embedding() const { return matrix(family_.embedding, config_.vocabulary, config_.d_model); }
  std::vector<float> final_norm() const { return norm(family_.final_norm); }
  PackedWeights head() const {
    const std::string_view name = config_.tied_embeddings ? family_.embedding : family_.head;
    return PackedWeights(matrix(name, config_.vocabulary, config_.d_model));
  }

  /// local_experts: what this rank holds of the layer's experts; not looked at when the family is dense.
  Layer layer(int index, std::span<const std::int32_t> local_experts) const {
    const std::string prefix = numbered(family_.layer, index);
    const std::string ffn = ffn_prefix(prefix);
    Layer layer{.attention_norm = norm(prefix + std::string(family_.attention_norm)),
                .qkv = qkv(prefix),
                .output = PackedWeights(matrix(prefix + std::string(family_.output), config_.d_model, width())),
                .ffn_norm = norm(prefix + std::string(family_.ffn_norm)),
                .router = std::nullopt,
                .ffns = {}};
    if (!family_.routed()) {
      layer.ffns.push_back(gated_ffn(ffn, family_.dense, 0));
      return layer;
    }
    layer.router = to_tensor(find(ffn + std::string(family_.router), {config_.n_experts, config_.d_model}), DType::f32);
    const bool fused = checkpoint_.contains(ffn + std::string(family_.fused_gate_up));
    for (const int expert : local_experts) {
      layer.ffns.push_back(fused ? fused_expert(ffn, expert) : gated_ffn(ffn, family_.expert, expert));
    }
    return layer;
  }

 private:
  std::int64_t width() const { return static_cast<std::int64_t>(config_.n_heads) * config_.head_dim; }

  /// The prefix that this file uses: the one whose router, or dense gate, is there.
  std::string ffn_prefix(const std::string& layer) const {
    const std::string_view first = family_.routed() ? family_.router : family_.dense.gate;
    for (const std::string_view prefix : family_.ffn_prefixes) {
      std::string candidate = layer + std::string(prefix);
      if (checkpoint_.contains(candidate + std::string(first))) return candidate;
    }
    return layer + std::string(family_.ffn_prefixes.front());
  }

  const StoredTensor& find(std::string_view name, const std::vector<std::int64_t>& shape) const {
    const StoredTensor& stored = checkpoint_.tensor(name);
    if (stored.shape != shape) {
      throw Error("tensor " + std::string(name) + " is " + shape_text(stored.shape) + ", but config.json makes it " +
                      shape_text(shape),
                  checkpoint_.folder().string(), "config.json and the safetensors files belong to different models");
    }
    return stored;
  }

  Tensor matrix(std::string_view name, std::int64_t rows, std::int64_t cols) const {
    return to_tensor(find(name, {rows, cols}), type_);
  }

  std::vector<float> norm(std::string_view name) const {
    const Tensor values = to_tensor(find(name, {config_.d_model}), DType::f32);
    return {values.data<float>(), values.data<float>() + config_.d_model};
  }

  PackedWeights qkv(const std::string& prefix) const {
    const std::int64_t kv_width = static_cast<std::int64_t>(config_.n_kv_heads) * config_.head_dim;
    const Tensor q = matrix(prefix + std::string(family_.query), width(), config_.d_model);
    const Tensor k = matrix(prefix + std::string(family_.key), kv_width, config_.d_model);
    const Tensor v = matrix(prefix + std::string(family_.value), kv_width, config_.d_model);
    return PackedWeights(stack({&q, &k, &v}));
  }

  GatedFfn gated_ffn(const std::string& prefix, const FfnNames& names, int expert) const {
    return {matrix(prefix + numbered(names.gate, expert), config_.d_ff, config_.d_model),
            matrix(prefix + numbered(names.up, expert), config_.d_ff, config_.d_model),
            matrix(prefix + numbered(names.down, expert), config_.d_model, config_.d_ff)};
  }

  GatedFfn fused_expert(const std::string& prefix, std::int64_t expert) const {
    const std::int64_t experts = config_.n_experts;
    const std::int64_t d = config_.d_model;
    const std::int64_t f = config_.d_ff;
    const StoredTensor& gate_up = find(prefix + std::string(family_.fused_gate_up), {experts, 2 * f, d});
    const StoredTensor& down = find(prefix + std::string(family_.fused_down), {experts, d, f});
    return {to_tensor(gate_up, type_, expert * 2 * f, expert * 2 * f + f),
            to_tensor(gate_up, type_, expert * 2 * f + f, (expert + 1) * 2 * f),
            to_tensor(down, type_, expert * d, (expert + 1) * d)};
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const Family& family_;
  DType type_;
};

}  // namespace

Weights load_weights(const Checkpoint& checkpoint, const ModelConfig& config, const ExpertPlacement& placement,
                     int rank, DType type) {
  const Loader loader(checkpoint, config, type);
  Weights weights{
      .embedding = loader.embedding(), .layers = {}, .final_norm = loader.final_norm(), .head = loader.head()};
  for (int index = 0; index < config.n_layers; ++index) {
    const auto local = config.n_experts > 0 ? placement.layer(index).experts_of(rank) : std::span<const std::int32_t>();
    weights.layers.push_back(loader.layer(index, local));
  }
  return weights;
}

}  // namespace switchyard
