#pragma once

#include <cstdint>

namespace switchyard {

/// What a router tells of each token, rows of Routing::figures.
enum class RoutingFigure : std::uint8_t {
  entropy,          // nats, of the probabilities
  margin,           // k-th minus (k+1)-th probability; 0 when k = E
  top_probability,  // the largest
  log_sum_exp       // of the logits
};
inline constexpr std::int64_t kRoutingFigures = 4;

}  // namespace switchyard
