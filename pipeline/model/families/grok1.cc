#include "pipeline/model/family.h"

namespace switchyard {

extern const Family kGrok1;

/// Grok-1, xAI 2024, https://github.com/xai-org/grok-1, in the Hugging Face layout of hpcai-tech/grok-1: a norm before
/// and behind each half of a layer, scaled embeddings and logits, attention scores capped by a tanh.
constinit const Family kGrok1 = {
    .model_type = "grok-1",
    .architecture = "Grok1ModelForCausalLM",
    .d_ff_key = "intermediate_size",
    .n_experts_key = "num_experts",
    .top_k_key = "num_experts_per_tok",
    .embedding_scale_key = "embedding_multiplier_scale",
    .logit_scale_key = "output_multiplier_scale",
    .attention_scale_key = "attn_output_multiplier",
    .attention_softcap_key = "max_attn_value",
    .only = {{{"hidden_act", "\"gelu\""}}},
    .renormalise = false,
    .tied_embeddings = true,
    .rope_theta = 10000,
    .activation = Activation::gelu,
    .final_norm = "model.norm.scale",
    .attention_norm = "pre_attn_norm.scale",
    .query = "attn.q_proj.weight",
    .key = "attn.k_proj.weight",
    .value = "attn.v_proj.weight",
    .output = "attn.o_proj.weight",
    .attention_post_norm = "post_attn_norm.scale",
    .ffn_norm = "pre_moe_norm.scale",
    .ffn_post_norm = "post_moe_norm.scale",
    .ffn_prefixes = {"moe_block."},
    .router = "gate.weight",
    .expert = {.gate = "experts.{}.linear.weight",
               .up = "experts.{}.linear_v.weight",
               .down = "experts.{}.linear_1.weight"},
};

}  // namespace switchyard
