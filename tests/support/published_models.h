#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "pipeline/model/model_config.h"

namespace switchyard::testing_support {

/// What decides the shapes of operations, of the config.json of published models: at least one of each family.
inline constexpr std::array<std::string_view, 4> kPublishedConfigs = {
    // Mixtral-8x7B
    R"({"model_type": "mixtral", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8,
        "num_experts_per_tok": 2, "rms_norm_eps": 1e-05, "rope_theta": 1e6, "max_position_embeddings": 32768})",
    // Mistral-7B
    R"({"model_type": "mistral", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": 4096,
        "rms_norm_eps": 1e-05, "rope_theta": 1e4, "max_position_embeddings": 32768})",
    // DeepSeekMoE-16B
    R"({"model_type": "deepseek", "num_hidden_layers": 28, "hidden_size": 2048, "intermediate_size": 10944,
        "moe_intermediate_size": 1408, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 102400,
        "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2, "first_k_dense_replace": 1,
        "rms_norm_eps": 1e-06, "rope_theta": 1e4, "max_position_embeddings": 4096})",
    // Grok-1
    R"({"model_type": "grok-1", "num_hidden_layers": 64, "hidden_size": 6144, "intermediate_size": 32768,
        "num_attention_heads": 48, "num_key_value_heads": 8, "vocab_size": 131072, "num_experts": 8,
        "num_experts_per_tok": 2, "attn_output_multiplier": 0.08838834764831845, "max_attn_value": 30.0,
        "rms_norm_eps": 1e-05, "max_position_embeddings": 8192})",
};

inline std::vector<ModelConfig> published_models() {
  std::vector<ModelConfig> models;
  for (const std::string_view text : kPublishedConfigs)
    models.push_back(ModelConfig::parse(text, "published_models.h"));
  return models;
}

}  // namespace switchyard::testing_support
