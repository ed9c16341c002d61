#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint.h"
#include "parallel/tensor.h"
#include "pipeline/model/family.h"
#include "pipeline/model/model_config.h"

namespace switchyard {

/// The matrices of one gated feed-forward block.
struct FfnTensors {
  Tensor gate, up;  // [d_ff, d]
  Tensor down;      // [d, d_ff]
};

/// Reads a model's tensors by what they are, whatever its family calls them. Every function throws Error naming the
/// tensor that is missing, of another shape than config.json says, or of an unreadable type.
class CheckpointTensors {
 public:
  /// checkpoint and config outlive it. type: what matrices are converted to; memory: the host's, or pinned, that they
  /// are read into.
  CheckpointTensors(const Checkpoint& checkpoint, const ModelConfig& config, DType type, Device memory = Device::cpu);

  const Family& family() const { return family_; }
  /// The tensor of this name, which must be [rows, cols].
  Tensor matrix(std::string_view name, std::int64_t rows, std::int64_t cols) const;
  /// [d_model] f32.
  std::vector<float> norm(std::string_view name) const;
  /// In front of the names of a decoder layer's tensors, and of those of its feed-forward part.
  std::string layer_prefix(int layer) const;
  std::string ffn_prefix(int layer) const;

  /// [E, d] f32, of a decoder layer that has experts.
  Tensor router(int layer) const;
  /// A decoder layer's shared experts as one block; the model has some.
  FfnTensors shared(int layer) const;
  /// One routed expert of a decoder layer that has experts.
  FfnTensors expert(int layer, int expert) const;
  /// The block of a decoder layer without experts.
  FfnTensors dense(int layer) const;

 private:
  const StoredTensor& find(std::string_view name, const std::vector<std::int64_t>& shape) const;
  FfnTensors ffn(const std::string& prefix, const FfnNames& names, int d_ff, int expert = 0) const;
  FfnTensors fused_expert(const std::string& prefix, std::int64_t expert) const;

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const Family& family_;
  DType type_;
  Device memory_;
};

}  // namespace switchyard
