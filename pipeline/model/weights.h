#pragma once

#include <optional>
#include <vector>

#include "io/checkpoint.h"
#include "parallel/expert_placement.h"
#include "parallel/tensor.h"
#include "pipeline/kernels/gated_ffn.h"
#include "pipeline/kernels/matmul.h"
#include "pipeline/model/model_config.h"

namespace switchyard {

/// One decoder layer as a rank holds it. `type` below is what matmuls compute in.
struct Layer {
  int index = 0;                           // decoder layer
  int moe_layer = -1;                      // its index among MoE layers; -1: a dense layer
  std::vector<float> attention_norm;       // [d]
  PackedWeights qkv;                       // [(heads + 2 kv heads) * head_dim, d] type: queries, keys, values
  PackedWeights output;                    // [d, heads * head_dim] type
  std::vector<float> attention_post_norm;  // [d], of what attention adds; empty: none
  std::vector<float> ffn_norm;             // [d]
  std::vector<float> ffn_post_norm;        // [d], of what the feed-forward part adds; empty: none
  std::optional<Tensor> router;            // [E, d] f32; none: a dense layer
  std::optional<GatedFfn> shared;          // what every token visits beside its experts
  std::vector<GatedFfn> ffns;              // this rank's experts, ascending; the only one of a dense layer
};

struct Weights {
  Tensor embedding;  // [vocabulary, d] type
  std::vector<Layer> layers;
  std::vector<float> final_norm;  // [d], with the logits' scale in it
  PackedWeights head;             // [vocabulary, d] type
};

/// Reads the replicated part and the rank's experts. Throws Error naming the tensor that is missing, of another shape
/// than config.json says, or of an unreadable type.
Weights load_weights(const Checkpoint& checkpoint, const ModelConfig& config, const ExpertPlacement& placement,
                     int rank, DType type);

}  // namespace switchyard
