#include "pipeline/model/weights.h"

#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "pipeline/model/checkpoint_tensors.h"

namespace switchyard {

namespace {

template <typename... Parts>
std::vector<Tensor> list_of(Parts... parts) {
  std::vector<Tensor> list;
  (list.push_back(std::move(parts)), ...);
  return list;
}

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const ModelConfig& config, Backend& backend,
         const std::function<void(std::uint64_t)>& on_bytes)
      : tensors_(checkpoint, config, backend.type(), backend.staging()),
        config_(config),
        family_(tensors_.family()),
        backend_(backend),
        on_bytes_(on_bytes) {}

  std::unique_ptr<Embedding> embedding() {
    return backend_.make_embedding(matrix(family_.embedding, config_.vocabulary, config_.d_model));
  }
  // The head is linear: a scale of the logits is one of what enters it, and here it costs nothing.
  std::unique_ptr<Norm> final_norm() {
    std::vector<float> norm = tensors_.norm(family_.final_norm);
    for (float& weight : norm) weight *= config_.logit_scale;
    return backend_.make_norm(std::move(norm));
  }
  std::unique_ptr<Head> head() {
    const std::string_view name = config_.tied_embeddings ? family_.embedding : family_.head;
    return backend_.make_head(matrix(name, config_.vocabulary, config_.d_model));
  }

  Layer attention(int index) {
    const std::string prefix = tensors_.layer_prefix(index);
    return {
        .index = index,
        .moe_layer = -1,
        .attention_norm = norm(prefix, family_.attention_norm),
        .qkv = qkv(prefix),
        .output = backend_.make_matrix(list_of(matrix(prefix + std::string(family_.output), config_.d_model, width()))),
        .attention_post_norm = norm(prefix, family_.attention_post_norm),
        .ffn_norm = norm(prefix, family_.ffn_norm),
        .ffn_post_norm = norm(prefix, family_.ffn_post_norm),
        .router = nullptr,
        .experts = nullptr,
        .shared = nullptr,
        .dense = nullptr};
  }

  void add_dense(Layer& layer) { layer.dense = backend_.make_feed_forward(counted(tensors_.dense(layer.index))); }

  void add_experts(Layer& layer, int moe_layer, std::span<const std::int32_t> local_experts) {
    layer.moe_layer = moe_layer;
    layer.router = backend_.make_router(counted(tensors_.router(layer.index)));
    if (config_.shared_d_ff > 0) layer.shared = backend_.make_feed_forward(counted(tensors_.shared(layer.index)));
    layer.experts = backend_.make_experts(static_cast<std::int64_t>(local_experts.size()));
    for (const int expert : local_experts) layer.experts->add(counted(tensors_.expert(layer.index, expert)));
  }

 private:
  std::int64_t width() const { return static_cast<std::int64_t>(config_.n_heads) * config_.head_dim; }

  /// The same, once its bytes are told of.
  Tensor counted(Tensor tensor) {
    bytes_ += static_cast<std::uint64_t>(tensor.rows() * tensor.row_bytes());
    if (on_bytes_) on_bytes_(bytes_);
    return tensor;
  }
  FfnTensors counted(FfnTensors block) {
    return {counted(std::move(block.gate)), counted(std::move(block.up)), counted(std::move(block.down))};
  }

  Tensor matrix(std::string_view name, std::int64_t rows, std::int64_t cols) {
    return counted(tensors_.matrix(name, rows, cols));
  }

  std::unique_ptr<Matrix> qkv(const std::string& prefix) {
    const std::int64_t kv_width = static_cast<std::int64_t>(config_.n_kv_heads) * config_.head_dim;
    return backend_.make_matrix(list_of(matrix(prefix + std::string(family_.query), width(), config_.d_model),
                                        matrix(prefix + std::string(family_.key), kv_width, config_.d_model),
                                        matrix(prefix + std::string(family_.value), kv_width, config_.d_model)));
  }

  /// None where the family has none.
  std::unique_ptr<Norm> norm(const std::string& prefix, std::string_view name) const {
    return name.empty() ? nullptr : backend_.make_norm(tensors_.norm(prefix + std::string(name)));
  }

  CheckpointTensors tensors_;
  const ModelConfig& config_;
  const Family& family_;
  Backend& backend_;
  const std::function<void(std::uint64_t)>& on_bytes_;
  std::uint64_t bytes_ = 0;
};

}  // namespace

Weights load_weights(const Checkpoint& checkpoint, const ModelConfig& config, const ExpertPlacement& placement,
                     int rank, Backend& backend, const std::function<void(std::uint64_t)>& on_bytes) {
  Loader loader(checkpoint, config, backend, on_bytes);
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
  backend.loaded();
  return weights;
}

}  // namespace switchyard
