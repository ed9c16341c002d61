#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>

namespace switchyard {

/// Where a MoE layer is among those that an experiment looks at, ascending; nothing if it is none of them.
inline std::optional<std::size_t> place_of_layer(std::span<const int> layers, int moe_layer) {
  const auto at = std::ranges::lower_bound(layers, moe_layer);
  if (at == layers.end() || *at != moe_layer) return std::nullopt;
  return static_cast<std::size_t>(at - layers.begin());
}

}  // namespace switchyard
