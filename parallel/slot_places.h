#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "parallel/expert_placement.h"

namespace switchyard {

/// Chosen experts of n tokens: ids[token * top_k + j].
struct ExpertIds {
  std::span<const std::int32_t> ids;  // [n, top_k]
  int top_k = 1;

  /// Throws Error if ids are no multiple of top_k, or more than 2^31 - 1.
  std::int64_t n_tokens() const;
};

/// The tokens [first, end) of one of n_parts parts of a batch: consecutive, and as even as can be.
std::pair<std::int64_t, std::int64_t> tokens_of_part(std::int64_t n_tokens, int part, int n_parts);

/// Where the slots of some consecutive tokens of a batch go in one MoE layer: to places (LayerPlacement::place_of), of
/// a replicated expert shared out among its copies by the placement's rule, which knows tokens by their number in the
/// whole batch.
class SlotPlaces {
 public:
  /// Throws Error if an id is outside the placement.
  SlotPlaces(ExpertIds ids, std::pair<std::int64_t, std::int64_t> tokens, const LayerPlacement& placement, int rank);
  /// Of all tokens.
  SlotPlaces(ExpertIds ids, const LayerPlacement& placement, int rank);

  /// [n_physical] slots that go to each place.
  std::span<const std::int32_t> rows() const { return rows_; }
  /// [n_send] packed row -> slot (token * k + j, in the whole batch). Rows are packed by place, then slot.
  std::vector<std::int32_t> pack_order() const;

 private:
  std::int64_t first_slot_;
  std::vector<std::int32_t> place_;  // of each slot from the first on
  std::vector<std::int32_t> rows_;
};

}  // namespace switchyard
