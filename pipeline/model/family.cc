#include "pipeline/model/family.h"

#include <algorithm>

#include "parallel/error.h"

namespace switchyard {

std::span<const Family> families() {
  static const std::vector<Family> all = {
      {.model_type = "mixtral",
       .n_experts_key = "num_local_experts",
       .top_k_key = "num_experts_per_tok",
       .ffn_prefixes = {"block_sparse_moe.", "mlp."},
       .dense = {},
       .router = "gate.weight",
       .expert = {.gate = "experts.{}.w1.weight", .up = "experts.{}.w3.weight", .down = "experts.{}.w2.weight"},
       .fused_gate_up = "experts.gate_up_proj",
       .fused_down = "experts.down_proj"},
      {.model_type = "mistral",
       .n_experts_key = {},
       .top_k_key = {},
       .ffn_prefixes = {"mlp."},
       .dense = {.gate = "gate_proj.weight", .up = "up_proj.weight", .down = "down_proj.weight"},
       .router = {},
       .expert = {},
       .fused_gate_up = {},
       .fused_down = {}},
  };
  return all;
}

const Family& find_family(std::string_view model_type, const std::string& where) {
  const auto found = std::ranges::find(families(), model_type, &Family::model_type);
  if (found != families().end()) return *found;
  std::string known;
  for (const Family& family : families()) known += (known.empty() ? "" : ", ") + std::string(family.model_type);
  throw Error("model_type \"" + std::string(model_type) + "\" is not a known family", where, "known are " + known);
}

std::string numbered(std::string_view pattern, int number) {
  std::string name(pattern);
  if (const auto at = name.find("{}"); at != std::string::npos) name.replace(at, 2, std::to_string(number));
  return name;
}

}  // namespace switchyard
