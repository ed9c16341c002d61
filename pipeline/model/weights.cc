#include "pipeline/model/weights.h"

#include <cstring>
#include <initializer_list>
#include <string>
#include <utility>

#include "pipeline/model/checkpoint_tensors.h"

namespace switchyard {

namespace {

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
      : tensors_(checkpoint, config, type), config_(config), family_(tensors_.family()) {}

  Tensor embedding() const { return tensors_.matrix(family_.embedding, config_.vocabulary, config_.d_model); }
  // The head is linear: a scale of the logits is one of what enters it, and here it costs nothing.
  std::vector<float> final_norm() const {
    std::vector<float> norm = tensors_.norm(family_.final_norm);
    for (float& weight : norm) weight *= config_.logit_scale;
    return norm;
  }
  PackedWeights head() const {
    const std::string_view name = config_.tied_embeddings ? family_.embedding : family_.head;
    return PackedWeights(tensors_.matrix(name, config_.vocabulary, config_.d_model));
  }

  Layer attention(int index) const {
    const std::string prefix = tensors_.layer_prefix(index);
    return {.index = index,
            .moe_layer = -1,
            .attention_norm = tensors_.norm(prefix + std::string(family_.attention_norm)),
            .qkv = qkv(prefix),
            .output = PackedWeights(tensors_.matrix(prefix + std::string(family_.output), config_.d_model, width())),
            .attention_post_norm = optional_norm(prefix, family_.attention_post_norm),
            .ffn_norm = tensors_.norm(prefix + std::string(family_.ffn_norm)),
            .ffn_post_norm = optional_norm(prefix, family_.ffn_post_norm),
            .router = std::nullopt,
            .shared = std::nullopt,
            .ffns = {}};
  }

  void add_dense(Layer& layer) const { layer.ffns.push_back(pack(tensors_.dense(layer.index))); }

  void add_experts(Layer& layer, int moe_layer, std::span<const std::int32_t> local_experts) const {
    layer.moe_layer = moe_layer;
    layer.router = tensors_.router(layer.index);
    if (config_.shared_d_ff > 0) layer.shared = pack(tensors_.shared(layer.index));
    for (const int expert : local_experts) layer.ffns.push_back(pack(tensors_.expert(layer.index, expert)));
  }

 private:
  std::int64_t width() const { return static_cast<std::int64_t>(config_.n_heads) * config_.head_dim; }

  PackedWeights qkv(const std::string& prefix) const {
    const std::int64_t kv_width = static_cast<std::int64_t>(config_.n_kv_heads) * config_.head_dim;
    const Tensor q = tensors_.matrix(prefix + std::string(family_.query), width(), config_.d_model);
    const Tensor k = tensors_.matrix(prefix + std::string(family_.key), kv_width, config_.d_model);
    const Tensor v = tensors_.matrix(prefix + std::string(family_.value), kv_width, config_.d_model);
    return PackedWeights(stack({&q, &k, &v}));
  }

  std::vector<float> optional_norm(const std::string& prefix, std::string_view name) const {
    return name.empty() ? std::vector<float>() : tensors_.norm(prefix + std::string(name));
  }

  GatedFfn pack(const FfnTensors& ffn) const { return {ffn.gate, ffn.up, ffn.down, config_.activation}; }

  CheckpointTensors tensors_;
  const ModelConfig& config_;
  const Family& family_;
};

}  // namespace

Weights load_weights(const Checkpoint& checkpoint, const ModelConfig& config, const ExpertPlacement& placement,
                     int rank, DType type) {
  const Loader loader(checkpoint, config, type);
  Weights weights{
      .embedding = loader.embedding(), .layers = {}, .final_norm = loader.final_norm(), .head = loader.head()};
  int moe_layer = 0;
  for (int index = 0; index < config.n_layers; ++index) {
    Layer layer = loader.attention(index);
    if (config.is_moe(index)) {
      loader.add_experts(layer, moe_layer, placement.layer(moe_layer).experts_of(rank));
      ++moe_layer;
    } else {
      loader.add_dense(layer);
    }
    weights.layers.push_back(std::move(layer));
  }
  return weights;
}

}  // namespace switchyard
