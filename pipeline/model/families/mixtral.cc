#include "pipeline/model/family.h"

namespace switchyard {

extern const Family kMixtral;

/// Mixtral of Experts, Jiang et al. 2024, https://arxiv.org/abs/2401.04088, as transformers writes it: newer releases
/// fuse the experts of a layer.
constinit const Family kMixtral = {
    .model_type = "mixtral",
    .architecture = "MixtralForCausalLM",
    .d_ff_key = "intermediate_size",
    .n_experts_key = "num_local_experts",
    .top_k_key = "num_experts_per_tok",
    .only = {{{"hidden_act", "\"silu\""}}},
    .ffn_prefixes = {"block_sparse_moe.", "mlp."},
    .router = "gate.weight",
    .expert = {.gate = "experts.{}.w1.weight", .up = "experts.{}.w3.weight", .down = "experts.{}.w2.weight"},
    .fused_gate_up = "experts.gate_up_proj",
    .fused_down = "experts.down_proj",
};

}  // namespace switchyard
