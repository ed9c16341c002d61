#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

/// Names of a gated feed-forward block's matrices; "{}" stands for an expert's number.
struct FfnNames {
  std::string_view gate, up, down;
};

/// What tells a family of checkpoints from others: its names in config.json and of its tensors. Data, no code.
struct Family {
  std::string_view model_type;

  std::string_view d_ff_key = "intermediate_size";
  std::string_view n_experts_key;  // empty: no routed experts
  std::string_view top_k_key;

  std::string_view embedding = "model.embed_tokens.weight";
  std::string_view final_norm = "model.norm.weight";
  std::string_view head = "lm_head.weight";
  std::string_view layer = "model.layers.{}.";  // in front of everything below
  std::string_view attention_norm = "input_layernorm.weight";
  std::string_view query = "self_attn.q_proj.weight";
  std::string_view key = "self_attn.k_proj.weight";
  std::string_view value = "self_attn.v_proj.weight";
  std::string_view output = "self_attn.o_proj.weight";
  std::string_view ffn_norm = "post_attention_layernorm.weight";

  std::vector<std::string_view> ffn_prefixes = {"mlp."};  // any of them, in front of everything below
  FfnNames dense;
  std::string_view router;
  FfnNames expert;                 // a tensor per expert ...
  std::string_view fused_gate_up;  // ... or [E, 2 d_ff, d], gate first,
  std::string_view fused_down;     // and [E, d, d_ff]

  bool routed() const { return !n_experts_key.empty(); }
};

/// All families that can be run.
std::span<const Family> families();
/// Throws Error naming `where`, the family asked for and the known ones.
const Family& find_family(std::string_view model_type, const std::string& where);

/// pattern with "{}" replaced by a number.
std::string numbered(std::string_view pattern, int number);

}  // namespace switchyard
