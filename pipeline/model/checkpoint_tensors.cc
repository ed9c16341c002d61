#include "pipeline/model/checkpoint_tensors.h"

#include "parallel/error.h"

namespace switchyard {

namespace {

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const std::int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

}  // namespace

CheckpointTensors::CheckpointTensors(const Checkpoint& checkpoint, const ModelConfig& config, DType type, Device memory)
    : checkpoint_(checkpoint),
      config_(config),
      family_(find_family(config.family, checkpoint.folder().string())),
      type_(type),
      memory_(memory) {}

std::string CheckpointTensors::layer_prefix(int layer) const { return numbered(family_.layer, layer); }

// Files of one family differ: the prefix is the one whose router, or dense gate, is there.
std::string CheckpointTensors::ffn_prefix(int layer) const {
  const std::string prefix = layer_prefix(layer);
  const std::string_view first = config_.is_moe(layer) ? family_.router : family_.dense.gate;
  for (const std::string_view tried : family_.ffn_prefixes) {
    std::string candidate = prefix + std::string(tried);
    if (checkpoint_.contains(candidate + std::string(first))) return candidate;
  }
  return prefix + std::string(family_.ffn_prefixes.front());
}

const StoredTensor& CheckpointTensors::find(std::string_view name, const std::vector<std::int64_t>& shape) const {
  const StoredTensor& stored = checkpoint_.tensor(name);
  if (stored.shape != shape) {
    throw Error("tensor " + std::string(name) + " is " + shape_text(stored.shape) + ", but config.json makes it " +
                    shape_text(shape),
                checkpoint_.folder().string(), "config.json and the safetensors files belong to different models");
  }
  return stored;
}

Tensor CheckpointTensors::matrix(std::string_view name, std::int64_t rows, std::int64_t cols) const {
  return to_tensor(find(name, {rows, cols}), type_, memory_);
}

std::vector<float> CheckpointTensors::norm(std::string_view name) const {
  const Tensor values = to_tensor(find(name, {config_.d_model}), DType::f32);
  return {values.data<float>(), values.data<float>() + config_.d_model};
}

Tensor CheckpointTensors::router(int layer) const {
  return to_tensor(find(ffn_prefix(layer) + std::string(family_.router), {config_.n_experts, config_.d_model}),
                   DType::f32, memory_);
}

FfnTensors CheckpointTensors::expert(int layer, int expert) const {
  const std::string prefix = ffn_prefix(layer);
  const bool fused = checkpoint_.contains(prefix + std::string(family_.fused_gate_up));
  return fused ? fused_expert(prefix, expert) : ffn(prefix, family_.expert, config_.d_ff, expert);
}

FfnTensors CheckpointTensors::shared(int layer) const {
  return ffn(ffn_prefix(layer), family_.shared, config_.shared_d_ff);
}

FfnTensors CheckpointTensors::dense(int layer) const {
  return ffn(ffn_prefix(layer), family_.dense, config_.dense_d_ff);
}

FfnTensors CheckpointTensors::ffn(const std::string& prefix, const FfnNames& names, int d_ff, int expert) const {
  return {matrix(prefix + numbered(names.gate, expert), d_ff, config_.d_model),
          matrix(prefix + numbered(names.up, expert), d_ff, config_.d_model),
          matrix(prefix + numbered(names.down, expert), config_.d_model, d_ff)};
}

FfnTensors CheckpointTensors::fused_expert(const std::string& prefix, std::int64_t expert) const {
  const std::int64_t experts = config_.n_experts;
  const std::int64_t d = config_.d_model;
  const std::int64_t f = config_.d_ff;
  const StoredTensor& gate_up = find(prefix + std::string(family_.fused_gate_up), {experts, 2 * f, d});
  const StoredTensor& down = find(prefix + std::string(family_.fused_down), {experts, d, f});
  return {to_tensor(gate_up, type_, expert * 2 * f, expert * 2 * f + f, memory_),
          to_tensor(gate_up, type_, expert * 2 * f + f, (expert + 1) * 2 * f, memory_),
          to_tensor(down, type_, expert * d, (expert + 1) * d, memory_)};
}

}  // namespace switchyard
