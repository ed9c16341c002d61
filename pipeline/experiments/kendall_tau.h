#pragma once

#include <cstdint>
#include <span>

namespace switchyard {

/// Kendall's tau between the identity and a permutation: pairs in order minus pairs out of order, over all pairs; 1 for
/// the identity, -1 for its reverse (Kendall, A new measure of rank correlation, 1938). O(n log n) (Knight, 1966).
/// NaN for fewer than two.
double kendall_tau(std::span<const std::int32_t> permutation);

}  // namespace switchyard
