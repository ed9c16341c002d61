#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/routing_schema.h"
#include "pipeline/kernels/attention.h"
#include "pipeline/kernels/gated_ffn.h"
#include "pipeline/model/grouped_matmul_kind.h"
#include "pipeline/model/routing.h"

namespace switchyard {

/// Sizes and constants of a model, from its config.json.
struct ModelConfig {
  std::string family;  // model_type
  int n_layers = 0;
  int d_model = 0;
  int d_ff = 0;         // intermediate size of a routed expert
  int dense_d_ff = 0;   // of a layer without experts
  int shared_d_ff = 0;  // of a MoE layer's shared experts together; 0: none
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  int vocabulary = 0;
  std::vector<int> moe_layers;  // decoder layers whose experts are routed, ascending
  int n_experts = 0;            // of a MoE layer; 0: there is none
  int top_k = 0;
  bool renormalise = true;  // combine weights of a token sum to 1
  float norm_epsilon = 1e-5F;
  float rope_theta = 10000.0F;
  int max_positions = 0;
  int sliding_window = 0;  // 0: none; else keys a query sees, its own included
  bool tied_embeddings = false;
  float embedding_scale = 1;
  float logit_scale = 1;
  float attention_scale = 0;    // of attention scores; 0: 1 / sqrt(head_dim)
  float attention_softcap = 0;  // of scaled attention scores s: cap * tanh(s / cap); 0: none
  Activation activation = Activation::silu;
  std::vector<std::uint32_t> end_tokens;  // eos_token_id: any of them ends an answer

  /// From the text of config.json. Throws Error naming the key that is missing or out of range, or the unknown family
  /// with the known ones.
  static ModelConfig parse(std::string_view config_text, const std::string& where);

  bool is_moe(int layer) const { return std::ranges::binary_search(moe_layers, layer); }
  int n_moe_layers() const { return static_cast<int>(moe_layers.size()); }
  RouterRule router_rule() const { return {.top_k = top_k, .renormalise = renormalise}; }
  AttentionShape attention_shape() const {
    return {.n_heads = n_heads,
            .n_kv_heads = n_kv_heads,
            .head_dim = head_dim,
            .sliding_window = sliding_window,
            .scale = attention_scale,
            .softcap = attention_softcap};
  }
  /// Of a MoE layer spread evenly; 0: there are none.
  ExpertShape experts_of_rank(int n_ranks) const {
    return {(n_experts + n_ranks - 1) / n_ranks, d_model, d_ff, activation};
  }
  ModelFacts facts(const std::string& name) const;
};

}  // namespace switchyard
