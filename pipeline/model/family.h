#pragma once

#include <array>
#include <span>
#include <string>
#include <string_view>

#include "pipeline/kernels/gated_ffn.h"

namespace switchyard {

/// Names of a gated feed-forward block's matrices; "{}" stands for an expert's number.
struct FfnNames {
  std::string_view gate, up, down;
};

/// A key of config.json whose only value that can be run is this JSON text, or none at all.
struct OnlyValue {
  std::string_view key, value;
};

/// What tells a family of checkpoints from others: its names in config.json and of its tensors, and its constants.
/// Data, no code; families/ has one file for each. An empty name or key: the family has no such thing.
struct Family {
  std::string_view model_type = {};
  std::string_view architecture = {};  // the model class of transformers, or of the published files

  // Keys of config.json.
  std::string_view d_ff_key = {};        // width of a routed expert
  std::string_view dense_d_ff_key = {};  // of a layer without experts
  std::string_view n_experts_key = {};   // empty: no layer is routed
  std::string_view top_k_key = {};
  std::string_view n_shared_experts_key = {};  // each as wide as a routed one
  std::string_view first_moe_layer_key = {};   // layers before it are dense, ...
  std::string_view moe_layer_step_key = {};    // ... and those whose number is no multiple of this
  std::string_view renormalise_key = {};
  std::string_view embedding_scale_key = {};
  std::string_view logit_scale_key = {};
  std::string_view attention_scale_key = {};
  std::string_view attention_softcap_key = {};
  std::array<OnlyValue, 8> only = {};

  // Where config.json is silent.
  bool renormalise = true;
  bool tied_embeddings = false;
  float rope_theta = 0;  // 0: it must not be
  Activation activation = Activation::silu;

  // Tensors.
  std::string_view embedding = "model.embed_tokens.weight";
  std::string_view final_norm = "model.norm.weight";
  std::string_view head = "lm_head.weight";
  std::string_view layer = "model.layers.{}.";  // in front of everything below
  std::string_view attention_norm = "input_layernorm.weight";
  std::string_view query = "self_attn.q_proj.weight";
  std::string_view key = "self_attn.k_proj.weight";
  std::string_view value = "self_attn.v_proj.weight";
  std::string_view output = "self_attn.o_proj.weight";
  std::string_view attention_post_norm = {};  // of what attention adds to the residual stream
  std::string_view ffn_norm = "post_attention_layernorm.weight";
  std::string_view ffn_post_norm = {};

  std::array<std::string_view, 2> ffn_prefixes = {"mlp."};  // any of them, in front of everything below
  FfnNames dense = {};
  std::string_view router = {};
  FfnNames expert = {};                 // a tensor per expert ...
  std::string_view fused_gate_up = {};  // ... or [E, 2 d_ff, d], gate first,
  std::string_view fused_down = {};     // and [E, d, d_ff]
  FfnNames shared = {};                 // all shared experts as one block

  bool routed() const { return !n_experts_key.empty(); }
};

/// All families that can be run.
std::span<const Family* const> families();
/// Their model_types, separated by commas.
std::string known_families();
/// Throws Error naming `where`, the family asked for and the known ones.
const Family& find_family(std::string_view model_type, const std::string& where);

/// pattern with "{}" replaced by a number.
std::string numbered(std::string_view pattern, int number);

}  // namespace switchyard
