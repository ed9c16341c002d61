#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/routing_schema.h"
#include "pipeline/model/routing.h"

namespace switchyard {

/// Sizes and constants of a model, from its config.json.
struct ModelConfig {
  std::string family;  // "mixtral", "mistral"
  int n_layers = 0;
  int d_model = 0;
  int d_ff = 0;  // intermediate size of one expert, or of the dense FFN
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  int vocabulary = 0;
  std::vector<int> moe_layers;  // decoder layers whose experts are routed, ascending
  int n_experts = 0;            // 0: dense
  int top_k = 0;
  bool renormalise = true;  // combine weights of a token sum to 1
  float norm_epsilon = 1e-5F;
  float rope_theta = 10000.0F;
  int max_positions = 0;
  int sliding_window = 0;  // 0: none; else keys a query sees, its own included
  bool tied_embeddings = false;

  /// From the text of config.json. Throws Error naming the key that is missing or out of range, or the unknown family
  /// with the known ones.
  static ModelConfig parse(std::string_view config_text, const std::string& where);

  bool is_moe(int layer) const { return std::ranges::binary_search(moe_layers, layer); }
  int n_moe_layers() const { return static_cast<int>(moe_layers.size()); }
  RouterRule router_rule() const { return {.top_k = top_k, .renormalise = renormalise}; }
  ModelFacts facts(const std::string& name) const;
};

}  // namespace switchyard
