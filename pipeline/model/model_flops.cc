#include "pipeline/model/model_flops.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace switchyard {

ModelFlops::ModelFlops(const ModelConfig& c) : sliding_window(c.sliding_window) {
  const double d = c.d_model;
  const double projections = d * c.head_dim * (2.0 * c.n_heads + 2.0 * c.n_kv_heads);
  const double moe = 3.0 * d * (static_cast<double>(c.top_k) * c.d_ff + c.shared_d_ff);
  const double dense = 3.0 * d * c.dense_d_ff;
  const int n_moe = c.n_moe_layers();
  feed_forward = 2 * (n_moe * moe + (c.n_layers - n_moe) * dense);
  per_token = feed_forward + 2 * (c.n_layers * projections + n_moe * d * c.n_experts + d * c.vocabulary);
  per_key = 4.0 * c.n_layers * c.n_heads * c.head_dim;
}

double ModelFlops::of(std::span<const std::uint32_t> positions) const {
  double keys = 0;
  for (const std::uint32_t position : positions) {
    const auto seen = static_cast<double>(position) + 1;
    keys += sliding_window > 0 ? std::min<double>(seen, sliding_window) : seen;
  }
  return per_token * static_cast<double>(positions.size()) + per_key * keys;
}

double ModelFlops::mean(std::int64_t context) const {
  std::vector<std::uint32_t> positions(static_cast<std::size_t>(context));
  std::iota(positions.begin(), positions.end(), 0U);
  return of(positions) / static_cast<double>(context);
}

}  // namespace switchyard
