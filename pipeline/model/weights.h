#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "io/checkpoint.h"
#include "parallel/expert_placement.h"
#include "pipeline/model/backend.h"
#include "pipeline/model/model_config.h"

namespace switchyard {

/// One decoder layer as a rank holds it.
struct Layer {
  int index = 0;                              // decoder layer
  int moe_layer = -1;                         // its index among MoE layers; -1: a dense layer
  std::unique_ptr<Norm> attention_norm;       // [d]
  std::unique_ptr<Matrix> qkv;                // [(heads + 2 kv heads) * head_dim, d]: queries, keys, values
  std::unique_ptr<Matrix> output;             // [d, heads * head_dim]
  std::unique_ptr<Norm> attention_post_norm;  // [d], of what attention adds; or none
  std::unique_ptr<Norm> ffn_norm;             // [d]
  std::unique_ptr<Norm> ffn_post_norm;        // [d], of what the feed-forward part adds; or none
  std::unique_ptr<Router> router;             // [E, d] f32; none: a dense layer
  std::unique_ptr<Experts> experts;           // this rank's, ascending; none: a dense layer
  std::unique_ptr<FeedForward> shared;        // what every token visits beside its experts; or none
  std::unique_ptr<FeedForward> dense;         // of a layer without experts
};

struct Weights {
  std::unique_ptr<Embedding> embedding;  // [vocabulary, d]
  std::vector<Layer> layers;
  std::unique_ptr<Norm> final_norm;  // [d], with the logits' scale in it
  std::unique_ptr<Head> head;        // [vocabulary, d]
};

/// Reads the replicated part and the rank's experts. on_bytes, or none: told of the bytes of all matrices that are
/// there, after each of them. Throws Error naming the tensor that is missing, of another shape
/// than config.json says, or of an unreadable type.
Weights load_weights(const Checkpoint& checkpoint, const ModelConfig& config, const ExpertPlacement& placement,
                     int rank, Backend& backend, const std::function<void(std::uint64_t)>& on_bytes);

}  // namespace switchyard
