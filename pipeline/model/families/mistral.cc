#include "pipeline/model/family.h"

namespace switchyard {

extern const Family kMistral;

/// Mistral 7B, Jiang et al. 2023, https://arxiv.org/abs/2310.06825: no experts, a sliding window.
constinit const Family kMistral = {
    .model_type = "mistral",
    .architecture = "MistralForCausalLM",
    .dense_d_ff_key = "intermediate_size",
    .only = {{{"hidden_act", "\"silu\""}}},
    .dense = {.gate = "gate_proj.weight", .up = "up_proj.weight", .down = "down_proj.weight"},
};

}  // namespace switchyard
