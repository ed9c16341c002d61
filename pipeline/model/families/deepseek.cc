#include "pipeline/model/family.h"

namespace switchyard {

extern const Family kDeepseek;

/// DeepSeekMoE, Dai et al. 2024, https://arxiv.org/abs/2401.06066: many narrow experts, shared ones that every token
/// visits, first layers dense. Combine weights are the router's probabilities as they are.
constinit const Family kDeepseek = {
    .model_type = "deepseek",
    .architecture = "DeepseekForCausalLM",
    .d_ff_key = "moe_intermediate_size",
    .dense_d_ff_key = "intermediate_size",
    .n_experts_key = "n_routed_experts",
    .top_k_key = "num_experts_per_tok",
    .n_shared_experts_key = "n_shared_experts",
    .first_moe_layer_key = "first_k_dense_replace",
    .moe_layer_step_key = "moe_layer_freq",
    .renormalise_key = "norm_topk_prob",
    .only = {{{"hidden_act", "\"silu\""},
              {"scoring_func", "\"softmax\""},
              {"topk_method", "\"greedy\""},
              {"n_group", "1"},
              {"topk_group", "1"},
              {"routed_scaling_factor", "1"},
              {"attention_bias", "false"}}},
    .renormalise = false,
    .dense = {.gate = "gate_proj.weight", .up = "up_proj.weight", .down = "down_proj.weight"},
    .router = "gate.weight",
    .expert = {.gate = "experts.{}.gate_proj.weight",
               .up = "experts.{}.up_proj.weight",
               .down = "experts.{}.down_proj.weight"},
    .shared = {.gate = "shared_experts.gate_proj.weight",
               .up = "shared_experts.up_proj.weight",
               .down = "shared_experts.down_proj.weight"},
};

}  // namespace switchyard
